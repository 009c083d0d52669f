"""Widths between which no exchange pays, where one ratio for all would waste a limit."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from apical.budget import BoundBudget

SHRINK = 0.93  # a step narrows a group by this factor


def balanced_widths(
    bound: BoundBudget, least: Mapping[str, int], skip: Sequence[str] = (), fixed: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The widths under a budget that narrow the groups the least, summed over the groups.

        minimise Σ_g N_g / n_g   subject to   cost_t(n) ≤ limit_t for every limit t

    N_g is the full width. At the optimum (N_g / n_g) / (n_g Σ_t λ_t ∂cost_t/∂n_g) is the same for all groups that are
    not whole: a group whose units are dear becomes narrower than one ratio for all would make it, one whose units are
    cheap wider. A reduction counts more the narrower a group already is, which avoids bottlenecks. Where the late
    layers hold the parameters and the early ones the MACs (VGG), one ratio wastes one of two limits on the other.

    Found by going down from the full widths: the group that saves the most for its loss in N_g / n_g is narrowed by a
    few percent, until the budget is met. A saving counts in the limits that are exceeded, Σ_t max(0, cost_t / limit_t
    − 1), and can only fall when other groups are narrowed: a priority queue finds the largest with few prices.

    Args:
        bound: the budget.
        least: fewest units of each group, by name.
        skip: blocks that are left out.
        fixed: widths that do not change, by name.

    Returns:
        The width of every group by name.
    """
    fixed = fixed or {}
    full = {g.name: g.size for g in bound.structure.groups}
    widths = {**full, **fixed}

    def excess(trial: Mapping[str, int]) -> float:
        return sum(max(0.0, load - 1.0) for load in bound.loads(trial, skip))

    def gain(name: str) -> tuple[float, int]:
        """What a group's next step saves for its loss, negative for the heap, and where it leads."""
        narrower = max(least[name], min(widths[name] - 1, int(SHRINK * widths[name])))
        if narrower >= widths[name]:
            return 0.0, widths[name]
        saved = present - excess({**widths, name: narrower})
        return -saved / (full[name] / narrower - full[name] / widths[name]), narrower

    present = excess(widths)
    queue = [(-float("inf"), name) for name in widths if name not in fixed]
    while present > 0 and queue:
        _, name = heapq.heappop(queue)
        value, narrower = gain(name)
        if queue and value > queue[0][0]:  # its saving has fallen behind another's since it was last computed
            heapq.heappush(queue, (value, name))
        elif value < 0:
            widths[name] = narrower
            present = excess(widths)
            heapq.heappush(queue, (gain(name)[0], name))
    return widths
