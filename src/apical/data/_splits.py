"""The names under which data sets publish their splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeVar

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
