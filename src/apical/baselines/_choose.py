"""From scores to kept units: by given widths, or by one threshold for all groups that meets the budget."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apical.budget import BoundBudget, Budget, rounding_step
from apical.budget._rounding import least_width
from apical.budget._shift import shift_for_cost
from apical.errors import BudgetError
from apical.resizing._selection import first_units
from apical.structure import Structure

TOLERANCE = 0.002  # a network may exceed its target by this fraction, so that it can end nearest to it

LEAST_FRACTION = 0.1  # of a group's units, which methods that choose the ratio themselves leave in any case

Scores = Mapping[str, Tensor]
"""By group name, a score for every unit of the template, the larger the better; -inf for absent units  # (size,)"""


def strongest(scores: Scores, widths: Mapping[str, int]) -> dict[str, list[int]]:
    """The units with the largest scores of each group, as many as its width; the first ones of equals.

    Example:
        >>> strongest({"0": torch.tensor([0.3, 0.1, 0.2])}, {"0": 2})
        {'0': [0, 2]}
    """
    rankings = {name: torch.argsort(scores[name], descending=True, stable=True).tolist() for name in widths}
    return first_units(rankings, widths)


def fewest(structure: Structure, fraction: float, divisor: int = 1) -> dict[str, int]:
    """The fewest units that a group may be left with: a fraction of its size, at least one, rounded up to the divisor.

    A threshold for all groups can empty one and cut the network in two; this is what prevents it.
    """
    return {group.name: least_width(group.size, fraction * group.size, divisor) for group in structure.groups}


def sparing_streams(structure: Structure, budget: Budget | str, fraction: float, divisor: int = 1) -> dict[str, int]:
    """The same, with residual streams left whole if the other groups alone can be narrow enough for the budget.

    What publications do: a channel of a stream is read and written by many layers, so that removing it at once does
    more harm. Where it must be (no other groups, a tight budget), streams are pruned like the rest.
    """
    least = fewest(structure, fraction, divisor)
    spared = least | {group.name: group.size for group in structure.groups if group.role == "stream"}
    try:
        BoundBudget(Budget.of(budget), structure, minimum=spared, fixed_blocks=True)
    except BudgetError:
        return least
    return spared


def by_threshold(
    bound: BoundBudget, scores: Scores, least: Mapping[str, int], load: float = 1.0, divisor: int = 1
) -> dict[str, list[int]]:
    """Units above one threshold for all groups, the lowest threshold whose network costs at most ``load``.

        keep_g = { u : s_gu ≥ τ },   τ = inf { τ : cost(keep(τ)) ≤ load · budget }

    What rounding leaves of the budget is filled group by group with the best units that still fit.

    Args:
        bound: the budget, which prices networks.
        scores: of the units; comparable between groups.
        least: the fewest units that stay of each group, whatever their scores.
        load: the cost to reach, as a fraction of the budget.
        divisor: widths are multiples of it in groups of at least two steps.
    """
    sizes = {group.name: group.size for group in bound.structure.groups}
    names = list(sizes)
    present = {name: int((scores[name] > -torch.inf).sum()) for name in names}
    steps = {name: rounding_step(size, divisor) for name, size in sizes.items()}
    owner = torch.cat([torch.full((present[name],), i) for i, name in enumerate(names)])
    ranked = torch.cat([scores[name][scores[name] > -torch.inf].double().cpu() for name in names])
    order = owner[torch.argsort(ranked, descending=True, stable=True)]  # the group of each unit, best first

    def rounded(count: int, name: str) -> int:
        least_present, most = min(least[name], present[name]), present[name]
        return most if count >= most else max(least_present, count - count % steps[name])

    def at(taken: int) -> dict[str, int]:
        counts = torch.bincount(order[:taken], minlength=len(names)).tolist()
        return {name: rounded(count, name) for name, count in zip(names, counts, strict=True)}

    ranks = torch.arange(len(order), dtype=torch.float64)  # the threshold as a rank: equal scores are not one
    most = load * (1 + TOLERANCE)
    taken = int((ranks < shift_for_cost(ranks, lambda taken: bound.load(at(int(taken.sum()))), most)).sum())
    widths = at(taken)
    for index in dict.fromkeys(order[taken:].tolist()):  # groups in the order of their best waiting unit
        name = names[index]
        while widths[name] < present[name]:
            wider = {**widths, name: min(present[name], widths[name] + steps[name])}
            if bound.load(wider) > most:
                break
            widths = wider
    return strongest(scores, widths)
