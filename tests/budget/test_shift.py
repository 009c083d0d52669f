"""The shift of many thresholds at which a network costs what is asked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apical.budget._shift import shift_for_cost
from apical.errors import BudgetError


def vectors(elements: st.SearchStrategy[float], size: int) -> st.SearchStrategy[Tensor]:
    lists = st.lists(elements, min_size=size, max_size=size)
    return lists.map(lambda values: torch.tensor(values, dtype=torch.float64))


def exist(critical: Tensor, cost: Callable[[Tensor], float], target: float) -> list[bool]:
    return (critical < shift_for_cost(critical, cost, target)).tolist()


@given(
    vectors(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), 7),
    vectors(st.sampled_from([0.1, 0.5, 0.9]), 7),
    vectors(st.floats(0, 10), 7),
    st.floats(-5, 80),
)
def test_the_shift_is_the_best_that_exhaustive_search_finds(
    scores: Tensor, noise: Tensor, prices: Tensor, target: float
) -> None:
    def cost(q: Tensor) -> float:
        return float(prices[q].sum())

    calls: list[Tensor] = []

    def counted(q: Tensor) -> float:
        calls.append(q)
        return cost(q)

    shifts = torch.logit(noise) - 2.0 * scores
    found, critical = cost(shifts < shift_for_cost(shifts, counted, target)), shifts.tolist()
    candidates = [min(critical) - 1, max(critical) + 1]
    candidates += [(a + b) / 2 for a, b in itertools.pairwise(sorted(set(critical)))]
    costs = [cost(shifts < mu) for mu in candidates]
    affordable = [c for c in costs if c <= target]
    assert found == (max(affordable) if affordable else min(costs))
    assert len(calls) <= 2 + math.ceil(math.log2(len(critical) + 1))


def test_neighbouring_floats_are_still_told_apart() -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    critical = torch.stack([one, torch.nextafter(one, one * 2)])
    assert exist(critical, lambda q: float(q.sum()), 1.0) == [True, False]


@pytest.mark.parametrize(("target", "there"), [(0.5, 0), (9.0, 2), (3.0, 2)])
def test_a_target_out_of_reach_gives_the_nearest_network(target: float, there: int) -> None:
    assert sum(exist(torch.tensor([-1.4, 1.4]), lambda q: 1.0 + float(q.sum()), target)) == there


def test_no_component_at_all_is_fine() -> None:
    assert exist(torch.zeros(0), lambda q: 4.0, 9.0) == []


def test_what_is_always_there_or_never_has_an_infinite_shift() -> None:
    critical = torch.tensor([-math.inf, 1.0, math.inf, 2.0])
    for target, there in (
        (2.0, [True, True, False, False]),
        (99.0, [True, True, False, True]),
        (0.0, [True] + [False] * 3),
    ):
        assert exist(critical, lambda q: float(q.sum()), target) == there


def test_costs_that_fall_are_refused() -> None:
    with pytest.raises(BudgetError, match="never falls"):
        shift_for_cost(torch.tensor([-1.4, 1.4]), lambda q: -float(q.sum()), 1.0)
