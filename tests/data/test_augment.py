"""Augmentation on batches: against slow oracles, and from its generator only."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data import Augment, Normalize, RandomCrop, RandomFlip, RandomResizedCrop
from apical.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (64, 3, 10, 12), dtype=torch.uint8)


def test_random_crop_cuts_each_image_somewhere(images: Tensor) -> None:
    cropped = RandomCrop(2)(images, generator())
    padded = F.pad(images, (2, 2, 2, 2))
    seen = set()
    for image, source in zip(cropped, padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, source[:, y : y + 10, x : x + 12])]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15
    assert torch.equal(RandomCrop(0)(images, generator()), images)


def test_random_flip_mirrors_about_half(images: Tensor) -> None:
    flipped = RandomFlip()(images, generator())
    mirrored = [torch.equal(image, source.flip(-1)) for image, source in zip(flipped, images, strict=True)]
    kept = [torch.equal(image, source) for image, source in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 20 < sum(mirrored) < 44
    assert torch.equal(RandomFlip(1.0)(images, generator()), images.flip(-1))


def test_resized_crop_of_the_whole_image_is_the_image() -> None:
    images = torch.randint(256, (4, 3, 12, 12), dtype=torch.uint8)
    crop = RandomResizedCrop(12, scale=(1, 1), ratio=(1, 1))
    assert torch.equal(crop(images, generator()), images)
    assert torch.equal(crop(images[0], generator()), images[0])


def test_resized_crop_equals_cut_and_interpolate() -> None:
    """On a linear ramp, bilinear sampling is exact, so the box can be read off the result."""
    ramp = (torch.arange(64).expand(64, 64) * 4 - 2).clamp(min=0).to(torch.uint8)
    images = torch.stack([ramp, ramp.T]).expand(200, 2, 64, 64)
    out = RandomResizedCrop(32, scale=(0.25, 1.0))(images, generator()).float()
    widths = (out[:, 0, 16, 30] - out[:, 0, 16, 2]) / 28 * 32 / 4  # pixels of the source
    heights = (out[:, 1, 30, 16] - out[:, 1, 2, 16]) / 28 * 32 / 4
    shares = widths * heights / 64**2
    assert 0.22 < shares.min() < 0.35
    assert 0.85 < shares.max() < 1.03
    ratios = widths / heights
    assert 0.7 < ratios.min() < 0.82
    assert 1.22 < ratios.max() < 1.4


def test_resized_crop_where_no_box_fits(images: Tensor) -> None:
    wide = torch.randint(256, (3, 1, 4, 40), dtype=torch.uint8)
    out = RandomResizedCrop(4, scale=(1, 1), ratio=(1, 1))(wide, generator())
    assert torch.equal(out, wide[..., 18:22])


@pytest.mark.parametrize("change", [RandomCrop(3), RandomFlip(), RandomResizedCrop(8)])
def test_deterministic_and_global_generator_untouched(images: Tensor, change: Augment) -> None:
    before = torch.get_rng_state()
    first, second = change(images, generator(1)), change(images, generator(1))
    assert torch.equal(first, second)
    assert not torch.equal(first, change(images, generator(2)))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.dtype == torch.uint8


def test_normalize(images: Tensor) -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    expected = (images / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(Normalize(mean, std)(images), expected)
    assert Normalize(mean, std, torch.bfloat16)(images).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "build",
    [
        lambda: RandomCrop(-1),
        lambda: RandomFlip(1.5),
        lambda: RandomResizedCrop(0),
        lambda: RandomResizedCrop(8, scale=(0.5, 0.1)),
        lambda: RandomResizedCrop(8, ratio=(0.0, 1.0)),
        lambda: Normalize((0.5,), (0.5, 0.5)),
        lambda: Normalize((0.5,), (0.0,)),
    ],
)
def test_bad_options(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        build()


@pytest.mark.gpu
def test_same_on_the_gpu(images: Tensor) -> None:
    for change in (RandomCrop(3), RandomFlip()):
        assert torch.equal(change(images.cuda(), generator()).cpu(), change(images, generator()))
    crop = RandomResizedCrop(8)
    difference = crop(images.cuda(), generator()).cpu().int() - crop(images, generator()).int()
    assert difference.abs().max() <= 1  # rounding
