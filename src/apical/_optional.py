"""Imports of packages that only some parts need."""

from __future__ import annotations

import importlib
from typing import Any

from apical.errors import ApicalError, DataError


def import_optional(module: str, package: str, extra: str, purpose: str, error: type[ApicalError] = DataError) -> Any:
    """Import a module of an optional dependency.

    Args:
        module: its path.
        package: that brings it.
        extra: of apical, that installs the package.
        purpose: what needs it, for the message.
        error: what is raised where it is not installed or does not load.
    """
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise error(f"{purpose} needs {package}: pip install 'apical[{extra}]' ({problem})") from problem
