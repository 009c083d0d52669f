"""Imports of packages that only some parts need."""

from __future__ import annotations

import importlib
from typing import Any

from apical.errors import ApicalError, DataError


def import_optional(module: str, package: str, extra: str, purpose: str, error: type[ApicalError] = DataError) -> Any:
    """Import a module of an optional dependency."""
    try:
        return importlib.import_module(module)
    except ImportError as problem:
        raise error(f"{purpose} needs {package}: pip install 'apical[{extra}]' ({problem})") from problem
