"""Tiny data sets in every layout, written from the same images."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NAMES = ("ant", "bee", "cat")


def random_images(count: int, size: tuple[int, int] = (32, 32), channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8, (count, H, W, channels)."""
    return np.random.RandomState(seed).randint(0, 256, (count, *size, channels)).astype(np.uint8)


def encode(pixels: np.ndarray, file_format: str = "PNG") -> bytes:
    image_module = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    image_module.fromarray(pixels.squeeze()).save(buffer, format=file_format)
    return buffer.getvalue()


def write_cifar10(folder: Path, per_batch: int = 4) -> np.ndarray:
    """Returns the pixels in order: five training batches, then test."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = random_images(6 * per_batch)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        part = pixels[number * per_batch : (number + 1) * per_batch]
        data = part.transpose(0, 3, 1, 2).reshape(per_batch, 3072)
        batch = {
            b"data": data,
            b"labels": [i % 3 for i in range(per_batch)],
            b"batch_label": b"x",
            b"filenames": [b"f"],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": [name.encode() for name in NAMES]}, protocol=2))
    return pixels


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[Any],
    *,
    image_column: str = "image",
    label_column: str = "label",
    names: Sequence[str] | None = NAMES,
    row_group_size: int = 2,
) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [None if content is None else {"bytes": content, "path": None} for content in images]
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    table = arrow.table({image_column: arrow.array(rows, kind), label_column: arrow.array(labels)})
    if names is not None:
        features = {image_column: {"_type": "Image"}, label_column: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=row_group_size)


def write_parquet_splits(folder: Path, count: int = 7) -> np.ndarray:
    """Two training files and one for validation; returns the training pixels."""
    pixels = random_images(count)
    content = [encode(image) for image in pixels]
    labels = [i % 3 for i in range(count)]
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", content[:5], labels[:5])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", content[5:], labels[5:])
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", content[:2], labels[:2])
    return pixels


def write_image_folder(folder: Path, splits: Sequence[str] = ("train", "val"), per_class: int = 2) -> np.ndarray:
    """Returns the pixels of each split (the same), class by class."""
    pixels = random_images(len(NAMES) * per_class)
    for split in splits:
        for position, image in enumerate(pixels):
            path = folder / split / NAMES[position // per_class] / f"{position}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image))
    return pixels


def idx_bytes(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


def write_idx(folder: Path, packed: bool = True, count: int = 6) -> np.ndarray:
    """Returns the training pixels (N, 28, 28)."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = random_images(count, (28, 28), 1).squeeze(-1)
    labels = (np.arange(count) % 3).astype(np.uint8)
    for prefix, part in (("train", slice(None)), ("t10k", slice(0, 2))):
        for name, values in (("images-idx3", pixels[part]), ("labels-idx1", labels[part])):
            content = idx_bytes(values)
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return pixels
