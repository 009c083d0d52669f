"""Images with a class for every pixel, in the folders of PASCAL VOC (Everingham et al. 2010)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apical._optional import import_optional
from apical._reading import is_regular, lies_inside
from apical.data._decoding import Decode
from apical.data._splits import named_path, read_utf8
from apical.errors import DataError

LISTS = "ImageSets/Segmentation"

_INNER_FOLDERS = ("VOC2012", "VOC2007", "VOCdevkit/VOC2012", "VOCdevkit/VOC2007")  # what downloaders put around it

_EXPECTED = """expected the layout of PASCAL VOC
  JPEGImages/NAME.jpg                    (or .png)
  SegmentationClass/NAME.png             8-bit palette or grey: a class number for every pixel
  ImageSets/Segmentation/train.txt, val.txt, and perhaps trainval.txt, test.txt: a NAME a line"""

PASCAL_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip


@dataclass(frozen=True)
class VocSplit:
    """The images of one list and their masks; item i is (uint8 (3, H, W), uint8 (H, W)).

    Attributes:
        folder: the folder that holds JPEGImages.
        split: the name of the list.
        names: of its images, in the list's order.
        shorter_side: to which images (antialiased) and masks (nearest) are scaled; None leaves them as they are.

    Raises:
        DataError: from an item: a file cannot be read, or image and mask have other sizes.
    """

    folder: Path
    split: str
    names: tuple[str, ...]
    shorter_side: int | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.image(index), self.mask(index)

    def image(self, index: int) -> Tensor:
        """The picture  # uint8 (3, H, W)"""
        path, mask = self._image_path(index), self._mask_path(index)
        pixels = Decode(resize=self.shorter_side)(path, str(path))
        sizes = [_size(part) for part in (path, mask)]
        if sizes[0] != sizes[1]:
            image_size, mask_size = ("x".join(map(str, size)) for size in sizes)
            raise DataError(f"{mask} is {mask_size} pixels, its image {path.name} {image_size}; expected the same size")
        return pixels

    def mask(self, index: int) -> Tensor:
        """The class of every pixel  # uint8 (H, W)"""
        path = self._mask_path(index)
        pillow = _pillow()
        try:
            with pillow.open(path) as opened:
                if opened.mode not in ("P", "L"):
                    raise DataError(
                        f"the mask has Pillow mode {opened.mode!r}, expected an 8-bit palette or grey PNG whose values "
                        "are class numbers; colours must be translated first"
                    )
                return torch.from_numpy(np.array(self._scaled(opened, pillow)))
        except Exception as error:
            raise DataError(f"{path}: cannot read the mask: {error}") from error

    def _scaled(self, opened: Any, pillow: Any) -> Any:
        if self.shorter_side is None or min(opened.size) == self.shorter_side:
            return opened
        factor = self.shorter_side / min(opened.size)  # as `Decode` scales the image
        width, height = (max(self.shorter_side, round(side * factor)) for side in opened.size)
        return opened.resize((width, height), pillow.Resampling.NEAREST)

    def described(self) -> list[str]:
        """The name of every image, with the size of its mask's file in bytes, which hardly any change keeps."""
        return [f"{name} {self._mask_path(index).stat().st_size}" for index, name in enumerate(self.names)]

    def palette(self) -> tuple[str, ...]:
        """The colours of the first mask as ``#rrggbb``; the usual ones of VOC for a grey mask."""
        with _pillow().open(self._mask_path(0)) as opened:
            values = opened.getpalette() if opened.mode == "P" else None
        if not values:
            return pascal_palette()
        colours = [values[i : i + 3] for i in range(0, len(values) - 2, 3)]
        return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours)

    def _image_path(self, index: int) -> Path:
        stem = self.folder / "JPEGImages" / self.names[index]
        return next((p for s in _SUFFIXES if is_regular(p := stem.with_name(stem.name + s))), stem)

    def _mask_path(self, index: int) -> Path:
        return self.folder / "SegmentationClass" / f"{self.names[index]}.png"


_SUFFIXES = (".jpg", ".png", ".jpeg")


def find_voc(folder: str | Path) -> Path:
    """The folder that holds JPEGImages, SegmentationClass and ImageSets: this one, or one that downloaders nest."""
    folder = named_path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; {_EXPECTED}")
    parts = ("JPEGImages", "SegmentationClass", LISTS)
    for candidate in (folder, *(folder / name for name in _INNER_FOLDERS)):
        if all((candidate / part).is_dir() for part in parts):
            return candidate
    missing = [part for part in parts if not (folder / part).is_dir()]
    raise DataError(f"{folder} has no {', no '.join(missing)}; {_EXPECTED}")


