"""From real-valued widths to a network that costs what is scheduled: one common factor, rounding, what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import inf, log

import torch
from torch import Tensor

from apical.budget import BoundBudget, rounding_step
from apical.budget._rounding import least_width
from apical.budget._shift import shift_for_cost
from apical.structure import Structure

TOLERANCE = 0.002  # a network may exceed its scheduled cost by this fraction, so that it can end nearest to it
CLOSE = 0.005  # the final network may stay below its budget by this fraction before units are exchanged
EXCHANGED = 3  # by how many steps one group may leave the common factor for that

Price = Callable[[Sequence[int]], float]  # the load of a network with these widths


@dataclass(frozen=True)
class Limits:
    """The fewest units, the most, and the rounding step of each group."""

    least: tuple[int, ...]
    most: tuple[int, ...]
    step: tuple[int, ...]

    @staticmethod
    def of(structure: Structure, divisor: int, min_units: int, whole: Mapping[str, int] | None = None) -> Limits:
        """Groups smaller than two steps are not rounded; the fewest units are a multiple of the step, too."""
        whole = whole or {}
        sizes = tuple(g.size for g in structure.groups)
        step = tuple(rounding_step(n, divisor) for n in sizes)
        least = tuple(least_width(n, min_units, divisor) for n in sizes)
        return Limits(
            tuple(whole.get(g.name, n) for g, n in zip(structure.groups, least, strict=True)),
            tuple(whole.get(g.name, n) for g, n in zip(structure.groups, sizes, strict=True)),
            step,
        )

    def least_of(self, structure: Structure) -> dict[str, int]:
        """The fewest units by group name."""
        return {group.name: least for group, least in zip(structure.groups, self.least, strict=True)}

    def more(self, group: int, width: int) -> int:
        """The next larger width that a group can have."""
        return min(self.most[group], width + self.step[group])

    def fewer(self, group: int, width: int) -> int:
        """The next smaller width; below the least if there is none."""
        least, most, step = self.least[group], self.most[group], self.step[group]
        return least + (most - least - 1) // step * step if width == most else width - step

    def thresholds(self, group: int, width: float) -> list[float]:
        """The factor's logarithm beyond which each unit of a group exists.

            unit k exists if  w e^μ ≥ the middle between the two widths that k separates

        Args:
            group: its index.
            width: w, the real-valued width, above 0.

        Returns:
            c_k for each unit k  # (most,); -inf for those that always exist.
        """
        least, most, step = self.least[group], self.most[group], self.step[group]
        found = [-inf] * least
        for low, high in pairwise([*range(least, most, step), most]):  # the widths that the group can have
            found += [log((low + high) / 2 / width)] * (high - low)
        return found


@dataclass(frozen=True)
class Widths:
    """The number of units of each group, the load of the network, and the μ that led to it."""

    counts: tuple[int, ...]
    load: float
    shift: float


def fit(
    bound: BoundBudget, limits: Limits, widths: Sequence[float], skip: Sequence[str], load: float, exact: bool = False
) -> Widths:
    """The network nearest to ``load`` times the budget whose widths are the given ones times one common factor e^μ.

    Args:
        bound: the budget, which prices networks.
        limits: rounding of each group.
        widths: w, real-valued, by group.
        skip: blocks that are left out.
        load: scheduled cost as a fraction of the budget.
        exact: also let one group leave the common factor by a few steps where that comes nearer to the load.
    """
    return fit_thresholds(bound, limits, [limits.thresholds(i, w) for i, w in enumerate(widths)], skip, load, exact)


def fit_thresholds(
    bound: BoundBudget,
    limits: Limits,
    parts: Sequence[Sequence[float]],  # c by group, rising within each, and the same for all units of one rounding step
    skip: Sequence[str],
    load: float,
    exact: bool = False,
) -> Widths:
    """As `fit`, for thresholds c that are given: unit k of group g exists if c_gk < μ.

    μ is found by bisection over the thresholds, so that no width in between is missed. What then is left of the load
    goes to the units that would exist next.
    """
    names = [g.name for g in bound.structure.groups]
    sizes = [len(part) for part in parts]
    flat = torch.tensor([c for part in parts for c in part], dtype=torch.float64, device="cpu")

    def price(counts: Sequence[int]) -> float:
        return bound.load(dict(zip(names, counts, strict=True)), skip)

    def counted(exists: Tensor) -> list[int]:
        return [int(part.sum()) for part in exists.split(sizes)]

    # 1. the common factor: the largest at which all that then exists costs no more than scheduled
    shift = shift_for_cost(flat, lambda exists: price(counted(exists)), load)
    # 2. what whole steps left of the load
    counts = _filled(counted(flat < shift), parts, limits, price, load)
    nearest = Widths(tuple(counts), price(counts), shift)
    if not exact:
        return nearest
    # 3. of the final network, which is to use its budget up: one group a few steps off, nearest first, the others anew
    steps = [sign * n for n in range(1, EXCHANGED + 1) for sign in (1, -1)]
    for step, group in product(steps, range(len(counts))):
        if nearest.load >= load * (1 - CLOSE):
            break
        width = _moved(limits, group, counts[group], step)
        if width is not None:
            pinned = [-inf] * width + [inf] * (sizes[group] - width)
            others = [pinned if i == group else part for i, part in enumerate(parts)]
            trial = fit_thresholds(bound, limits, others, skip, load)
            if nearest.load < trial.load <= load * (1 + TOLERANCE):
                nearest = Widths(trial.counts, trial.load, shift)
    return nearest


def _moved(limits: Limits, group: int, width: int, steps: int) -> int | None:
    """A width so many steps up or down; None if the group cannot have it."""
    for _ in range(abs(steps)):
        moved = limits.more(group, width) if steps > 0 else limits.fewer(group, width)
        if moved == width or moved < limits.least[group]:
            return None
        width = moved
    return width


def _filled(
    counts: Sequence[int], parts: Sequence[Sequence[float]], limits: Limits, price: Price, load: float
) -> list[int]:
    """Add steps, those that would exist next first, as long as one fits."""
    found, present = list(counts), price(counts)
    unfinished = {g for g, n in enumerate(found) if n < limits.most[g]}
    while unfinished:
        best = min(unfinished, key=lambda g: (parts[g][found[g]], g))
        more = limits.more(best, found[best])
        trial = [more if g == best else n for g, n in enumerate(found)]
        new = price(trial)
        fits = present < new <= load * (1 + TOLERANCE)  # what costs nothing lies in an absent block: costly later
        if fits:
            found, present = trial, new
        if not fits or more == limits.most[best]:
            unfinished.discard(best)
    return found
