"""IDX files: MNIST, Fashion-MNIST and their kin, packed with gzip or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch

from apical._reading import regular
from apical.data._arrays import ImageArrays
from apical.data._splits import Split, choose_split
from apical.errors import DataError

_PREFIXES = {"train": "train", "test": "t10k"}
_UINT8 = 0x08
_SMALL = 64 * 2**20  # bytes that a packed file may unfold to, whatever its size
_MOST_PACKED = 100  # beyond that, times its size: MNIST is packed to a fifth, white paper to a hundredth


def _find(folder: Path, prefix: str, content: str) -> list[Path]:
    """Files such as ``train-images-idx3-ubyte.gz`` or ``train-images.idx3-ubyte``."""
    return sorted(path for path in folder.glob(f"*{prefix}-{content}*idx*") if path.is_file())


def is_idx_folder(folder: Path) -> bool:
    """Whether the folder has IDX images under MNIST's names."""
    return any(_find(folder, prefix, "images") for prefix in _PREFIXES.values())


def read_idx(folder: str | Path, split: Split = "train") -> ImageArrays:
    """Read grey images from ``train-images-idx3-ubyte`` and its three siblings, each with or without ``.gz``.

    Class names are not in the files: they are the digits "0", "1", ...
    """
    folder = Path(folder)
    found = {name: _find(folder, prefix, "images") for name, prefix in _PREFIXES.items()}
    choose_split(found, split, folder)
    images = _read_one(folder, _PREFIXES[split], "images", num_dimensions=3)
    labels = _read_one(folder, _PREFIXES[split], "labels", num_dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} {split} images but {len(labels)} labels")
    num_classes = 1 + max(
        int(_read_one(folder, prefix, "labels", num_dimensions=1).max(initial=0))
        for prefix in _PREFIXES.values()
        if _find(folder, prefix, "labels")
    )
    return ImageArrays(
        torch.from_numpy(images).unsqueeze(1),
        torch.from_numpy(labels.astype(np.int64)),
        tuple(str(number) for number in range(num_classes)),
    )


def _read_one(folder: Path, prefix: str, content: str, num_dimensions: int) -> npt.NDArray[np.uint8]:
    paths = _find(folder, prefix, content)
    stems = {path.name.removesuffix(".gz") for path in paths}
    if len(stems) != 1:
        found = ", ".join(sorted(stems)) or "none"
        raise DataError(
            f"{folder}: exactly one file {prefix}-{content}-idx{num_dimensions}-ubyte expected, got {found}"
        )
    return read_idx_file(paths[0], num_dimensions)


def read_idx_file(path: Path, num_dimensions: int) -> npt.NDArray[np.uint8]:
    """Read one IDX file of unsigned bytes, packed or not.

    The format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian 32-bit integer,
    then the values.
    """
    header = 4 + 4 * num_dimensions
    try:
        size = regular(path).stat().st_size
        with path.open("rb") as plain, _unpacked(plain) as content:
            shape = _shape(content.read(header), num_dimensions, path)
            promised = math.prod(shape)
            packed = isinstance(content, gzip.GzipFile)
            if promised > (max(_SMALL, _MOST_PACKED * size) if packed else size):
                raise DataError(f"{path}: the header promises {shape}, {promised:,} bytes, but the file has {size:,}")
            if packed and size > 2 * promised + 2**20:  # zeros behind the end would be read one by one
                raise DataError(f"{path}: the file has {size:,} bytes, but packs no more than {promised:,}")
            values = content.read(promised + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot read the file: {error}") from error
    if len(values) != promised:
        follow = "more" if len(values) > promised else len(values)
        raise DataError(f"{path}: the header promises {shape}, {promised} bytes; {follow} follow")
    found: npt.NDArray[np.uint8] = np.frombuffer(values, np.uint8).copy().reshape(shape)
    return found


def _unpacked(plain: BinaryIO) -> BinaryIO:
    packed = plain.read(2) == b"\x1f\x8b"
    plain.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if packed else plain


def _shape(head: bytes, num_dimensions: int, path: Path) -> tuple[int, ...]:
    if head[:4] != bytes((0, 0, _UINT8, num_dimensions)) or len(head) < 4 + 4 * num_dimensions:
        raise DataError(f"{path}: no IDX file of unsigned bytes with {num_dimensions} dimensions: {head[:4]!r}")
    return tuple(int(size) for size in np.frombuffer(head, ">u4", num_dimensions, offset=4))
