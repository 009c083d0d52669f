"""The layout of PASCAL VOC: lists, masks, classes, and what is said about folders that are not right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apical.data import open_voc
from apical.data._voc import PASCAL_CLASSES, check_mask, find_voc, has_masks, pascal_palette, voc_classes
from apical.errors import DataError
from voc_folder import COLOURS, write_voc


def rewrite_mask(path: Path, values: np.ndarray, mode: str = "L") -> None:
    pillow: Any = pytest.importorskip("PIL.Image")
    pillow.fromarray(values).convert(mode).save(path)


def test_images_and_masks_are_read_in_the_lists_order(tmp_path: Path) -> None:
    split = open_voc(write_voc(tmp_path))
    assert (len(split), split.names[:2]) == (12, ("train_0", "train_1"))
    image, mask = split[1]
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.uint8)
    assert (tuple(image.shape), tuple(mask.shape)) == ((3, 20, 28), (20, 28))
    assert set(mask.unique().tolist()) <= {0, 1, 2, 3, 255}
    assert (mask[0] == 255).all()
    red = image.permute(1, 2, 0)[mask == 1].float().mean(0)
    assert red[0] > 150 > red[1]  # the pixels under the mask are those of the thing


def test_scaling_keeps_image_and_mask_in_step(tmp_path: Path) -> None:
    image, mask = open_voc(write_voc(tmp_path), "val", shorter_side=48)[0]
    assert tuple(image.shape[1:]) == tuple(mask.shape) == (48, 64)
    assert set(mask.unique().tolist()) <= {0, 1, 2, 3, 255}


def test_folders_of_downloaders_are_found(tmp_path: Path) -> None:
    inner = write_voc(tmp_path / "VOCdevkit" / "VOC2012", names=None)
    assert find_voc(tmp_path) == inner
    assert voc_classes(open_voc(tmp_path), 255, 21) == PASCAL_CLASSES
    assert len(voc_classes(open_voc(tmp_path), 255, 4)) == 4


def test_classes_come_from_the_file_or_from_the_masks_or_from_the_option(tmp_path: Path) -> None:
    split = open_voc(write_voc(tmp_path))
    assert voc_classes(split, 255) == ("ground", "red thing", "green thing", "blue thing")
    with pytest.raises(DataError, match="names 4 classes, num_classes is 7"):
        voc_classes(split, 255, 7)
    (tmp_path / "classes.txt").write_text("ground\nred thing\n")
    assert voc_classes(split, 255) == ("ground", "red thing")
    (tmp_path / "classes.txt").write_text("0 ground\n2 thing\n")
    with pytest.raises(DataError, match=r"expected the numbers 0, 1, 2, … once each, .* got \[0, 2\]"):
        voc_classes(split, 255)
    (tmp_path / "classes.txt").unlink()
    assert voc_classes(split, 255) == ("class 0", "class 1", "class 2", "class 3")
    assert len(voc_classes(split, 255, 9)) == 9


def test_the_palette_gives_the_colours(tmp_path: Path) -> None:
    split = open_voc(write_voc(tmp_path))
    assert split.palette()[1] == "#{:02x}{:02x}{:02x}".format(*COLOURS[1])
    rewrite_mask(tmp_path / "SegmentationClass" / "train_0.png", np.zeros((24, 32), np.uint8))
    assert split.palette() == pascal_palette()
    assert pascal_palette(16)[15] == "#c08080"  # the person of PASCAL VOC


def test_a_test_list_without_masks_is_told_apart(tmp_path: Path) -> None:
    write_voc(tmp_path)
    assert has_masks(tmp_path, "test")
    assert not has_masks(tmp_path, "trainval")
    for path in (tmp_path / "SegmentationClass").glob("test_*.png"):
        path.unlink()
    assert not has_masks(tmp_path, "test")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothere is not a folder.*PASCAL VOC"):
        open_voc(tmp_path / "nothere")
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(DataError, match="has no SegmentationClass, no ImageSets/Segmentation"):
        open_voc(tmp_path)
    write_voc(tmp_path)
    with pytest.raises(DataError, match=r"trainval.txt does not exist; the lists are test, train, val"):
        open_voc(tmp_path, "trainval")
    (tmp_path / "JPEGImages" / "train_3.jpg").unlink()
    (tmp_path / "SegmentationClass" / "train_2.png").unlink()
    with pytest.raises(DataError, match=r"do not exist: JPEGImages/train_3, SegmentationClass/train_2.png"):
        open_voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_text("\n\n")
    with pytest.raises(DataError, match="is empty; expected the name of an image a line"):
        open_voc(tmp_path)
    (tmp_path / "ImageSets/Segmentation/train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"train\.txt is not UTF-8"):
        open_voc(tmp_path)


def test_damaged_and_wrong_masks_are_named(tmp_path: Path) -> None:
    split = open_voc(write_voc(tmp_path))
    path = tmp_path / "SegmentationClass" / "train_0.png"
    rewrite_mask(path, np.zeros((8, 9), np.uint8))
    with pytest.raises(DataError, match=r"train_0.png is 9x8 pixels, its image train_0.jpg 32x24"):
        split[0]
    rewrite_mask(path, np.zeros((24, 32, 3), np.uint8), "RGB")
    with pytest.raises(DataError, match=r"mode 'RGB', expected an 8-bit palette or grey PNG"):
        split[0]
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"train_0.png: cannot read the mask"):
        split.mask(0)
    with pytest.raises(DataError, match=r"x.png has the value 9; expected classes 0 to 3, or 255"):
        check_mask(torch.tensor([[0, 9]]), 4, 255, "x.png")
    check_mask(torch.tensor([[0, 3, 255]]), 4, 255, "x.png")
