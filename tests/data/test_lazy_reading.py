"""Data sets that decode one image at a time, and the sampler for them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from apical.data import Decode, ParquetImages, RandomResizedCrop, load_images, open_images
from apical.errors import ConfigError
from apical.recipes.tasks.classification._stream import BlockShuffleSampler
from data.layout_writers import encode, random_images, write_image_folder, write_parquet, write_parquet_splits


@pytest.mark.parametrize("write", [write_parquet_splits, write_image_folder])
def test_equals_reading_into_memory(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path)
    expected, lazy = load_images(tmp_path), open_images(tmp_path)
    assert len(lazy) == len(expected)
    assert lazy.classes == expected.classes
    assert sum(lazy.block_lengths) == len(lazy)
    for index in range(len(lazy)):
        image, label = lazy[index]
        assert torch.equal(image, expected.images[index])
        assert label == expected.labels[index]
    with pytest.raises(IndexError):
        lazy[len(lazy)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_data_loader(tmp_path: Path, num_workers: int) -> None:
    write_parquet_splits(tmp_path)
    lazy = open_images(tmp_path, decode=Decode(size=24, resize=28), transform=RandomResizedCrop(20))
    sampler = BlockShuffleSampler(lazy.block_lengths, window=4, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(lazy, batch_size=3, sampler=sampler, num_workers=num_workers)
    batches = list(loader)
    assert [tuple(images.shape) for images, _ in batches] == [(3, 3, 20, 20), (3, 3, 20, 20), (1, 3, 20, 20)]
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [3, 2, 2]


def test_row_groups_are_kept_up_to_the_limit(tmp_path: Path) -> None:
    write_parquet_splits(tmp_path)
    lazy = ParquetImages(tmp_path, cached_images=4)
    assert lazy.block_lengths == (2, 2, 1, 2)
    for index in range(len(lazy)):
        lazy[index]
    assert list(lazy._cache) == [2, 3]
    lazy[4]
    assert list(lazy._cache) == [3, 2]
    assert not pickle.loads(pickle.dumps(lazy))._cache


def test_parquet_without_metadata_takes_classes_from_all_splits(tmp_path: Path) -> None:
    image = encode(random_images(1)[0])
    write_parquet(tmp_path / "train.parquet", [image] * 2, [0, 4], names=None, image_column="img")
    write_parquet(tmp_path / "test.parquet", [image], [1], names=None, image_column="img")
    assert load_images(tmp_path, "test").classes == ("0", "1", "2", "3", "4")


def test_parquet_labels_may_be_words(tmp_path: Path) -> None:
    image = encode(random_images(1)[0])
    write_parquet(tmp_path / "train.parquet", [image] * 3, ["dog", "cat", "dog"], names=None)
    write_parquet(tmp_path / "test.parquet", [image], ["ant"], names=None)
    train = load_images(tmp_path)
    assert train.classes == ("ant", "cat", "dog")
    assert train.labels.tolist() == [2, 1, 2]


def test_decode_resizes_the_shorter_side_and_cuts_the_middle() -> None:
    pixels = random_images(1, (40, 60))[0]
    middle = Decode(size=20, resize=40)(encode(pixels), "here")
    assert torch.equal(middle, torch.from_numpy(pixels[10:30, 20:40]).permute(2, 0, 1))
    assert Decode(resize=20)(encode(pixels), "here").shape == (3, 20, 30)
    assert Decode(size=50)(encode(pixels), "here").shape == (3, 50, 50)


def test_decode_converts_between_grey_and_colour() -> None:
    grey = random_images(1, (8, 8), 1)[0]
    colour = Decode()(encode(grey), "here")
    assert torch.equal(colour, torch.from_numpy(grey).permute(2, 0, 1).expand(3, 8, 8))
    assert torch.equal(Decode(channels=1)(encode(grey), "here"), colour[:1])


@given(lengths=st.lists(st.integers(0, 9), max_size=12), window=st.integers(1, 30), seed=st.integers(0, 5))
def test_sampler_visits_everything_once(lengths: list[int], window: int, seed: int) -> None:
    sampler = BlockShuffleSampler(lengths, window, torch.Generator().manual_seed(seed))
    order = list(sampler)
    assert sorted(order) == list(range(sum(lengths))) == list(range(len(sampler)))


def test_sampler_stays_in_few_blocks_and_follows_its_generator() -> None:
    def draw() -> list[int]:
        return list(BlockShuffleSampler([10] * 20, 30, torch.Generator().manual_seed(3)))

    order = draw()
    assert order == draw()
    assert all(len({index // 10 for index in order[start : start + 30]}) == 3 for start in range(0, 180, 30))
    with pytest.raises(ConfigError):
        BlockShuffleSampler([1], window=0)
