"""Every layout is recognised by itself and read exactly; what is not a layout is refused clearly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from apical.data import FolderImages, data_root, load_images, open_images
from apical.data._layouts import recognise_layout, split_remark
from apical.errors import DataError
from data.layout_writers import (
    NAMES,
    encode,
    random_images,
    write_cifar10,
    write_idx,
    write_image_folder,
    write_parquet,
    write_parquet_splits,
)


def nchw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_cifar(tmp_path: Path) -> None:
    pixels = write_cifar10(tmp_path)
    train, test = load_images(tmp_path), load_images(tmp_path, "test")
    assert torch.equal(torch.cat([train.images, test.images]), nchw(pixels))
    assert train.labels.tolist() == [0, 1, 2, 0] * 5
    assert train.classes == test.classes == NAMES


def test_cifar_inside_the_downloaded_folder(tmp_path: Path) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py")
    assert recognise_layout(tmp_path) == ("cifar", tmp_path / "cifar-10-batches-py")
    assert len(load_images(tmp_path)) == 20


def test_parquet(tmp_path: Path) -> None:
    pixels = write_parquet_splits(tmp_path)
    train = load_images(tmp_path)
    assert torch.equal(train.images, nchw(pixels))
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert train.classes == NAMES
    assert len(load_images(tmp_path, "validation")) == 2
    assert len(load_images(tmp_path, "test")) == 2  # no test split: validation stands in


def test_image_folder(tmp_path: Path) -> None:
    pixels = write_image_folder(tmp_path)
    train = load_images(tmp_path)
    assert torch.equal(train.images, nchw(pixels))
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.classes == load_images(tmp_path, "test").classes == NAMES


def write_classes(folder: Path, per_class: dict[str, int], suffix: str = ".png") -> None:
    """`CLASS/N.png`, without splits."""
    for name, count in per_class.items():
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(random_images(count)):
            (folder / name / f"{number}{suffix}").write_bytes(encode(image))


def test_a_folder_of_classes_is_split_the_same_way_each_time(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 10, "dog": 5, "emu": 2})
    (tmp_path / ".cache").mkdir()
    train, test = FolderImages(tmp_path), FolderImages(tmp_path, "test")
    assert train.classes == test.classes == ("cat", "dog", "emu")
    assert test.labels.bincount().tolist() == [2, 1, 1]
    assert train.labels.bincount().tolist() == [8, 4, 1]
    assert not set(train.paths) & set(test.paths)
    assert FolderImages(tmp_path).paths == train.paths
    assert [path.relative_to(tmp_path).as_posix() for path in test.paths] == [
        "cat/2.png",
        "cat/8.png",
        "dog/1.png",
        "emu/1.png",
    ]
    assert load_images(tmp_path).images.shape[0] == 13
    assert torch.equal(load_images(tmp_path, "validation").labels, test.labels)
    remark = split_remark(tmp_path)
    assert remark is not None
    assert "4 of its 17 images are held out" in remark
    assert "seed 0" in remark
    write_image_folder(tmp_path / "split")
    assert split_remark(tmp_path / "split") is None
    assert split_remark("digits") is None


def test_one_image_of_a_class_cannot_be_split(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cat": 3, "dog": 1})
    with pytest.raises(DataError, match="dog: one image cannot be trained and tested on"):
        load_images(tmp_path)


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".jfif", ".webp", ".tif", ".gif", ".bmp", ".ppm"])
def test_the_usual_endings_are_images(tmp_path: Path, suffix: str) -> None:
    write_classes(tmp_path, {"cat": 2, "dog": 2}, suffix)
    assert len(FolderImages(tmp_path)) == 2


def test_images_in_folders_below_the_class_are_found(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", {"cat/2019": 2, "dog/2020": 1})
    write_classes(tmp_path / "val", {"cat/2019": 1, "dog/2020": 1})
    assert load_images(tmp_path).labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("packed", [True, False])
def test_idx(tmp_path: Path, packed: bool) -> None:
    pixels = write_idx(tmp_path, packed)
    train, test = load_images(tmp_path), load_images(tmp_path, "test")
    assert torch.equal(train.images, torch.from_numpy(pixels).unsqueeze(1))
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.classes == test.classes == ("0", "1", "2")


def test_digits() -> None:
    pytest.importorskip("sklearn")
    train, test = load_images("digits"), load_images("digits", "test")
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert train.images.max() == 255
    assert test.labels.bincount(minlength=10).min() > 20


def test_synthetic_splits_share_patterns() -> None:
    train, test = load_images("synthetic"), load_images("synthetic", "test")
    assert not torch.equal(train.images, test.images)
    means = [
        torch.stack([a.images[a.labels == label].float().mean(0) for label in range(4)]).flatten(1)
        for a in (train, test)
    ]
    assert torch.cdist(*means).argmin(1).tolist() == [0, 1, 2, 3]
    assert torch.equal(load_images("synthetic").images, train.images)


@pytest.mark.parametrize("layout", ["cifar", "parquet", "image-folder", "idx", "digits", "synthetic"])
def test_size_and_channels_apply_to_every_layout(tmp_path: Path, layout: str) -> None:
    writers = {
        "cifar": write_cifar10,
        "parquet": write_parquet_splits,
        "image-folder": write_image_folder,
        "idx": write_idx,
    }
    if layout in writers:
        writers[layout](tmp_path)
    elif layout == "digits":
        pytest.importorskip("sklearn")
    where = tmp_path if layout in writers else layout
    for channels in (1, 3):
        assert load_images(where, size=12, channels=channels).images.shape[1:] == (channels, 12, 12)


def test_relative_names_are_looked_up_in_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("APICAL_DATA", raising=False)
    write_idx(tmp_path / "store" / "fashion")
    with pytest.raises(
        DataError, match=r"fashion is neither a folder here nor one of digits, synthetic.*APICAL_DATA.*downloads no"
    ):
        load_images("fashion")
    monkeypatch.setenv("APICAL_DATA", str(tmp_path / "store"))
    assert len(load_images("fashion")) == 6
    with pytest.raises(DataError, match=r"neither a folder here nor in .*, which has fashion/"):
        load_images("fashoin")


def test_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APICAL_DATA", raising=False)
    with pytest.raises(DataError, match="APICAL_DATA"):
        data_root()
    monkeypatch.setenv("APICAL_DATA", str(tmp_path / "missing"))
    with pytest.raises(DataError, match=r"APICAL_DATA names .*missing, which is not a folder"):
        data_root()
    monkeypatch.setenv("APICAL_DATA", str(tmp_path))
    assert data_root() == tmp_path


def test_unknown_layouts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing; expected one of") as refused:
        load_images(tmp_path)
    assert all(suffix in str(refused.value) for suffix in (".jpg", ".jpeg", ".png", ".webp", ".tiff", ".bmp", ".gif"))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.png").write_bytes(encode(random_images(1)[0]))
    with pytest.raises(DataError, match=r"found cats/, notes\.txt; expected one of(.|\n)*image-folder"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        load_images(tmp_path / "notes.txt")


def test_several_layouts_in_one_folder(tmp_path: Path) -> None:
    write_idx(tmp_path)
    write_image_folder(tmp_path)
    with pytest.raises(DataError, match="several layouts: image-folder, idx"):
        load_images(tmp_path)


def test_missing_splits(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    write_image_folder(tmp_path / "folder", splits=("train",))
    with pytest.raises(DataError, match=r"no 'validation' split; it has \['test', 'train'\]"):
        load_images(tmp_path / "idx", "validation")
    with pytest.raises(DataError, match=r"no 'test' split; it has \['train'\]"):
        load_images(tmp_path / "folder", "test")
    with pytest.raises(DataError, match="must be one of"):
        load_images(tmp_path / "idx", "dev")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="train_validation_split"):
        load_images("synthetic", "validation")


def test_only_large_layouts_are_read_lazily(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    write_parquet(tmp_path / "parquet" / "train.parquet", [encode(random_images(1)[0])], [0])
    assert len(open_images(tmp_path / "parquet")) == 1
    with pytest.raises(DataError, match="load_images"):
        open_images(tmp_path / "idx")
    with pytest.raises(DataError, match="load_images"):
        open_images("digits")
