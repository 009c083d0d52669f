"""Where data sets live on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from apical.errors import DataError

#: The environment variable that names the folder of data sets.
ENVIRONMENT_VARIABLE = "APICAL_DATA"


def data_root(option: str | Path | None = None) -> Path:
    """Find the folder that holds data sets: the option if given, else the environment variable ``APICAL_DATA``.

    Raises:
        DataError: neither is set, or what is set is not a folder.
    """
    value, source = (option, "the data option") if option is not None else (os.environ.get(ENVIRONMENT_VARIABLE), "")
    if not value:
        raise DataError(f"no data folder: give one as option (--data) or set the variable {ENVIRONMENT_VARIABLE}")
    root = Path(value).expanduser()
    if not root.is_dir():
        raise DataError(f"{source or ENVIRONMENT_VARIABLE} names {root}, which is not a folder")
    return root


def locate(path_or_name: str | Path, root: str | Path | None = None, others: Iterable[str] = ()) -> Path:
    """A folder of data: looked up here, then in `data_root`.

    Args:
        path_or_name: of the folder.
        root: the folder of data sets, instead of the environment variable.
        others: names of data that lie in no folder, for the error.

    Raises:
        DataError: it is in neither.
    """
    path = Path(path_or_name).expanduser()
    if path.is_dir() or path.is_absolute():
        return path
    try:
        base = data_root(root)
    except DataError as error:
        kinds = ", ".join(others)
        what = f"neither a folder here nor one of {kinds}" if kinds else "no folder here"
        raise DataError(f"{path} is {what}, and there is {error}") from error
    if not (base / path).is_dir():
        raise DataError(f"{path} is neither a folder here nor in {base}, which has {listed(base)}")
    return base / path


def listed(folder: Path) -> str:
    """Some of what is in a folder, for errors."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more if names else "nothing"
