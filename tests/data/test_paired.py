"""Views of images and masks: they stay in step, follow their numbers, and go on where they stopped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apical.data import PairLoader, RandomView
from apical.errors import ConfigError


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A mask of vertical and horizontal halves, and an image that shows the class as a grey value."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[:, width // 2 :] += 1
    mask[height // 2 :] += 2
    return (60 * mask).repeat(3, 1, 1), mask


def test_full_scale_is_the_image_itself() -> None:
    image, mask = pair(8, 8)
    cut, labels = RandomView(8, (1.0, 1.0))(image, mask, torch.tensor([0.3, 0.5, 0.5, 0.9]))
    assert torch.equal(cut, image)
    assert torch.equal(labels, mask)
    cut, labels = RandomView(8, (1.0, 1.0))(image, mask, torch.tensor([0.3, 0.5, 0.5, 0.1]))
    assert torch.equal(cut, image.flip(-1))
    assert torch.equal(labels, mask.flip(-1))
    unflipped = RandomView(8, (1.0, 1.0), flip=False)
    assert torch.equal(unflipped(image, mask, torch.tensor([0.3, 0.5, 0.5, 0.1]))[0], image)


def test_a_crop_is_a_window_and_what_lies_beyond_is_ignored() -> None:
    image, mask = pair(10, 10)
    view = RandomView(4, (1.0, 1.0), fill=(1, 2, 3))
    cut, labels = view(image, mask, torch.tensor([0.0, 0.0, 0.999, 0.9]))
    assert torch.equal(labels, mask[:4, 6:])
    assert torch.equal(cut, image[:, :4, 6:])
    small, ignored = view(*pair(2, 3), torch.tensor([0.0, 0.0, 0.0, 0.9]))
    assert (ignored != 255).sum() == 6
    assert small[:, ignored == 255].unique(dim=1).flatten().tolist() == [1, 2, 3]


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), crop=st.integers(1, 24),
    draws=st.lists(st.floats(0, 0.999), min_size=4, max_size=4), low=st.sampled_from([0.25, 0.5, 1.0]),
)  # fmt: skip
def test_any_view_keeps_classes_and_shapes(height: int, width: int, crop: int, draws: list[float], low: float) -> None:
    image, mask = pair(height, width)
    cut, labels = RandomView(crop, (low, 2.0))(image, mask, torch.tensor(draws))
    assert (tuple(cut.shape), tuple(labels.shape)) == ((3, crop, crop), (crop, crop))
    assert set(labels.unique().tolist()) <= {*mask.unique().tolist(), 255}
    assert (labels != 255).any()


def test_image_and_mask_are_scaled_alike() -> None:
    image, mask = pair(40, 40)
    for scale in (0.0, 0.4, 0.9):
        cut, labels = RandomView(32, (0.5, 2.0))(image, mask, torch.tensor([scale, 0.4, 0.6, 0.2]))
        inside = labels != 255
        difference = (cut[0].float() - 60 * labels.float()).abs()[inside]
        assert (difference < 5).float().mean() > 0.75  # all but the blurred edges


def batches(loader: PairLoader) -> list[tuple[Tensor, Tensor]]:
    return [(images.clone(), masks.clone()) for images, masks in loader]


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for pairs in zip(a, b, strict=True) for x, y in zip(*pairs, strict=True)
    )


PAIRS = [pair(12 + i % 3, 16) for i in range(11)]


@pytest.mark.parametrize("workers", [0, 3])
def test_epochs_differ_go_on_and_do_not_depend_on_threads(workers: int) -> None:
    def loader() -> PairLoader:
        return PairLoader(PAIRS, 4, view=RandomView(8), workers=workers, seed=5)

    whole = loader()
    first, second = batches(whole), batches(whole)
    assert len(first) == len(whole) == 2
    assert not same(first, second)
    stopped = loader()
    assert same(batches(stopped), first)
    going_on = loader()
    going_on.load_state_dict(stopped.state_dict())
    assert same(batches(going_on), second)
    assert same(batches(PairLoader(PAIRS, 4, view=RandomView(8), seed=5)), first)


def test_processes_share_out_every_batch() -> None:
    whole = batches(PairLoader(PAIRS, 4, view=RandomView(8), seed=5))
    shares = [batches(PairLoader(PAIRS, 2, view=RandomView(8), seed=5, rank=r, world_size=2)) for r in range(2)]
    assert len(whole) == len(shares[0]) == 2
    for number, (images, masks) in enumerate(whole):
        for rank in range(2):
            assert torch.equal(shares[rank][number][0], images[rank::2])
            assert torch.equal(shares[rank][number][1], masks[rank::2])


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    batches(PairLoader(PAIRS, 4, view=RandomView(8)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
def test_whole_images_are_batched_by_size_and_never_padded(workers: int) -> None:
    pairs = [pair(8, 8)] * 5 + [pair(8, 12)] * 2 + [pair(8, 8)]
    shapes = [tuple(masks.shape) for _, masks in PairLoader(pairs, 3, workers=workers)]
    assert shapes == [(3, 8, 8), (2, 8, 8), (2, 8, 12), (1, 8, 8)]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="11 images do not fill one batch of 12"):
        PairLoader(PAIRS, 12, view=RandomView(8))
    with pytest.raises(ConfigError, match="11 images do not fill one batch of 6 x 2"):
        PairLoader(PAIRS, 6, view=RandomView(8), world_size=2)
    with pytest.raises(ConfigError, match=r"rank must lie in 0\.\.1"):
        PairLoader(PAIRS, 2, rank=2, world_size=2)
    with pytest.raises(ConfigError, match="state has augment, order, position, got"):
        PairLoader(PAIRS, 4).load_state_dict({"position": 3})
    with pytest.raises(ConfigError, match="crop must be at least 1 pixel"):
        RandomView(8, (2.0, 1.0))

    def check(mask: Tensor, index: int) -> None:
        raise ValueError(f"mask {index}")

    with pytest.raises(ValueError, match="mask 0"):
        batches(PairLoader(PAIRS, 4, workers=2, check=check))
