"""Budgeted sampling: the one shift of all scores that makes the sampled network cost what the schedule says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from apical.errors import BudgetError


@dataclass(frozen=True)
class CostShift:
    """A shift, and how well it meets its target.

    Attributes:
        shift: μ, to be passed to `sample_indicators`.
        cost: the cost of the components that exist under `shift`, in the unit of the cost function.
        target: the cost that was asked for.
        limit: `"none"` when the target lies within what the components can cost; `"lower"` when even the smallest
            network costs more than the target; `"upper"` when even the largest costs less.
        evaluations: how many times the cost function was called.
    """

    shift: float
    cost: float
    target: float
    limit: Literal["none", "lower", "upper"]
    evaluations: int

    @property
    def reached(self) -> bool:
        """Whether the target lies within the reachable range."""
        return self.limit == "none"


def shift_for_cost(critical: Tensor, cost: Callable[[Tensor], float], target: float) -> CostShift:
    """Largest shift whose sample costs at most the target.

        μ* = sup { μ : cost(q(μ)) ≤ target },   q_i(μ) = 1[c_i < μ]

    q(μ) changes only at the critical shifts c_i, so the bisection runs over their sorted values instead of over the
    real line: it is exact and calls `cost` at most 2 + log2(units) times. Where several components share one
    critical shift, they come and go together.

    Args:
        critical: c, (units,), the shift beyond which each component exists (`critical_shift` of its score); infinite
            for what is always there, or never.
        cost: the cost of the network with indicators q, (units,) bool; it must not fall when a component is added.
            Rounding of widths and components that are always kept belong in here.
        target: the scheduled cost, in the unit of `cost`.

    Returns:
        The shift, with the cost it gives. A target out of reach gives the nearest reachable network and says so in
        `limit`.

    Raises:
        BudgetError: the target is not a number, or `cost` falls from the empty to the full network.

    Example:
        >>> critical = torch.tensor([-2.0, 0.0, -1.0, 1.0])
        >>> found = shift_for_cost(critical, lambda q: 10.0 * float(q.sum()), target=25.0)
        >>> found.cost, found.reached
        (20.0, True)
        >>> shift_for_cost(critical, lambda q: 10.0 * float(q.sum()), target=99.0).limit
        'upper'
    """
    if target != target:
        raise BudgetError("shift_for_cost: the target cost is not a number; expected a finite cost")
    steps = torch.unique(critical[torch.isfinite(critical)])  # ascending; k steps taken = all c_i <= steps[k - 1]
    shifts = _between(steps)

    def price(taken: int) -> float:
        return float(cost(critical < shifts[taken]))

    low, high = 0, len(shifts) - 1
    cost_low, cost_high = price(low), price(high)
    if cost_low > cost_high:
        raise BudgetError(
            f"shift_for_cost: the cost falls from {cost_low:g} with the fewest components to {cost_high:g} with all "
            "of them; expected a cost that never falls when a component is added"
        )
    if cost_high <= target:
        limit: Literal["none", "upper"] = "none" if cost_high == target else "upper"
        return CostShift(shifts[high], cost_high, target, limit, 2)
    if cost_low > target:
        return CostShift(shifts[low], cost_low, target, "lower", 2)

    evaluations = 2
    while high - low > 1:  # price(low) <= target < price(high)
        middle = (low + high) // 2
        cost_middle = price(middle)
        evaluations += 1
        if cost_middle <= target:
            low, cost_low = middle, cost_middle
        else:
            high = middle
    return CostShift(shifts[low], cost_low, target, "none", evaluations)


def _between(steps: Tensor) -> list[float]:
    """One shift below, one between each neighbouring two, and one above the sorted critical shifts."""
    if steps.numel() == 0:
        return [0.0]
    inner = (steps[:-1] + steps[1:]) / 2
    # Neighbouring floats have no midpoint; the upper one itself then separates them, as `c < μ` is strict.
    inner = torch.where(inner > steps[:-1], inner, steps[1:])
    return [float(steps[0]) - 1.0, *inner.tolist(), float(steps[-1]) + 1.0]
