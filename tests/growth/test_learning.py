"""Growth learns: what the data need grows, what they do not need shrinks or leaves, whatever it started from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

import apical
from marks import slow

EPOCHS, STEPS, BATCH = 12, 16, 64
Batch = tuple[tuple[Tensor, ...], Tensor]


def teacher(seed: int) -> tuple[Tensor, Tensor]:
    """Vectors and labels that a small network with fixed weights gives them  # (N, 8), (N,)"""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1024, 8, generator=generator)
    first, second = torch.randn(8, 16, generator=generator), torch.randn(16, 4, generator=generator)
    return inputs, (torch.tanh(inputs @ first) @ second).argmax(1)


def grow(model: nn.Module, example: tuple[Tensor, ...], batches: list[Batch], seed: int = 0,
         budget: str = "50% macs", **options: Any) -> apical.Grower:  # fmt: skip
    """Train and grow through these batches, over and over."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    grower = apical.Grower(model, optimizer, example, budget, EPOCHS, seed=seed, growth_end=0.75,
                           steps_per_epoch=STEPS, interval=8, **options)  # fmt: skip
    source = itertools.cycle(batches)
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            inputs, labels = next(source)
            loss = cross_entropy(model(*inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            grower.end_step()
        grower.end_epoch()
    return grower


class Branches(nn.Module):
    """Branches of equal width, each with an input of its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(8, 48), nn.BatchNorm1d(48)) for _ in range(count))
        self.head = nn.Linear(48 * count, 4)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.head(torch.cat([relu(b(x)) for b, x in zip(self.branches, inputs, strict=True)], 1))


@cache
def branch_widths(noise: Sequence[float], seed: int = 0, shuffled: bool = False, **options: Any) -> list[int]:
    """Grow branches that see the informative input with so much noise added; the widths that they get."""
    inputs, labels = teacher(3)
    generator = torch.Generator().manual_seed(seed)
    labels = labels[torch.randperm(len(labels), generator=generator)] if shuffled else labels
    order = torch.randperm(len(labels), generator=generator)
    batches: list[Batch] = []
    for chosen in [*order.split(BATCH)] * 3:  # the noise is drawn anew, so that it cannot be learned by heart
        x = inputs[chosen]
        seen = tuple((x + s * torch.randn(x.shape, generator=generator)) / (1 + s**2) ** 0.5 for s in noise)
        batches.append((seen, labels[chosen]))
    torch.manual_seed(seed)
    grower = grow(Branches(len(noise)), (torch.zeros(2, 8),) * len(noise), batches, seed, **options)
    return [len(kept) for kept in grower.keep.values()]


@pytest.mark.parametrize(
    ("noise", "seed"), [((0.0, 30.0), 0), ((30.0, 0.0), 1), slow((0.0, 30.0), 1), slow((30.0, 0.0), 0)]
)
def test_of_two_branches_the_one_that_sees_the_input_gets_the_units(noise: tuple[float, float], seed: int) -> None:
    widths = branch_widths(noise, seed)
    assert widths[noise.index(0.0)] >= 0.8 * sum(widths), widths


GRADED = (1.0, 0.2, 30.0, 3.0, 0.5, 8.0)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    from scipy.stats import spearmanr  # here, so that collecting does not import it

    return float(spearmanr(a, b).statistic)


@pytest.mark.parametrize("options", [
    slow({"seed": 1}),
    slow({"seed_style": "small"}),
    slow({"seed_style": "small", "seed_fraction": 2.0}),
    {"seed_style": "small", "seed_fraction": 2.0, "seed": 1},
])  # fmt: skip
def test_the_data_decide_whatever_the_seed_and_the_start(options: dict[str, Any]) -> None:
    first, second = branch_widths(GRADED), branch_widths(GRADED, **options)
    assert rank_correlation(first, second) >= 0.7, (first, second)
    assert rank_correlation(second, [-n for n in GRADED]) >= 0.7, second


def test_other_labels_lead_to_another_network() -> None:
    right, shuffled = branch_widths(GRADED), branch_widths(GRADED, shuffled=True)
    assert max(abs(a - b) for a, b in zip(right, shuffled, strict=True)) >= 12, (right, shuffled)
    assert max(shuffled) - min(shuffled) <= 0.5 * (max(right) - min(right)), (right, shuffled)  # no branch says more


@pytest.mark.slow
def test_random_utilities_do_not_care_for_the_labels() -> None:
    assert branch_widths(GRADED, utility="random") == branch_widths(GRADED, shuffled=True, utility="random")


class Blind(nn.Module):
    """A residual network of which some blocks see a constant instead of their input."""

    def __init__(self, blind: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.Linear(8, 24)
        self.blocks = nn.ModuleList(Block(cut=i in blind) for i in range(4))
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Block(nn.Module):
    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut = cut
        self.norm = nn.BatchNorm1d(24)
        self.up, self.down = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.zeros_like(x) if self.cut else relu(self.norm(x))
        return x + self.down(relu(self.up(seen)))


@pytest.mark.filterwarnings("ignore:the example call does not read")
@pytest.mark.parametrize("blind", [slow((0, 1)), (1, 3), slow((2, 3))])
def test_blocks_that_cannot_help_are_the_ones_that_leave_wherever_they_are(blind: tuple[int, ...]) -> None:
    inputs, labels = teacher(0)
    batches = [((inputs[i : i + BATCH],), labels[i : i + BATCH]) for i in range(0, 1024, BATCH)]
    torch.manual_seed(0)
    grower = grow(Blind(blind), (torch.zeros(2, 8),), batches, budget="45% macs")
    skipped = set(grower.history[-1]["skipped"])
    assert {f"blocks.{i}" for i in blind} <= skipped, skipped


@pytest.mark.parametrize(("sizes", "odd"), [((24, 96, 24), 1), ((6, 48, 48), 0)])
def test_a_group_that_is_too_wide_shrinks_and_one_that_is_too_narrow_stays(sizes: Sequence[int], odd: int) -> None:
    inputs, labels = teacher(0)
    batches: list[Batch] = [((x,), y) for x, y in zip(inputs.split(BATCH), labels.split(BATCH), strict=True)]
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, size in itertools.pairwise((8, *sizes)):
        layers += [nn.Linear(before, size), nn.BatchNorm1d(size), nn.ReLU()]
    grower = grow(nn.Sequential(*layers, nn.Linear(sizes[-1], 4)), (torch.zeros(2, 8),), batches, budget="35% macs")
    shares = [len(kept) / size for kept, size in zip(grower.keep.values(), sizes, strict=True)]
    others = [share for i, share in enumerate(shares) if i != odd]
    if sizes[odd] == max(sizes):
        assert shares[odd] < min(others), shares
    else:
        assert shares[odd] == 1.0, shares
        assert min(others) < 1.0, shares
