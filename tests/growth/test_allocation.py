"""Where capacity goes: prices, rates, widths and blocks, as pure functions and as a fixed point."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import pytest
import torch
from torch import nn

import apical
from apical.budget import BoundBudget, Budget
from apical.growth._allocation import (
    block_prices,
    block_rates,
    choose_blocks,
    expected_values,
    moved,
    rates,
    shrunk,
    unit_prices,
)
from apical.growth._widths import Limits, fit
from apical.models import CifarResNet, vgg16
from growth.cases import CASES, structure_of
from marks import quick


def bound_of(structure: apical.Structure, budget: str = "50% macs") -> BoundBudget:
    return BoundBudget(Budget.of(budget), structure)


def named(structure: apical.Structure, counts: Sequence[int]) -> dict[str, int]:
    return {g.name: n for g, n in zip(structure.groups, counts, strict=True)}


@pytest.fixture(scope="module")
def chain() -> apical.Structure:
    sizes = (40, 60, 30)
    layers: list[nn.Module] = []
    for before, size in zip((8, *sizes), sizes, strict=False):
        layers += [nn.Linear(before, size), nn.ReLU()]
    return apical.trace(nn.Sequential(*layers, nn.Linear(30, 4)), (torch.zeros(1, 8),))


# ---- rounding and the common factor -------------------------------------------------------------------------------


@pytest.mark.parametrize("divisor", [1, 4])
@pytest.mark.parametrize("load", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("name", quick(CASES, ["residual", "lstm", "gpt"]))
def test_a_fitted_network_costs_what_is_scheduled_in_whole_steps(name: str, load: float, divisor: int) -> None:
    structure = structure_of(name)
    limits, bound = Limits.of(structure, divisor, 1), bound_of(structure, "60% macs")
    widths = [g.size * (0.3 + 0.1 * (i % 5)) for i, g in enumerate(structure.groups)]
    found = fit(bound, limits, widths, (), load, exact=True)
    assert found.load == bound.load(named(structure, found.counts))
    for n, least, most, step in zip(found.counts, limits.least, limits.most, limits.step, strict=True):
        assert least <= n <= most
        assert n == most or n % step == 0
    smallest = bound.load(named(structure, limits.least))
    assert found.load <= max(load * 1.002, smallest)
    if CASES[name].fine and smallest < load:
        assert found.load > load * (0.9 if divisor == 1 else 0.8)


def test_widths_keep_their_proportions(chain: apical.Structure) -> None:
    found = fit(bound_of(chain), Limits.of(chain, 1, 1), [20.0, 30.0, 15.0], (), 0.9)
    first, second, third = found.counts
    assert abs(second - 1.5 * first) <= 1.5
    assert abs(third - 0.75 * first) <= 1.5


def test_a_wider_budget_never_takes_units_away(chain: apical.Structure) -> None:
    limits, bound = Limits.of(chain, 1, 1), bound_of(chain, "90% macs")
    before = [0, 0, 0]
    for percent in range(10, 101, 10):
        counts = list(fit(bound, limits, [30.0, 20.0, 10.0], (), percent / 100).counts)
        assert sum(counts) >= sum(before)
        before = counts


def test_whole_groups_stay_whole(chain: apical.Structure) -> None:
    name = chain.groups[1].name
    limits = Limits.of(chain, 4, 1, {name: 60})
    assert fit(bound_of(chain), limits, [9.0, 9.0, 9.0], (), 0.9).counts[1] == 60


# ---- prices -----------------------------------------------------------------------------------------------------


def test_prices_are_derivatives_of_the_cost(chain: apical.Structure) -> None:
    bound = bound_of(chain, "50% macs, 50% params")
    macs, params = (reach.limit for reach in bound.reach)
    prices = unit_prices(bound, (10, 20, 30), (1, 1, 1), (), (0.25, 0.75))
    expected = [(8 + 20), (10 + 30), (20 + 4)]  # multiply-adds of one unit more; a parameter each, and a bias
    for price, weights in zip(prices, expected, strict=True):
        assert price == pytest.approx(0.25 * weights / macs + 0.75 * (weights + 1) / params, rel=1e-9)


def test_a_block_costs_what_the_network_saves_without_it_whether_it_is_there_or_not() -> None:
    structure = apical.trace(CifarResNet(depth=14, width=8), (torch.zeros(1, 3, 16, 16),))
    bound = bound_of(structure)
    counts = [g.size // 2 for g in structure.groups]
    widths = named(structure, counts)
    for skip in ((), (structure.blocks[0].name,)):
        price = block_prices(bound, counts, skip, (1.0,))[0]
        without = bound.load(widths, (structure.blocks[0].name,))
        assert price == pytest.approx(bound.load(widths) - without, rel=1e-12)


# ---- rates and moves --------------------------------------------------------------------------------------------


def test_groups_of_equal_worth_per_price_stay_as_they_are() -> None:
    assert rates([2.0, 4.0, 8.0], [1.0, 2.0, 4.0], [3, 5, 7]).relative == pytest.approx((0.0, 0.0, 0.0))


def test_what_is_not_known_follows_the_mean_and_what_is_worth_nothing_shrinks() -> None:
    found = rates([None, 1.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], [4, 4, 4, 4])
    assert found.relative[0] == found.relative[3] == 0.0
    assert found.relative[2] < -5 < 0 < found.relative[1]
    assert rates([0.0, 0.0], [1.0, 1.0], [4, 4]).relative == (0.0, 0.0)
    assert rates([None, None], [1.0, 1.0], [4, 4]).relative == (0.0, 0.0)


def test_no_width_moves_by_more_than_it_may() -> None:
    assert moved([10.0, 10.0, 10.0], [9.0, -9.0, 0.0], 0.5, 1.5) == pytest.approx([15.0, 10 / 1.5, 10.0])


def test_what_was_measured_is_drawn_towards_the_proportions_of_the_template() -> None:
    measured = rates([1.0, 1000.0], [1.0, 1.0], [10, 10])
    expected = rates(expected_values([40, 40], [10, 10]), [1.0, 1.0], [10, 10])
    assert expected.relative == pytest.approx((0.0, 0.0))
    for shrinkage in (0.0, 0.5, 1.0):
        first, second = shrunk(measured, expected, shrinkage).relative
        assert second - first == pytest.approx((1 - shrinkage) * log(1000))


def test_a_group_that_seems_to_be_worth_nothing_does_not_shrink_without_end(chain: apical.Structure) -> None:
    """Measured alone it would: its worth does not rise as it gets narrower, if what it feeds has not begun to learn."""
    bound, limits = bound_of(chain, "25% macs"), Limits.of(chain, 1, 1)
    sizes = [g.size for g in chain.groups]
    narrowest = []
    for shrinkage in (0.0, 0.5):
        widths, counts = [float(n) for n in sizes], tuple(sizes)
        for _ in range(60):
            prices = unit_prices(bound, counts, limits.step, (), (1.0,))
            measured = rates([0.1, 1.0, 1.0], prices, counts)
            expected = rates(expected_values(sizes, counts), prices, counts)
            widths = moved(widths, shrunk(measured, expected, shrinkage).relative, 0.35, 1.5)
            fitted = fit(bound, limits, widths, (), 1.0)
            counts = fitted.counts
            widths = [min(w * 2.718281828**fitted.shift, n) for w, n in zip(widths, sizes, strict=True)]
        narrowest.append(counts[0])
    assert narrowest[0] == 1 < narrowest[1] < sizes[0] / 2


IMPORTANCE = (1.0, 9.0, 0.5)


def loss_of(counts: Sequence[int]) -> float:
    """It falls like a / n."""
    return sum(a / n for a, n in zip(IMPORTANCE, counts, strict=True))


@pytest.fixture(scope="module")
def best(chain: apical.Structure) -> float:
    """The least loss within half of the MACs, found by trying all widths."""
    bound = bound_of(chain)
    return min(
        loss_of((i, j, k)) for i in range(1, 41) for j in range(1, 61) for k in range(1, 31)
        if bound.load(named(chain, (i, j, k))) <= 1.002
    )  # fmt: skip


@pytest.mark.parametrize("start", [(4.0, 4.0, 4.0), (40.0, 60.0, 30.0), (40.0, 2.0, 30.0)])
def test_it_converges_to_the_best_widths_of_a_loss_that_falls_like_a_over_n(
    chain: apical.Structure, best: float, start: tuple[float, ...]
) -> None:
    """The network that no exchange between groups improves, from wherever it starts."""
    bound, limits = bound_of(chain), Limits.of(chain, 1, 1)
    widths, counts = list(start), tuple(round(w) for w in start)
    for _ in range(60):
        prices = unit_prices(bound, counts, limits.step, (), (1.0,))
        found = rates([a / n**2 for a, n in zip(IMPORTANCE, counts, strict=True)], prices, counts)
        widths = moved(widths, found.relative, 0.35, 1.5)
        fitted = fit(bound, limits, widths, (), 1.0)
        counts = fitted.counts
        widths = [min(w * 2.718281828**fitted.shift, g.size) for w, g in zip(widths, chain.groups, strict=True)]
    assert loss_of(counts) <= 1.02 * best, (counts, loss_of(counts), best)


# ---- blocks -----------------------------------------------------------------------------------------------------


def test_the_block_that_is_worth_the_least_for_its_cost_leaves_first_and_not_all_at_once() -> None:
    ratios = block_rates([0.1, 0.2, 5.0, 0.3], [1.0, 1.0, 1.0, 1.0], log(1.0))
    assert choose_blocks(ratios, [1.0] * 4, [True] * 4, [True] * 4, 2.0, 1.5) == ([0, 1], [])
    assert choose_blocks(ratios, [1.0] * 4, [True] * 4, [True] * 4, 0.1, 1.5) == ([0], [])
    assert choose_blocks(ratios, [1.0] * 4, [True] * 4, [False, True, True, False], 9.0, 1.5) == ([1], [])


def test_an_absent_block_comes_back_only_if_it_is_clearly_worth_more() -> None:
    ratios = block_rates([1.4, 1.6, 9.0], [1.0, 1.0, 0.0], log(1.0))
    assert choose_blocks(ratios, [1.0, 1.0, 0.0], [False] * 3, [True] * 3, 9.0, 1.5) == ([], [1])


# ---- several limits ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_limits_that_pull_apart_are_both_used_up() -> None:
    """VGG's late layers hold the parameters and its early ones the MACs: one ratio wastes half of one limit."""
    torch.manual_seed(0)
    model = vgg16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    grower = apical.Grower(model, optimizer, images[:1], "13.6% macs, 5% params", 16, growth_end=0.9)
    for _ in range(16):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        grower.end_epoch()
    macs, params = grower.bound.loads(grower.keep)
    assert 0.9 < macs <= 1.002
    assert 0.9 < params <= 1.002
