"""Image folders: ``train/cat/001.jpg``, ``val/dog/002.png`` (the layout of torchvision's ``ImageFolder``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from apical.data._splits import ALIASES, Split, choose_split
from apical.data.arrays import ImageArrays
from apical.data.decoding import Decode, decode_all
from apical.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})


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
    """Whether the folder has split folders with class folders with images."""
    return any(
        _is_image(path)
        for split in _split_folders(folder).values()
        for class_folder in _class_folders(split)
        for path in class_folder.iterdir()
    )


class FolderImages(Dataset[tuple[Tensor, int]]):
    """Images of one split folder, read and decoded one by one; works with a DataLoader and its workers.

    Args:
        folder: holds ``train`` and ``val`` or ``test``, each with one folder for every class.
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
        (chosen,) = choose_split({name: [path] for name, path in splits.items()}, split, Path(folder))
        self.classes = tuple(path.name for path in _class_folders(splits.get("train", chosen)))
        self._folder = chosen
        self.paths, labels = _list_images(chosen, self.classes)
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


def read_folder(folder: str | Path, split: Split = "train", decode: Decode | None = None) -> ImageArrays:
    """Read all images of a split into memory.

    Raises:
        DataError: as `FolderImages`; an image cannot be read; sizes differ and ``decode`` has none.
    """
    images = FolderImages(folder, split, decode)
    pixels = decode_all(images.sources(), len(images), images.decode)
    return ImageArrays(pixels, images.labels, images.classes, tuple(images.names))
