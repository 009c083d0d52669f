"""Image folders: ``train/cat/001.jpg``, ``val/dog/002.png`` (the layout of torchvision's ``ImageFolder``).

Where there are class folders only (``cat/001.jpg``), a share of each class is held out, always the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from apical.data._arrays import ImageArrays
from apical.data._decoding import Decode, decode_all
from apical.data._splits import ALIASES, Split, choose_split
from apical.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
)
HELD_OUT, SPLIT_SEED = 0.2, 0  # share of each class, and the seed that chooses it, where a folder has no splits


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _class_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _split_folders(folder: Path) -> dict[str, Path]:
    present = {path.name.lower(): path for path in _class_folders(folder)}
    found = {split: [present[alias] for alias in aliases if alias in present] for split, aliases in ALIASES.items()}
    for split, paths in found.items():
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            raise DataError(f"{folder}: several folders could be the {split!r} split: {names}")
    return {split: paths[0] for split, paths in found.items() if paths}


def is_image_folder(folder: Path) -> bool:
    """Whether the folder has split folders with class folders with images, or at least two such class folders."""
    splits = _split_folders(folder)
    if not splits:
        return is_unsplit(folder)
    return any(
        _is_image(path)
        for split in splits.values()
        for class_folder in _class_folders(split)
        for path in class_folder.rglob("*")
    )


def is_unsplit(folder: Path) -> bool:
    """Whether the folder has class folders with images, and no split folders."""
    if _split_folders(folder):
        return False
    return sum(any(map(_is_image, class_folder.iterdir())) for class_folder in _class_folders(folder)) > 1


def _held_out(paths: Sequence[Path], labels: Sequence[int]) -> set[int]:
    """Positions of the images that are held out where a folder has no splits: a share of each class, at least one."""
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_class.setdefault(label, []).append(position)
    random, kept = np.random.RandomState(SPLIT_SEED), set()
    for _, own in sorted(by_class.items()):
        if len(own) < 2:
            raise DataError(f"{paths[own[0]].parent}: one image cannot be trained and tested on; add some or remove it")
        order = random.permutation(len(own))  # NumPy's frozen legacy generator: the same choice in all versions
        kept |= {own[i] for i in order[: max(1, round(HELD_OUT * len(own)))]}
    return kept


def _share(paths: list[Path], labels: list[int], split: str) -> tuple[list[Path], list[int]]:
    """What of all images belongs to a split."""
    held_out = _held_out(paths, labels)
    chosen = [position for position in range(len(paths)) if (position in held_out) != (split == "train")]
    return [paths[i] for i in chosen], [labels[i] for i in chosen]


class FolderImages(Dataset[tuple[Tensor, int]]):
    """Images of one split folder, read and decoded one by one; works with a DataLoader and its workers.

    Args:
        folder: holds ``train`` and ``val`` or ``test``, each with one folder for every class; or only a folder for
            every class: then a fifth of each class, chosen once and for all, is the validation split.
        split: which of them.
        decode: how to turn files into tensors; give a size where images differ.
        transform: applied to each decoded image (uint8, (C, H, W)).

    Attributes:
        labels: int64, (N,).
        classes: names of the class folders below ``train`` (where there is one), sorted.
        block_lengths: one image a block; for `BlockShuffleSampler`.

    Raises:
        DataError: the split or its images are missing, a class has no image, or ``train`` lacks a class.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split = "train",
        decode: Decode | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.decode = Decode() if decode is None else decode
        self.transform = transform
        splits = _split_folders(Path(folder))
        unsplit = is_unsplit(Path(folder))
        if unsplit:
            splits = {"train": Path(folder), "validation": Path(folder)}
        (chosen,) = choose_split({name: [path] for name, path in splits.items()}, split, Path(folder))
        self.classes = tuple(path.name for path in _class_folders(splits.get("train", chosen)))
        self._folder = chosen
        self.paths, labels = _list_images(chosen, self.classes)
        if unsplit:
            self.paths, labels = _share(self.paths, labels, split)
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.block_lengths = (1,) * len(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.decode(self.paths[index], str(self.paths[index]))
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])

    @property
    def names(self) -> list[str]:
        """Of the image files, below the split's folder."""
        return [path.relative_to(self._folder).as_posix() for path in self.paths]

    def sources(self) -> Iterator[tuple[bytes | Path, str]]:
        """All image files, each with its name."""
        return ((path, str(path)) for path in self.paths)


def _list_images(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    paths: list[Path] = []
    labels: list[int] = []
    for class_folder in _class_folders(folder):
        if class_folder.name not in classes:
            raise DataError(f"{class_folder}: there is no such class in the training split")
        images = sorted(path for path in class_folder.rglob("*") if _is_image(path))
        if not images:
            raise DataError(f"{class_folder}: no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in this class folder")
        paths += images
        labels += [classes.index(class_folder.name)] * len(images)
    if not paths:
        raise DataError(f"{folder}: one folder for every class expected, found none")
    return paths, labels


def describe_split(folder: Path) -> str | None:
    """What is done to a folder without splits, for people; None if it has splits."""
    if not is_unsplit(folder):
        return None
    train, held_out = (FolderImages(folder, split) for split in ("train", "validation"))
    count, classes = len(train) + len(held_out), f"{len(train.classes)} classes ({_few(train.classes)})"
    return (
        f"{folder} has no train and val folders: {len(held_out)} of its {count} images are held out to test on, "
        f"{HELD_OUT:.0%} of each of its {classes}, always the same ones (seed {SPLIT_SEED}). To choose them yourself, "
        "make train/CLASS and val/CLASS."
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def read_folder(folder: str | Path, split: Split = "train", decode: Decode | None = None) -> ImageArrays:
    """Read all images of a split into memory."""
    images = FolderImages(folder, split, decode)
    pixels = decode_all(images.sources(), len(images), images.decode)
    return ImageArrays(pixels, images.labels, images.classes, tuple(images.names))
