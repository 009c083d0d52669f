"""What is in the files is not what it should be: a DataError that says what was got, never a raw exception."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apical.data import load_images, open_voc
from apical.data._place import contents
from apical.data._voc import has_masks, voc_classes
from apical.errors import DataError
from data.layout_writers import encode, random_images, write_cifar10, write_parquet
from voc_folder import write_voc

IMAGES = np.zeros((2, 3072), np.uint8)
GOOD = encode(random_images(1)[0])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "must be a list of whole numbers, got None"),
        ("ab", "must be a list of whole numbers, got 'ab'"),
        ({0: 1, 1: 2}, "must be a list of whole numbers"),
        ([0, None], "label 1 is None"),
        (["0", "1"], "label 0 is '0'"),
        ([0.7, 1.0], r"label 0 is 0\.7"),
        (np.array([0.0, 1.0]), "must be a list of whole numbers"),
        ([True, False], "label 0 is True"),
        ([0, -1], "label 1 is -1"),
        ([0, 10**30], "label 1 is 1000"),
        ([[0], [1]], r"label 0 is \[0\]"),
    ],
)
def test_cifar_labels(tmp_path: Path, labels: Any, message: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": IMAGES, b"labels": labels}))
    with pytest.raises(DataError, match=rf"test_batch.*{message}"):
        load_images(tmp_path, "test")


def test_cifar_labels_in_an_array_are_read(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": IMAGES, b"labels": np.array([2, 1], np.int32)}))
    assert load_images(tmp_path, "test").labels.tolist() == [2, 1]


@pytest.mark.parametrize("names", [None, 3, "abc", [1, 2], [b"\xe9"], [None]])
def test_cifar_names(tmp_path: Path, names: Any) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}))
    with pytest.raises(DataError, match=r"batches\.meta.*class name"):
        load_images(tmp_path, "test")


@pytest.mark.parametrize("names", ["abc", 3, {"a": 1}, [1, 2], ["a", None], ["a", "a"]])
def test_parquet_class_names(tmp_path: Path, names: Any) -> None:
    rewrite(tmp_path, json.dumps({"info": {"features": {"label": {"names": names}}}}))
    with pytest.raises(DataError, match="class names must be a list of different texts"):
        load_images(tmp_path)


@pytest.mark.parametrize("metadata", ["{", "[1]", '{"info": 3}', '{"info": {"features": {"label": null}}}', "\udcff",
                                      "[" * 100_000, '{"info": {"features": {"label": {"names": null}}}}'])  # fmt: skip
def test_parquet_metadata_without_class_names(tmp_path: Path, metadata: str) -> None:
    rewrite(tmp_path, metadata)
    assert load_images(tmp_path).classes == ("0", "1")


def test_a_class_whose_name_is_half_a_character(tmp_path: Path) -> None:
    features = {"label": {"names": ["\ud800", "b"], "_type": "ClassLabel"}}
    rewrite(tmp_path, json.dumps({"info": {"features": features}}))
    images = load_images(tmp_path)
    assert images.classes == ("\ud800", "b")
    assert contents(2, images.labels, images.classes)["samples"] == 2


def rewrite(folder: Path, metadata: str) -> None:
    import pyarrow.parquet as parquet

    path = folder / "train.parquet"
    write_parquet(path, [GOOD] * 2, [0, 1], names=None)
    table = parquet.read_table(path)
    table = table.replace_schema_metadata({b"huggingface": metadata.encode("utf-8", "surrogateescape")})
    parquet.write_table(table, path)


@pytest.mark.parametrize("name", ["train", "test"])
def test_voc_lists_in_another_encoding(tmp_path: Path, name: str) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation" / f"{name}.txt").write_bytes("Zoë\n".encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name}\.txt is not UTF-8: byte 2 is 0xeb.*iconv"):
        open_voc(tmp_path, "train") if name == "train" else has_masks(tmp_path, "test")


def test_voc_names_that_no_file_can_have(tmp_path: Path) -> None:
    write_voc(tmp_path)
    for name in ("x" * 5000, "a\0b"):
        (tmp_path / "ImageSets/Segmentation/train.txt").write_text(f"{name}\n")
        with pytest.raises(DataError, match="names files that do not exist"):
            open_voc(tmp_path, "train")


def test_voc_class_files(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "classes.txt").write_bytes("0 sol\n1 forêt\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"classes\.txt is not UTF-8.*iconv"):
        voc_classes(open_voc(tmp_path), 255)
    (tmp_path / "classes.txt").write_text("0 ground\n² grass\n1 tree\n3 sky\n", encoding="utf-8")
    assert voc_classes(open_voc(tmp_path), 255) == ("0 ground", "² grass", "1 tree", "3 sky")
