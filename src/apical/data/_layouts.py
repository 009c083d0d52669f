"""One entry for all layouts: look at the folder, then read it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor

from apical.data._arrays import ImageArrays, conform
from apical.data._builtin import read_digits, synthetic_images
from apical.data._cifar import is_cifar_folder, read_cifar
from apical.data._decoding import Decode
from apical.data._folder import IMAGE_SUFFIXES, FolderImages, describe_split, is_image_folder, read_folder
from apical.data._idx import is_idx_folder, read_idx
from apical.data._parquet import ParquetImages, is_parquet_folder, read_parquet
from apical.data._splits import Split, listed, locate, named_path
from apical.errors import DataError

Layout = Literal["cifar", "parquet", "image-folder", "idx"]

_RECOGNISERS: dict[Layout, Callable[[Path], bool]] = {
    "cifar": is_cifar_folder,
    "parquet": is_parquet_folder,
    "image-folder": is_image_folder,
    "idx": is_idx_folder,
}

_EXPECTED = f"""expected one of
  cifar         batches.meta, data_batch_1 ... data_batch_5, test_batch (or meta, train, test)
  parquet       train-*.parquet, test-*.parquet or validation-*.parquet, with columns image (or img) and label
  image-folder  train/CLASS/IMAGE and val/CLASS/IMAGE or test/CLASS/IMAGE, or only CLASS/IMAGE for two classes or more
                (a fifth of each class is then held out); IMAGE ends in {", ".join(sorted(IMAGE_SUFFIXES))}
  idx           train-images-idx3-ubyte[.gz], train-labels-idx1-ubyte[.gz], t10k-..."""

# Folders that downloaders put around the files.
_INNER_FOLDERS = ("cifar-10-batches-py", "cifar-100-python", "raw")

_BUILTIN: dict[str, Callable[[Split], ImageArrays]] = {"digits": read_digits, "synthetic": synthetic_images}


def recognise_layout(folder: str | Path) -> tuple[Layout, Path]:
    """Say in which layout a folder's images are, and in which folder exactly."""
    folder = named_path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; {_EXPECTED}")
    for candidate in (folder, *(folder / name for name in _INNER_FOLDERS)):
        if not candidate.is_dir():
            continue
        found = [layout for layout, recognise in _RECOGNISERS.items() if recognise(candidate)]
        if len(found) > 1:
            raise DataError(f"{candidate} holds images in several layouts: {', '.join(found)}; name a folder of one")
        if found:
            return found[0], candidate
    raise DataError(f"{folder}: no known layout; found {listed(folder)}; {_EXPECTED}")


def split_remark(path_or_name: str | Path) -> str | None:
    """What people should know about how the images are split: that a part was held out by us; else None."""
    if str(path_or_name) in _BUILTIN:
        return None
    layout, folder = recognise_layout(locate(path_or_name, _BUILTIN))
    return describe_split(folder) if layout == "image-folder" else None


def load_images(
    path_or_name: str | Path,
    split: Split = "train",
    *,
    size: int | None = None,
    resize: int | None = None,
    channels: int | None = None,
) -> ImageArrays:
    """Read a split into memory, whatever its layout.

    Args:
        path_or_name: a folder, ``"digits"`` or ``"synthetic"``; a relative folder is looked up here, then in
            `data_root`.
        split: ``"train"``, ``"validation"`` or ``"test"``; where a data set publishes no test split, ``"test"`` is its
            validation split.
        size: bring all images to ``size`` x ``size`` pixels (photographs: shorter side scaled, middle cut out).
        resize: scale photographs' shorter side to this before the cut; only for Parquet and image folders.
        channels: 1 or 3; by default 3 for Parquet and image folders, else as stored.

    Raises:
        DataError: there is no such folder, layout, split; or an image cannot be read.

    Example:
        >>> load_images("synthetic", "test")
        ImageArrays(images=(256, 3, 16, 16), classes=4)
    """
    name = str(path_or_name)
    if name in _BUILTIN:
        return conform(_BUILTIN[name](split), size, channels)
    layout, folder = recognise_layout(locate(path_or_name, _BUILTIN))
    decode = Decode(size, resize, 3 if channels is None else channels)
    if layout == "parquet":
        return read_parquet(folder, split, decode)
    if layout == "image-folder":
        return read_folder(folder, split, decode)
    read = read_cifar if layout == "cifar" else read_idx
    return conform(read(folder, split), size, channels)


def open_images(
    path_or_name: str | Path,
    split: Split = "train",
    *,
    decode: Decode | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> ParquetImages | FolderImages:
    """Open a split of a Parquet or image folder for reading image by image, as a DataLoader does.

    Args:
        path_or_name: as for `load_images`.
        split: as for `load_images`.
        decode: size and channels; batches need images of one size.
        transform: applied to each decoded image (uint8, (C, H, W)).

    Raises:
        DataError: there is no such folder or split, or its layout is small enough to be read into memory.
    """
    if str(path_or_name) in _BUILTIN:
        raise DataError(f"{path_or_name!r} is a small data set: read it with load_images")
    layout, folder = recognise_layout(locate(path_or_name, _BUILTIN))
    if layout == "parquet":
        return ParquetImages(folder, split, decode, transform)
    if layout == "image-folder":
        return FolderImages(folder, split, decode, transform)
    raise DataError(f"{folder} is in layout {layout!r}, a small data set: read it with load_images")
