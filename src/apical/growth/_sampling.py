"""Which components exist until the next restructuring: sampling under a budget, with rounding to multiples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from apical.budget import BoundBudget
from apical.gates import critical_shift, sample_indicators, shift_for_cost
from apical.structure import Structure

TOLERANCE = 0.002  # a network may exceed its scheduled cost by this fraction, so that it can end nearest to it

CLOSE = 0.005  # the final network may stay below its budget by this fraction before units are exchanged


@dataclass(frozen=True)
class Choice:
    """A network: kept positions by group, blocks left out, its share of the budget, and the shift that gave it."""

    keep: dict[str, list[int]]
    skip: tuple[str, ...]
    load: float
    shift: float


@dataclass(frozen=True)
class Limits:
    """The fewest units and the rounding step of each group."""

    least: tuple[int, ...]
    step: tuple[int, ...]

    @staticmethod
    def of(structure: Structure, divisor: int, min_units: int) -> Limits:
        """Groups smaller than two steps are not rounded; the fewest units are a multiple of the step, too."""
        step = tuple(divisor if g.size >= 2 * divisor else 1 for g in structure.groups)
        least = tuple(min(g.size, s * ceil(min_units / s)) for g, s in zip(structure.groups, step, strict=True))
        return Limits(least, step)

    def least_of(self, structure: Structure) -> dict[str, int]:
        """The fewest units by group name."""
        return {group.name: least for group, least in zip(structure.groups, self.least, strict=True)}

    def rounded(self, counts: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """Counts brought down to a multiple of the step, not below the least; whole groups stay whole."""
        return [
            n if n == size else max(least, n - n % step)
            for n, size, least, step in zip(counts, sizes, self.least, self.step, strict=True)
        ]

    def nearest(self, counts: Sequence[int], sizes: Sequence[int]) -> list[int]:
        """Counts moved to the nearest multiple of the step (the larger of two), between the least and the size."""
        return [
            n if n == size else min(size, max(least, (2 * n + step) // (2 * step) * step))
            for n, size, least, step in zip(counts, sizes, self.least, self.step, strict=True)
        ]


class Sampler:
    """Turns scores into networks of a scheduled cost.

    Args:
        bound: the budget, which prices networks.
        limits: fewest units and rounding of each group.
    """

    def __init__(self, bound: BoundBudget, limits: Limits) -> None:
        self.bound, self.limits = bound, limits
        self.structure = bound.structure
        self.sizes = [g.size for g in self.structure.groups]
        self._group_of = torch.repeat_interleave(
            torch.arange(len(self.sizes), device="cpu"), torch.tensor(self.sizes, device="cpu")
        )
        self.num_units = sum(self.sizes)

    def budgeted(self, scores: Tensor, beta: Tensor, noise: Tensor, load: float, exact: bool = False) -> Choice:
        """The network whose cost is nearest to ``load`` times the budget, by one shift of all scores.

        Args:
            scores: s  # (entries,), +inf and -inf pin components in and out
            beta: β  # (entries,)
            noise: u  # (entries,)
            load: scheduled cost as a fraction of the budget.
            exact: exchange a unit of one group for one of another where that comes nearer to the load.
        """
        found = shift_for_cost(scores, beta, noise, self._load, load)
        critical = critical_shift(scores, beta, noise)
        indicators = critical < found.shift
        counts, skip = self._counts(indicators), self._skipped(indicators)
        counts = self._fill(counts, skip, critical, load)
        for block in self._blocks_to_add(counts, skip, critical, load):
            pinned = scores.index_fill(0, torch.tensor([self.num_units + block], device="cpu"), float("inf"))
            deeper = self.budgeted(pinned, beta, noise, load, exact)
            if deeper.load <= load * (1 + TOLERANCE):
                return deeper
        if exact and self._load_of(counts, skip) < load * (1 - CLOSE):
            counts = self._exchange(counts, skip, critical, load)
        return self._choice(counts, skip, critical, found.shift)

    def independent(self, scores: Tensor, beta: Tensor, noise: Tensor) -> Choice:
        """The paper's sampling: each component by its own score, whatever that costs."""
        indicators = sample_indicators(scores, beta, noise)
        critical = critical_shift(scores, beta, noise)
        return self._choice(self._counts(indicators), self._skipped(indicators), critical, 0.0)

    def _counts(self, indicators: Tensor) -> list[int]:
        counts = torch.zeros(len(self.sizes), dtype=torch.long, device="cpu")
        counts.index_add_(0, self._group_of, indicators[: self.num_units].long())
        return self.limits.rounded(counts.tolist(), self.sizes)

    def _skipped(self, indicators: Tensor) -> tuple[str, ...]:
        present = indicators[self.num_units :].tolist()
        return tuple(b.name for b, here in zip(self.structure.blocks, present, strict=True) if not here)

    def _load(self, indicators: Tensor) -> float:
        return self._load_of(self._counts(indicators), self._skipped(indicators))

    def _load_of(self, counts: Sequence[int], skip: Sequence[str]) -> float:
        return self.bound.load({g.name: n for g, n in zip(self.structure.groups, counts, strict=True)}, skip)

    def _fill(self, counts: list[int], skip: tuple[str, ...], critical: Tensor, load: float) -> list[int]:
        """Add units, nearest to existing first, as long as one fits."""
        waiting = [torch.sort(c).values.tolist() for c in critical[: self.num_units].split(self.sizes)]
        open_groups, present = set(range(len(counts))), self._load_of(counts, skip)
        while open_groups:
            best = min(open_groups, key=lambda g: waiting[g][counts[g]] if counts[g] < self.sizes[g] else float("inf"))
            more = min(self.sizes[best], counts[best] + self.limits.step[best])
            unit = waiting[best][counts[best]] if counts[best] < self.sizes[best] else float("inf")
            trial = [more if g == best else n for g, n in enumerate(counts)]
            new = self._load_of(trial, skip)
            if unit == float("inf") or new == present or new > load * (1 + TOLERANCE):
                open_groups.discard(best)  # full, within a block that is left out (free now, dear later), or too dear
            else:
                counts, present = trial, new
        return counts

    def _blocks_to_add(self, counts: list[int], skip: tuple[str, ...], critical: Tensor, load: float) -> list[int]:
        """Absent blocks, nearest to existing first, if without them even the widest network stays below the load."""
        parts = critical[: self.num_units].split(self.sizes)
        widest = [
            int((c < float("inf")).sum()) if c.isfinite().any() else n for c, n in zip(parts, counts, strict=True)
        ]
        waiting = [
            (c, i)
            for i, (block, c) in enumerate(zip(self.structure.blocks, critical[self.num_units :].tolist(), strict=True))
            if block.name in skip and c < float("inf")
        ]
        return [i for _, i in sorted(waiting)] if self._load_of(widest, skip) < load * (1 - CLOSE) else []

    def _exchange(self, counts: list[int], skip: tuple[str, ...], critical: Tensor, load: float) -> list[int]:
        """One step less in a group and one more in another, the pair that uses the most of what may be used."""
        movable = [torch.isfinite(c).sum().item() for c in critical[: self.num_units].split(self.sizes)]
        pairs = [(a, b) for a in range(len(counts)) for b in range(len(counts)) if a != b and movable[a] and movable[b]]
        best, most = counts, self._load_of(counts, skip)
        for a, b in pairs:
            trial = list(counts)
            trial[a], trial[b] = counts[a] - self.limits.step[a], counts[b] + self.limits.step[b]
            if trial[a] < self.limits.least[a] or trial[b] > self.sizes[b] or counts[a] == self.sizes[a]:
                continue
            present = self._load_of(trial, skip)
            if most < present <= load * (1 + TOLERANCE):
                best, most = trial, present
        return best

    def _choice(self, counts: Sequence[int], skip: tuple[str, ...], critical: Tensor, shift: float) -> Choice:
        keep = {}
        for group, n, c in zip(
            self.structure.groups, counts, critical[: self.num_units].split(self.sizes), strict=True
        ):
            keep[group.name] = sorted(torch.argsort(c, stable=True)[:n].tolist())
        return Choice(keep, skip, self._load_of(counts, skip), shift)


def uniform_widths(bound: BoundBudget, skip: Sequence[str] = ()) -> dict[str, int]:
    """The widths of all groups scaled by one ratio, the largest whose cost is within the budget without some blocks."""
    sizes = {g.name: g.size for g in bound.structure.groups}

    def widths(ratio: float) -> dict[str, int]:
        return {name: max(1, round(ratio * size)) for name, size in sizes.items()}

    low, high = 0.0, 1.0
    if bound.load(widths(high), skip) <= 1 + TOLERANCE:
        return widths(high)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if bound.load(widths(middle), skip) <= 1 + TOLERANCE else (low, middle)
    return widths(low)