def open_voc(folder: str | Path, split: str = "train", shorter_side: int | None = None) -> VocSplit:
    """The images that a list names.

    Args:
        folder: as for `find_voc`.
        split: the list: ``"train"``, ``"val"``, ``"trainval"``, ``"test"``, or another in ImageSets/Segmentation.
        shorter_side: to scale to; None for none.

    Raises:
        DataError: there is no such layout or list, the list is empty, or files that it names are missing.
    """
    root = find_voc(folder)
    path = root / LISTS / f"{split}.txt"
    if not path.is_file():
        there = sorted(p.stem for p in (root / LISTS).glob("*.txt"))
        raise DataError(f"{path} does not exist; the lists are {', '.join(there) or 'none'}. {_EXPECTED}")
    names = tuple(line.strip() for line in read_utf8(path).split("\n") if line.strip())
    if not names:
        raise DataError(f"{path} is empty; expected the name of an image a line")
    outside = [name for name in names if not lies_inside(name)]
    if outside:
        raise DataError(f"{path} names {outside[0]!r:.80}, which leads out of {root}; expected names of images in it")
    found = VocSplit(root, split, names, shorter_side)
    missing = [
        str(place(i).relative_to(root))
        for place in (found._image_path, found._mask_path)
        for i in range(len(names))
        if not is_regular(place(i))
    ]
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise DataError(f"{path} names files that do not exist: {', '.join(missing[:4])}{more} (in {root})")
    return found


def has_masks(folder: str | Path, split: str) -> bool:
    """Whether there is a list of this name and at least one mask for it. VOC 2012 published no masks of its test list.

    Raises:
        DataError: there is no such layout, or the list cannot be read.
    """
    root = find_voc(folder)
    path = root / LISTS / f"{split}.txt"
    if not path.is_file():
        return False
    names = [name for name in read_utf8(path).split() if lies_inside(name)]
    return any(is_regular(root / "SegmentationClass" / f"{name}.png") for name in names)


def voc_classes(split: VocSplit, ignore_label: int, num_classes: int | None = None) -> tuple[str, ...]:
    """The names of the classes of a folder.

    From classes.txt (``NUMBER NAME`` or ``NAME`` a line, the ignore label left out) where there is one; else the 20
    classes of PASCAL where the folder is called VOC2007, VOC2012, …; else as many as the masks show, by number.
    """
    path = split.folder / "classes.txt"
    if path.is_file():
        names = _read_classes(path, ignore_label)
    elif re.fullmatch(r"VOC20\d\d", split.folder.name) and num_classes in (None, len(PASCAL_CLASSES)):
        names = PASCAL_CLASSES
    elif num_classes is None:
        highest = max(
            (int(v) for i in range(len(split)) for v in split.mask(i).unique() if v != ignore_label), default=0
        )
        names = tuple(f"class {number}" for number in range(highest + 1))
    else:
        names = tuple(f"class {number}" for number in range(num_classes))
    if num_classes is not None and len(names) != num_classes:
        raise DataError(f"{path} names {len(names)} classes, num_classes is {num_classes}; make them agree")
    if len(names) < 2:
        raise DataError(f"the masks of {split.folder} show {len(names)} class; expected at least 2 beside the ignored")
    return names


def _read_classes(path: Path, ignore_label: int) -> tuple[str, ...]:
    lines = [line.split(None, 1) for line in read_utf8(path).splitlines() if line.strip()]
    if not all(words[0].isdecimal() and len(words) == 2 for words in lines):
        return tuple(" ".join(words) for words in lines)
    left_out = {ignore_label, 255}
    numbers = [int(number) for number, _ in lines if int(number) not in left_out]
    if sorted(numbered := set(numbers)) != list(range(len(numbers))):
        raise DataError(
            f"{path}: expected the numbers 0, 1, 2, … once each, beside the ignore label {ignore_label}, got "
            f"{sorted(numbered)}"
        )
    return tuple(name.strip() for _, name in sorted((int(n), name) for n, name in lines if int(n) not in left_out))


def check_mask(mask: Tensor, num_classes: int, ignore_label: int, where: str) -> None:
    """Refuse values that are neither a class nor the ignore label.

    Example:
        >>> check_mask(torch.tensor([[0, 3, 255]]), 3, 255, "a.png")
        Traceback (most recent call last):
        apical.errors.DataError: a.png has the value 3; expected classes 0 to 2, or 255 for pixels to ignore. ...
    """
    wrong = mask[(mask >= num_classes) & (mask != ignore_label)]
    if len(wrong):
        raise DataError(
            f"{where} has the value {int(wrong[0])}; expected classes 0 to {num_classes - 1}, or {ignore_label} for "
            "pixels to ignore. Set data.num_classes or data.ignore_label to what the masks hold."
        )


def read_split(split: VocSplit, check: Callable[[Tensor, int], None]) -> Sequence[tuple[Tensor, Tensor]]:
    """All pairs of a split in memory; ``check`` gets each mask and its index.

    Raises:
        DataError: a file cannot be read, or a mask does not pass.
    """
    pairs = []
    for index in range(len(split)):
        pairs.append(split[index])
        check(pairs[-1][1], index)
    return pairs


def pascal_palette(count: int = 256) -> tuple[str, ...]:
    """The colours that PASCAL VOC gives to class numbers: the number's bits spread over red, green and blue.

    Example:
        >>> pascal_palette(3)
        ('#000000', '#800000', '#008000')
    """
    colours = []
    for number in range(count):
        channels = [sum(((number >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
        colours.append("#{:02x}{:02x}{:02x}".format(*channels))
    return tuple(colours)


def _size(path: Path) -> tuple[int, int]:
    """Width and height, from the file's head."""
    try:
        with _pillow().open(path) as opened:
            return (opened.width, opened.height)
    except Exception as error:
        raise DataError(f"{path}: cannot read the picture: {error}") from error


def _pillow() -> Any:
    return import_optional("PIL.Image", "Pillow", "data", "decoding images")
