"""Batches from memory: coverage, order, resuming anywhere, shares of several processes; arrays and splits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
import torch
from torch import Tensor

from apical.data import (
    ImageArrays,
    ImageLoader,
    Normalize,
    RandomCrop,
    RandomFlip,
    channel_statistics,
    synthetic_images,
    train_validation_split,
)
from apical.errors import ConfigError, DataError

CLASSES = tuple(map(str, range(20)))


def numbered(count: int) -> ImageArrays:
    """Image i is filled with i and has label i."""
    labels = torch.arange(count)
    return ImageArrays(labels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2), labels, CLASSES)


def labels_of(loader: ImageLoader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


def flat(batches_of_labels: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches_of_labels))


def test_in_order() -> None:
    loader = ImageLoader(numbered(7), 3, shuffle=False)
    assert labels_of(loader) == [[0, 1, 2], [3, 4, 5], [6]] == labels_of(loader)
    assert len(loader) == 3


def test_shuffled_epochs_differ_and_cover_everything() -> None:
    loader = ImageLoader(numbered(20), 6, seed=1)
    first, second = labels_of(loader), labels_of(loader)
    assert first != second
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(20))
    again = ImageLoader(numbered(20), 6, seed=1)
    assert [labels_of(again), labels_of(again)] == [first, second]
    assert labels_of(ImageLoader(numbered(20), 6, seed=2)) != first


def test_drop_last() -> None:
    loader = ImageLoader(numbered(20), 6, drop_last=True)
    assert [len(batch) for batch in labels_of(loader)] == [6, 6, 6]
    assert len(loader) == 3
    assert len(ImageLoader(numbered(18), 6)) == 3


def test_images_belong_to_their_labels_and_are_normalised() -> None:
    loader = ImageLoader(numbered(20), 6, normalize=Normalize((0.0,), (1 / 255,)))
    for images, labels in loader:
        assert images.dtype == torch.float32
        torch.testing.assert_close(images[:, 0, 0, 0], labels.float())


def test_global_generator_untouched() -> None:
    before = torch.get_rng_state()
    list(ImageLoader(synthetic_images(), 32, augment=[RandomCrop(2), RandomFlip()]))
    assert torch.equal(torch.get_rng_state(), before)


def make_augmented() -> ImageLoader:
    return ImageLoader(synthetic_images(num_images=50), 8, augment=[RandomCrop(2), RandomFlip()], seed=3)


def batches(loader: ImageLoader, num_epochs: int) -> list[Tensor]:
    return [images for _ in range(num_epochs) for images, _ in loader]


@pytest.mark.parametrize("stop", [0, 1, 6, 7, 8, 13])
def test_resume_anywhere(stop: int) -> None:
    expected = batches(make_augmented(), 3)  # 7 batches an epoch
    loader, states, seen = make_augmented(), [], 0
    states.append(loader.state_dict())
    for _ in range(3):
        for _ in loader:
            seen += 1
            states.append(loader.state_dict())
    resumed = make_augmented()
    resumed.load_state_dict(states[stop])
    rest = batches(resumed, 3)[: len(expected) - stop]
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[stop:], strict=True))


def test_resume_between_epochs() -> None:
    expected = batches(make_augmented(), 3)
    loader = make_augmented()
    batches(loader, 1)
    resumed = make_augmented()
    resumed.load_state_dict(loader.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(batches(resumed, 2), expected[7:], strict=True))


def test_broken_off_epoch_starts_anew() -> None:
    loader = ImageLoader(numbered(20), 6)
    next(iter(loader))
    assert sorted(flat(labels_of(loader))) == list(range(20))


def test_state_that_does_not_fit() -> None:
    loader = ImageLoader(numbered(20), 6)
    with pytest.raises(ConfigError, match="this loader's state has"):
        loader.load_state_dict({})
    with pytest.raises(ConfigError, match="stands at batch 9"):
        loader.load_state_dict(loader.state_dict() | {"position": 9})


def test_processes_share_every_global_batch() -> None:
    whole = labels_of(ImageLoader(numbered(20), 6, drop_last=True, seed=4))
    shares = [
        labels_of(ImageLoader(numbered(20), 3, drop_last=True, seed=4, rank=rank, world_size=2)) for rank in (0, 1)
    ]
    for step, batch in enumerate(whole):
        assert sorted(shares[0][step] + shares[1][step]) == sorted(batch)


@pytest.mark.parametrize("count", range(1, 14))
def test_processes_cover_the_evaluation_set(count: int) -> None:
    loaders = [ImageLoader(numbered(count), 2, shuffle=False, rank=rank, world_size=3) for rank in range(3)]
    seen = [labels_of(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == [len(part) for part in seen]
    assert all(batch for part in seen for batch in part)
    assert sorted(label for part in seen for batch in part for label in batch) == list(range(count))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ImageLoader(numbered(4), 0), "batch_size"),
        (lambda: ImageLoader(numbered(4), 5, drop_last=True), "4 images do not fill"),
        (lambda: ImageLoader(numbered(0), 5), "0 images do not fill"),
        (lambda: ImageLoader(numbered(4), 2, rank=2, world_size=2), "rank"),
        (lambda: ImageLoader(numbered(4), 2, world_size=2), "drop_last=True"),
        (lambda: train_validation_split(numbered(4), 0.0), "between 0 and 1"),
        (lambda: train_validation_split(numbered(1), 0.5), "at least 2"),
    ],
)
def test_bad_options(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_split_is_disjoint_complete_and_fixed() -> None:
    train, validation = train_validation_split(numbered(20), 0.25, seed=7)
    assert len(train) == 15
    assert len(validation) == 5
    assert sorted(train.labels.tolist() + validation.labels.tolist()) == list(range(20))
    assert validation.labels.tolist() == train_validation_split(numbered(20), 0.25, seed=7)[1].labels.tolist()
    assert validation.labels.tolist() != train_validation_split(numbered(20), 0.25, seed=8)[1].labels.tolist()


def test_channel_statistics() -> None:
    images = torch.randint(256, (3000, 2, 3, 3), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    scaled = images.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), scaled.mean((0, 2, 3)), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(std).double(), scaled.std((0, 2, 3), correction=0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), r"\(2, 2, 2\)"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"int64 \(2,\)"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2), "float32"),
        (torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 20]), r"0\.\.19 \(20 classes\), got 0\.\.20"),
    ],
)
def test_arrays_are_checked(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageArrays(images, labels, CLASSES)
