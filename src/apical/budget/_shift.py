"""The one shift of many thresholds at which a network costs what is asked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from apical.errors import BudgetError


def shift_for_cost(critical: Tensor, cost: Callable[[Tensor], float], target: float) -> float:
    """Largest shift under which the components that exist cost at most the target.

        μ* = sup { μ : cost(q(μ)) ≤ target },   q_i(μ) = 1[c_i < μ]

    q(μ) changes only at the critical shifts c_i, so the bisection runs over their sorted values instead of over the
    real line: it is exact and calls `cost` at most 2 + log2(units) times. Where several components share one
    critical shift, they come and go together.

    Args:
        critical: c, the shift beyond which each component exists; infinite for what is always there, or never
            # (units,)
        cost: the cost of the network with indicators q (units,) bool; it must not fall when a component is added.
        target: in the unit of `cost`. One that is out of reach gives the nearest network.

    Example:
        >>> critical = torch.tensor([-2.0, 0.0, -1.0, 1.0])
        >>> shift = shift_for_cost(critical, lambda q: 10.0 * float(q.sum()), target=25.0)
        >>> (critical < shift).tolist()
        [True, False, True, False]
    """
    steps = torch.unique(critical[torch.isfinite(critical)])  # ascending; k steps taken = all c_i <= steps[k - 1]
    shifts = _between(steps)

    def price(taken: int) -> float:
        return float(cost(critical < shifts[taken]))

    low, high = 0, len(shifts) - 1
    cost_low, cost_high = price(low), price(high)
    if cost_low > cost_high:
        raise BudgetError(
            f"the cost falls from {cost_low:g} with the fewest components to {cost_high:g} with all of them; expected "
            "one that never falls when a component is added"
        )
    if cost_high <= target:
        return shifts[high]
    while high - low > 1:  # price(low) <= target < price(high), unless even the fewest cost more
        middle = (low + high) // 2
        if price(middle) <= target:
            low = middle
        else:
            high = middle
    return shifts[low]


def _between(steps: Tensor) -> list[float]:
    """One shift below, one between each neighbouring two, and one above the sorted critical shifts."""
    if steps.numel() == 0:
        return [0.0]
    inner = (steps[:-1] + steps[1:]) / 2
    # Neighbouring floats have no midpoint; the upper one itself then separates them, as `c < μ` is strict.
    inner = torch.where(inner > steps[:-1], inner, steps[1:])
    return [float(steps[0]) - 1.0, *inner.tolist(), float(steps[-1]) + 1.0]
