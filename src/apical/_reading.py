"""Reading files of folders that may come from anybody: ordinary files only, and no more than makes sense."""

from __future__ import annotations

import errno
import json
import stat
from pathlib import Path
from typing import Any

from apical.errors import ApicalError, LoadError

LARGEST_TEXT = 64 * 2**20  # bytes of a config, a history, a list or an architecture; none comes near


def is_regular(path: Path) -> bool:
    """Whether there is an ordinary file, or a link to one; no name at all makes it fail.

    Example:
        >>> is_regular(Path("/dev")), is_regular(Path("a" * 5000)), is_regular(Path("\\0"))
        (False, False, False)
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def lies_inside(name: str) -> bool:
    """Whether a name from a list leads to somewhere below the folder that it is joined to. Links there are followed.

    Example:
        >>> [lies_inside(name) for name in ("2007/a", "../secret", "/etc/passwd", "a/../../b", "..\\\\b", "C:b")]
        [True, False, False, False, False, False]
    """
    parts = name.replace("\\", "/").split("/")
    return bool(name) and bool(parts[0]) and ".." not in parts and ":" not in parts[0]


def regular(path: Path) -> Path:
    """The path, if an ordinary file is there: opening a pipe would wait for ever, and a device may have no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a device or a pipe, expected an ordinary file", str(path))
    return path


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The bytes of an ordinary file.

    Args:
        path: of it.
        most: bytes that it may have; None for any number.

    Raises:
        OSError: it does not exist, is something else, is larger, does not fit into the memory, or cannot be read.
    """
    size = regular(path).stat().st_size
    if most is not None and size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than the {most:,} that such a file needs", str(path))
    try:
        return path.read_bytes()
    except MemoryError as error:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than there is memory for", str(path)) from error


def read_text(path: Path, most: int | None = LARGEST_TEXT) -> str:
    """The text of an ordinary UTF-8 file.

    Raises:
        OSError: as `read_regular`.
        UnicodeDecodeError: (a `ValueError`) it is in another encoding.
    """
    return read_regular(path, most).decode("utf-8")


def read_object(
    path: Path, error: type[ApicalError], expected: str = "a JSON object", most: int = LARGEST_TEXT
) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ApicalError: (of the class ``error``) it is missing, too large, not JSON, or no object.
    """
    try:
        content = json.loads(read_text(path, most))
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path} does not exist; expected {expected}") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path} cannot be read as JSON: {problem}") from problem
    if not isinstance(content, dict):
        raise error(f"{path} holds no object; expected {expected}")
    return content


def read_record(path: Path, most: int, kind: str, expected: str) -> dict[str, Any]:
    """The JSON object in a file of a format of ours, which states the format's name."""
    data = read_object(path, LoadError, expected, most)
    if data.get("format") != kind:
        raise LoadError(f'{path} is not {expected} (no "format": "{kind}")')
    return data
