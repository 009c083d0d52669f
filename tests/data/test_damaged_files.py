"""Damaged or hostile input: a DataError that names the file, and the row where there are rows."""

from __future__ import annotations

import gzip
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apical.data import Decode, load_images, open_images
from apical.data._cifar import read_cifar
from apical.errors import ConfigError, DataError
from data.layout_writers import (
    encode,
    idx_bytes,
    random_images,
    write_cifar10,
    write_idx,
    write_image_folder,
    write_parquet,
)

GOOD = encode(random_images(1)[0])


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "test_batch: cannot read the pickle"),
        (b"", "test_batch: cannot read the pickle"),
        (pickle.dumps(Hostile()), "test_batch: .*wants to load posix.system"),
        (pickle.dumps([1, 2]), "a dictionary expected, got list"),
        (pickle.dumps({b"labels": []}), "no entry 'data'"),
        (pickle.dumps({b"data": [1], b"labels": [0]}), r"uint8 \(N, 3072\), got list"),
        (pickle.dumps({b"data": np.zeros((2, 8), np.uint8), b"labels": [0, 1]}), r"got uint8 \(2, 8\)"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}), "2 images but 1 labels"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [7]}), r"labels must lie in 0\.\.2"),
    ],
)
def test_cifar(tmp_path: Path, content: bytes, message: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_images(tmp_path, "test")


def test_cifar_missing_file(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="no CIFAR folder"):
        read_cifar(tmp_path / "nowhere")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cifar_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    write_cifar10(tmp_path)
    pixels = np.arange(3072, dtype=np.uint8).reshape(1, 3072)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": pixels, "labels": [1]}, protocol=protocol))
    assert load_images(tmp_path, "test").images.flatten().tolist() == pixels.flatten().tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no IDX file"),
        (b"\x00\x00\x0d\x03" + bytes(12), "no IDX file of unsigned bytes with 3 dimensions"),
        (idx_bytes(np.zeros((6, 28, 28), np.uint8))[:-1], "4703 follow"),
        (gzip.compress(idx_bytes(np.zeros((6, 28, 28), np.uint8)), mtime=0)[:-9], "cannot read the file"),
        (b"\x1f\x8b" + bytes(40), "cannot read the file"),
        # zeros behind the end, which are read one by one: as many as fit on a disk take hours
        (gzip.compress(idx_bytes(np.zeros((6, 28, 28), np.uint8)), mtime=0) + bytes(2**21), "packs no more than 4,704"),
        (idx_bytes(np.zeros((5, 28, 28), np.uint8)), "5 train images but 6 labels"),
    ],
)
def test_idx(tmp_path: Path, content: bytes, message: str) -> None:
    write_idx(tmp_path, packed=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_images(tmp_path)


def test_idx_missing_or_ambiguous_file(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").rename(tmp_path / "other-train-labels-idx1-ubyte")
    assert len(load_images(tmp_path)) == 6
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="exactly one file train-labels-idx1-ubyte expected"):
        load_images(tmp_path)


@pytest.mark.parametrize("content", [b"no image", b"", GOOD[: len(GOOD) // 2]])
def test_unreadable_image_in_parquet(tmp_path: Path, content: bytes) -> None:
    write_parquet(tmp_path / "train.parquet", [GOOD] * 3 + [content], [0, 1, 2, 0])
    with pytest.raises(DataError, match=r"train\.parquet row 3: cannot read the image"):
        load_images(tmp_path)
    images = open_images(tmp_path)
    images[2]
    with pytest.raises(DataError, match=r"train\.parquet row 3"):
        images[3]


def test_missing_image_in_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [GOOD, None], [0, 1])
    with pytest.raises(DataError, match=r"row 1: no image; bytes, or a struct"):
        load_images(tmp_path)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0, None], {}, "row 1: the label must be"),
        ([0, -1], {}, "1 of 2 labels are none of the 3 classes, the first is -1"),
        ([0, 3], {}, "the first is 3"),
        ([0, 1], {"label_column": "target"}, "no column named label or labels or fine_label; it has image, target"),
        ([0, 1], {"image_column": "photo"}, "no column named image or img; it has photo, label"),
    ],
)
def test_parquet_columns(tmp_path: Path, labels: list[Any], options: dict[str, Any], message: str) -> None:
    write_parquet(tmp_path / "train.parquet", [GOOD, GOOD], labels, **options)
    with pytest.raises(DataError, match=message):
        load_images(tmp_path)


def test_parquet_file_damaged_or_misnamed(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"train\.parquet: cannot read the Parquet file"):
        load_images(tmp_path)
    (tmp_path / "train.parquet").rename(tmp_path / "part-0.parquet")
    with pytest.raises(DataError, match=r"named after a split \(train, validation, test\), found part-0.parquet"):
        load_images(tmp_path)


def test_parquet_in_several_folders(tmp_path: Path) -> None:
    for name in ("plain", "augmented"):
        write_parquet(tmp_path / name / "train.parquet", [GOOD], [0])
    with pytest.raises(DataError, match="name one of them: augmented, plain"):
        load_images(tmp_path)


def test_unreadable_image_in_folder(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "train" / "bee" / "2.png").write_bytes(GOOD[:100])
    with pytest.raises(DataError, match=r"bee/2\.png: cannot read the image"):
        load_images(tmp_path)


def test_folder_classes(tmp_path: Path) -> None:
    write_image_folder(tmp_path)
    (tmp_path / "val" / "dog").mkdir()
    with pytest.raises(DataError, match="dog: there is no such class in the training split"):
        load_images(tmp_path, "validation")
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="train/dog: no images"):
        load_images(tmp_path)
    (tmp_path / "valid").mkdir()
    with pytest.raises(DataError, match=r"several folders .*'validation' split: valid, val"):
        load_images(tmp_path)


def test_images_of_differing_size(tmp_path: Path) -> None:
    contents = [encode(random_images(1, size)[0]) for size in ((20, 30), (40, 24))]
    write_parquet(tmp_path / "train.parquet", contents, [0, 1])
    with pytest.raises(DataError, match=r"row 1: the image is 24x40 pixels, the first one 30x20; pass size="):
        load_images(tmp_path)
    assert load_images(tmp_path, size=16, resize=18).images.shape == (2, 3, 16, 16)


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    content = encode(np.zeros((8, 8), np.uint16))
    write_parquet(tmp_path / "train.parquet", [content], [0])
    with pytest.raises(DataError, match="8-bit images expected"):
        load_images(tmp_path)


@pytest.mark.parametrize("options", [{"channels": 2}, {"size": 0}, {"size": 8, "resize": 4}])
def test_decode_options(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Decode(**options)


@pytest.mark.parametrize(("module", "extra"), [("PIL.Image", "data"), ("pyarrow.parquet", "data"), ("sklearn", "demo")])
def test_missing_packages_name_their_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    write_parquet(tmp_path / "train.parquet", [GOOD], [0])
    monkeypatch.setitem(sys.modules, module, None)
    if module == "sklearn":
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=rf"pip install 'apical\[{extra}\]'"):
        load_images("digits" if module == "sklearn" else tmp_path)
