"""The command line: `apical train`, `apical inspect`, `apical export`, `apical report`."""

from apical.cli._main import main

__all__ = ["main"]
