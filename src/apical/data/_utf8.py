"""Text files of data sets."""

from __future__ import annotations

from pathlib import Path

from apical._reading import LARGEST_TEXT, read_bytes
from apical.errors import DataError


def read_utf8(path: Path, most: int | None = LARGEST_TEXT) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        DataError: it cannot be read, is no ordinary file, has more than `most` bytes, or is not UTF-8.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Convert it, for example "
            f"with iconv -f latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
