"""Where data lie: the folder that a name means, and the names under which data sets publish their splits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from apical._reading import LARGEST_TEXT, read_regular
from apical.errors import DataError

#: What a caller may ask for. ``"test"`` means the images that the reported accuracy is measured on: where a data set
#: has no test split (ImageNet, Imagenette), that is its validation split.
Split = Literal["train", "validation", "test"]

#: How folders and files call each split.
ALIASES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}

T = TypeVar("T")


def check_split(split: str) -> None:
    """Refuse a split that has no meaning here."""
    if split not in ALIASES:
        raise DataError(f"split must be one of {sorted(ALIASES)}, got {split!r}")


def canonical_split(name: str) -> str | None:
    """Say which split a folder's or file's name stands for: ``val`` and ``val-00000-of-00002`` are validation."""
    words = name.lower().replace("-", ".").replace("_", ".").split(".")
    for split, aliases in ALIASES.items():
        if words[0] in aliases:
            return split
    return None


def choose_split(found: Mapping[str, Sequence[T]], split: str, folder: Path) -> Sequence[T]:
    """Pick what belongs to a split from what was found."""
    check_split(split)
    for name in ("test", "validation") if split == "test" else (split,):
        if found.get(name):
            return found[name]
    available = sorted(name for name, items in found.items() if items)
    raise DataError(f"{folder} has no {split!r} split; it has {available or 'none'}")


#: The environment variable that names the folder of data sets.
ENVIRONMENT_VARIABLE = "APICAL_DATA"


def data_root() -> Path:
    """The folder that holds data sets, by the environment variable ``APICAL_DATA``.

    Raises:
        DataError: it is not set, or what is set is not a folder.
    """
    value = os.environ.get(ENVIRONMENT_VARIABLE)
    if not value:
        raise DataError(f"no data folder: give one as option (--data) or set the variable {ENVIRONMENT_VARIABLE}")
    root = named_path(value)
    if not root.is_dir():
        raise DataError(f"{ENVIRONMENT_VARIABLE} names {root}, which is not a folder")
    return root


def named_path(name: str | Path) -> Path:
    """The path of a name that a user gave, ``~`` being their home.

    Raises:
        DataError: no file or folder can have this name.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # the latter where there is no such home
        raise DataError(
            f"{str(name)[:80]!r} is not the name of a folder here: {getattr(error, 'strerror', error)}"
        ) from error
    return path


def locate(path_or_name: str | Path, others: Iterable[str] = ()) -> Path:
    """A folder of data: looked up here, then in `data_root`."""
    path = named_path(path_or_name)
    if path.is_dir() or path.is_absolute():
        return path
    if path.exists() and not Path(os.environ.get(ENVIRONMENT_VARIABLE, ""), path).is_dir():
        return path  # a file: who reads the folder says what was expected
    try:
        base = data_root()
    except DataError as error:
        kinds = ", ".join(others)
        what = f"neither a folder here nor one of {kinds}" if kinds else "no folder here"
        raise DataError(
            f"{path} is {what}, and there is {error}. apical downloads no data: unpack them yourself, and name their "
            "folder"
        ) from error
    if not (base / path).is_dir():
        raise DataError(f"{path} is neither a folder here nor in {base}, which has {listed(base)}")
    return base / path


def listed(folder: Path) -> str:
    """Some of what is in a folder, for errors."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + more if names else "nothing"


def read_whole(path: Path, most: int | None = None) -> bytes:
    """The bytes of a file."""
    try:
        return read_regular(path, most)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_utf8(path: Path, most: int | None = LARGEST_TEXT) -> str:
    """The text of a file, without a byte order mark."""
    try:
        return read_whole(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}. Convert it, for example "
            f"with iconv -f latin1 -t utf-8"
        ) from error
