"""One ratio for all widths: the network that needs no search."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apical.baselines._choose import LEAST_FRACTION, sparing_streams
from apical.baselines._comparator import Course, Task
from apical.budget import BoundBudget, Budget
from apical.budget._rounding import least_width, possible_widths
from apical.budget._shift import shift_for_cost
from apical.errors import BudgetError
from apical.structure import Structure

TIE = 1e-9  # units


def uniform_keep(
    structure: Structure,
    budget: Budget | str,
    divisor: int = 1,
    skip: Collection[str] = (),
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Widths of all groups scaled by one ratio r, so that the network costs what the budget allows.

        k_g = the largest width that group g can have up to r n_g,   r the largest within the budget

    Groups then receive one more step each, those with the largest remainder first, while the budget allows. What is
    left of the budget is less than the cheapest further step. Widths round as the Grower's do.

    Args:
        structure: the template.
        budget: the limit or limits.
        divisor: widths are multiples of it (or the full width), in groups of at least two such steps.
        skip: blocks that are left out; the others all stay.
        least: the fewest units of each group; one step if None.

    Returns:
        The width of every group by name.

    Raises:
        BudgetError: no such network meets the budget, even with the least of all widths.

    Example:
        >>> import torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> uniform_keep(apical.trace(net, torch.zeros(1, 3)), "50% macs")
        {'0': 4}
    """
    if divisor < 1:
        raise BudgetError(f"divisor must be at least 1, got {divisor}")
    full = {group.name: group.size for group in structure.groups}
    least = least or {name: least_width(size, 1, divisor) for name, size in full.items()}
    stay = [block.name for block in structure.blocks if block.name not in skip]
    bound = BoundBudget(Budget.of(budget), structure, minimum=least, fixed_blocks=stay)
    widths = {name: possible_widths(size, least[name], divisor) for name, size in full.items()}
    # The ratio from which on a group has each of its widths but the least; of equal ones those of small groups first.
    ratios = [(torch.tensor(w[1:], dtype=torch.float64) - TIE) / full[name] for name, w in widths.items()]

    def at(ratio_reached: Tensor) -> dict[str, int]:
        counts = [int(part.sum()) for part in ratio_reached.split([len(part) for part in ratios])]
        return {name: several[count] for (name, several), count in zip(widths.items(), counts, strict=True)}

    every = torch.cat(ratios)
    shift = shift_for_cost(every, lambda reached: bound.load(at(reached), skip), 1.0)
    chosen, beyond = at(every < shift), every[every >= shift]
    if not len(beyond):
        return chosen
    ratio = float(beyond.min())  # r, where the budget is passed
    for name in sorted(full, key=lambda name: chosen[name] - ratio * full[name]):
        wider = next((width for width in widths[name] if width > chosen[name]), full[name])
        more = {**chosen, name: wider}
        chosen = more if bound.load(more, skip) <= 1 else chosen
    return chosen


def one_ratio(task: Task) -> dict[str, int]:
    """The widths of rules that only choose which units stay: one ratio, streams left whole where the budget allows."""
    least = sparing_streams(task.structure, task.budget, LEAST_FRACTION, task.divisor)
    return uniform_keep(task.structure, task.budget, task.divisor, least=least)


@dataclass(frozen=True)
class Uniform:
    """Scales all widths of the freshly built model by one ratio before the first step, then changes nothing.

    Every group keeps its first channels with the weights that they were initialised with.
    """

    name: ClassVar[str] = "uniform"

    def last(self, epochs: int) -> int:  # noqa: ARG002
        """No epoch changes the network."""
        return 0

    def start(self, task: Task) -> Course:
        """Scale it."""
        widths = uniform_keep(task.structure, task.budget, task.divisor)
        task.subject.resize_({name: range(width) for name, width in widths.items()})
        return Course()
