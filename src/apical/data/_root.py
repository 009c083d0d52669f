"""Where data sets live on this machine."""

from __future__ import annotations

import os
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
