"""Imports of packages that only some readers need."""

from __future__ import annotations

import importlib
from typing import Any

from apical.errors import DataError


def import_optional(module: str, package: str, extra: str, purpose: str) -> Any:
    """Import a module of an optional dependency.

    Raises:
        DataError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(f"{purpose} needs {package}: pip install 'apical[{extra}]' ({error})") from error
