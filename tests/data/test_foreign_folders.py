"""Folders of other people: no memory beyond the files' size, no pipes or devices, nothing outside the folder."""

from __future__ import annotations

import gzip
import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

import apical
from apical.data import ParquetImages, load_images, open_voc, read_bytes, read_corpus
from apical.errors import ApicalError, DataError
from apical.reporting import read_run
from apical.runs import read_config
from apical.training._checkpoint import load_checkpoint
from data.layout_writers import (
    encode,
    random_images,
    write_cifar10,
    write_idx,
    write_image_folder,
    write_parquet,
)
from export.save_cases import net
from voc_folder import write_voc

GOOD = encode(random_images(1)[0])


@pytest.mark.parametrize("last", [10**10, 2**62, 2**16])
def test_a_label_beyond_all_reason_makes_no_classes(tmp_path: Path, last: int) -> None:
    write_parquet(tmp_path / "train.parquet", [GOOD] * 3, [0, last, 3], names=None)
    with pytest.raises(DataError, match=r"a label is [\d,]+, which would make as many classes of 3 different labels"):
        ParquetImages(tmp_path)


def test_two_kinds_of_labels_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [GOOD], [0], names=None)
    write_parquet(tmp_path / "test.parquet", [GOOD], ["0"], names=None)
    with pytest.raises(DataError, match="some labels are whole numbers and some are texts"):
        ParquetImages(tmp_path)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "pipe", "missing.png", "a/../../secret.png"])
def test_parquet_rows_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(GOOD)
    (folder / "inside.png").write_bytes(GOOD)
    os.mkfifo(folder / "pipe")
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    rows = [{"bytes": None, "path": path} for path in ("inside.png", name)]
    table = arrow.table({"image": arrow.array(rows, kind), "label": arrow.array([0, 0])})
    parquet.write_table(table, folder / "train.parquet")
    images = ParquetImages(folder)
    assert images[0][0].shape == (3, 32, 32)
    with pytest.raises(DataError, match="expected a file below"):
        images[1]


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "a/../../../secret"])
def test_voc_lists_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    folder = write_voc(tmp_path / "voc")
    for suffix in (".jpg", ".png"):
        (tmp_path / f"secret{suffix}").write_bytes(GOOD)
    (folder / "ImageSets/Segmentation/train.txt").write_text(f"train_0\n{name}\n")
    with pytest.raises(DataError, match="which leads out of"):
        open_voc(folder)


def bomb(shape: tuple[int, ...], follow: int) -> bytes:
    head = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
    return gzip.compress(head + b"\0" * follow, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bomb((2**31, 2**10, 2**10), 10), "the header promises .* but the file has"),
        (bomb((2**20, 28, 28), 10), "the header promises .* but the file has"),
        (bomb((2, 28, 28), 200 * 2**20), "1568 bytes; more follow"),
        (bomb((2, 28, 28), 10), "1568 bytes; 10 follow"),
    ],
)
def test_gzip_bombs(tmp_path: Path, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=message):
        load_images(tmp_path, "test")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def run_folder(folder: Path) -> None:
    for name in ("summary.json", "history.jsonl"):
        (folder / name).write_text("{}\n")
    (folder / "config.json").write_text(json.dumps({"training": {}}))


# A folder of every kind, which of its files becomes something else, and who reads it.
FOLDERS: dict[str, tuple[Callable[[Path], object], str, Callable[[Path], object]]] = {
    "cifar": (write_cifar10, "test_batch", lambda f: load_images(f, "test")),
    "cifar names": (write_cifar10, "batches.meta", lambda f: load_images(f, "test")),
    "idx": (write_idx, "t10k-labels-idx1-ubyte.gz", lambda f: load_images(f, "test")),
    "parquet": (
        lambda f: write_parquet(f / "train.parquet", [GOOD], [0], names=None), "train.parquet", load_images,
    ),
    "image": (lambda f: write_image_folder(f, per_class=1), "train/ant/0.png", load_images),
    "voc list": (write_voc, "ImageSets/Segmentation/train.txt", open_voc),
    "voc mask": (write_voc, "SegmentationClass/train_0.png", open_voc),
    "voc image": (write_voc, "JPEGImages/train_0.jpg", open_voc),
    "text": (
        lambda f: [(f / f"{n}.txt").write_text("a b\n") for n in ("train", "valid", "test")], "train.txt", read_corpus,
    ),
    "config": (run_folder, "config.json", read_config),
    "report": (run_folder, "config.json", read_run),
    "summary": (run_folder, "summary.json", read_run),
    "history": (run_folder, "history.jsonl", read_run),
    "architecture": (lambda f: apical.save(net(1.0), f), "architecture.json", lambda f: apical.load(net(0.0), f)),
    "weights": (lambda f: apical.save(net(1.0), f), "model.safetensors", lambda f: apical.load(net(0.0), f)),
    "checkpoint": (lambda f: (f / "checkpoint.pt").write_text(""), "checkpoint.pt", load_checkpoint),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_no_ordinary_file_is_not_opened(tmp_path: Path, name: str, kind: str) -> None:
    """A pipe would be waited for, and /dev/zero read, for ever."""
    write, file, read = FOLDERS[name]
    write(tmp_path)
    path = tmp_path / file
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ApicalError):
        read(tmp_path)


def test_a_file_that_does_not_fit_into_the_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_path: Path) -> bytes:
        raise MemoryError

    (tmp_path / "text").write_text("a b")
    monkeypatch.setattr(Path, "read_bytes", lacking)
    with pytest.raises(DataError, match="it has 3 bytes, more than there is memory for"):
        read_bytes(tmp_path / "text")
