"""The real data sets, where APICAL_DATA says where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apical.data import channel_statistics, load_images, open_images, open_voc
from apical.data._voc import check_mask, voc_classes


def require(name: str) -> Path:
    root = os.environ.get("APICAL_DATA")
    if not root:
        pytest.skip("APICAL_DATA is not set: no real data on this machine")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"there is no {name} in APICAL_DATA")
    return folder


def test_fashion_mnist() -> None:
    folder = require("fashion-mnist")
    train, test = load_images(folder), load_images(folder, "test")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert train.labels.bincount().tolist() == [6000] * 10
    mean, std = channel_statistics(train.images)
    assert mean[0] == pytest.approx(0.2860, abs=1e-4)
    assert std[0] == pytest.approx(0.3530, abs=1e-4)


def test_cifar10_test_split() -> None:
    test = load_images(require("cifar10"), "test")
    assert test.images.shape == (10_000, 3, 32, 32)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.classes[:2] == ("airplane", "automobile")


def test_imagenette_is_read_lazily() -> None:
    images = open_images(require("imagenette128"), "validation")
    assert len(images) == 3925
    image, label = images[3000]
    assert image.shape[0] == 3
    assert 0 <= label < 10


def test_camvid() -> None:
    folder = require("camvid-voc")
    splits = {name: open_voc(folder, name) for name in ("train", "val", "test", "trainval")}
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 367,
        "val": 101,
        "test": 233,
        "trainval": 468,
    }
    classes = voc_classes(splits["train"], 255)
    assert (len(classes), classes[0], classes[-1]) == (11, "sky", "bicyclist")
    for index in range(0, 233, 29):
        image, mask = splits["test"][index]
        assert (tuple(image.shape), tuple(mask.shape)) == ((3, 180, 240), (180, 240))
        check_mask(mask, len(classes), 255, splits["test"].names[index])
