"""Intrinsic sparse structures: group lasso on whole units while training, then removal (Wen et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from apical._checks import check
from apical.baselines._comparator import Course, Task, epoch_at
from apical.baselines._subject import Rows, Subject
from apical.budget import BoundBudget, rounding_step
from apical.structure import ChannelGroup, Keep


@dataclass(frozen=True)
class ISS:
    """Trains the whole model under a group lasso on its units, and removes those that it drives to nothing.

        min  L(w) + λ Σ_u ‖w_u‖₂,   w_u every weight of unit u: for an LSTM its four gate rows, its recurrent column
                                    and the columns that read it
        after each step of learning rate η:   w_u ← w_u · max(0, 1 − η λ / ‖w_u‖₂)

    The second line is the proximal step of the penalty, taken after the optimizer's, so that the training loop is
    unchanged; a unit that reaches zero is removed exactly. Source: Wen et al., *Learning Intrinsic Sparse Structures
    within Long Short-Term Memory*, ICLR 2018, equation 4; docs/methods/iss.md says what differs.

    Attributes:
        strength: λ, weight of the sum of group norms in the objective, at least 0.
        threshold: a unit leaves at the end of an epoch when its norm is below this share of its group's largest.
        enforce_at: share of the epochs after which the weakest units leave until the budget is met and the penalty
            ends, in (0, 1); the rest is fine-tuning.
    """

    name: ClassVar[str] = "iss"
    strength: float = 1e-4
    threshold: float = 1e-3
    enforce_at: float = 0.75

    def __post_init__(self) -> None:
        check(
            f"method {self.name}",
            {
                f"strength={self.strength}, expected at least 0": self.strength >= 0,
                f"threshold={self.threshold}, expected a number in [0, 1)": 0 <= self.threshold < 1,
                f"enforce_at={self.enforce_at}, expected a number in (0, 1)": 0 < self.enforce_at < 1,
            },
        )

    def last(self, epochs: int) -> int:
        """When the budget is met and the penalty ends."""
        return epoch_at(self.enforce_at, epochs, self.name)

    def start(self, task: Task) -> Course:
        """Find the groups.

        Raises:
            BudgetError: the budget cannot be met.
        """
        subject, groups = task.subject, task.structure.groups
        steps = {g.name: rounding_step(g.size, task.divisor) for g in groups}
        bound = BoundBudget(task.budget, task.structure, minimum=steps, fixed_blocks=True)

        def decide(epoch: int) -> Keep | None:
            norms, keep = unit_norms(subject, groups), subject.selection.keep
            if epoch == task.last:
                return {**keep, **within_budget(norms, keep, steps, bound)}
            alive = {n: self._alive(norm, keep[n], steps[n]) for n, norm in norms.items()}
            return None if all(len(alive[n]) == len(keep[n]) for n in alive) else {**keep, **alive}

        def shrink(optimizer: Optimizer) -> None:
            if self.strength:
                shrink_(subject, groups, self.strength * float(optimizer.param_groups[0]["lr"]))

        return Course(decide, after_step=shrink)

    def _alive(self, norms: Tensor, units: Sequence[int], least: int) -> list[int]:
        """Units above the threshold; the group's least number at any rate."""
        strong = norms > self.threshold * norms.max()
        if int(strong.sum()) < least:
            strong = torch.zeros_like(strong).index_fill(0, norms.topk(least).indices, True)
        return [unit for unit, stays in zip(units, strong.tolist(), strict=True) if stays]


@torch.no_grad()
def unit_norms(subject: Subject, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """‖w_u‖₂ of the present units of some groups, by name  # (units,)"""
    found: dict[str, Tensor] = {}
    for group in groups:
        squares = [_squares(rows)[rows.index].sum(1) for rows in subject.rows(group, group.members)]
        found[group.name] = torch.stack(squares).sum(0).sqrt()
    return found


@torch.no_grad()
def shrink_(subject: Subject, groups: Sequence[ChannelGroup], threshold: float) -> None:
    """The proximal step of the penalty. Weights of two units (of a recurrent matrix) shrink with both."""
    norms = unit_norms(subject, groups)
    for group in groups:
        factors = (1 - threshold / norms[group.name].clamp(min=1e-30)).clamp(min=0)
        for rows in subject.rows(group, group.members):
            rows.scale_(factors)


def within_budget(
    norms: Mapping[str, Tensor], keep: Mapping[str, Sequence[int]], steps: Mapping[str, int], bound: BoundBudget
) -> dict[str, list[int]]:
    """The weakest units of all groups leave, by their share of the group's mean norm, until the budget is met."""
    relative = {name: (norm / norm.mean().clamp(min=1e-30)).tolist() for name, norm in norms.items()}
    ranked = {name: sorted(zip(values, keep[name], strict=True)) for name, values in relative.items()}
    counts = {name: len(kept) for name, kept in keep.items()}
    for name, step in steps.items():
        if counts[name] < bound.structure.group(name).size:
            counts[name] = max(step, counts[name] - counts[name] % step)
    while bound.load(counts) > 1:
        movable = [name for name, step in steps.items() if counts[name] > step]
        name = min(movable, key=lambda n: ranked[n][len(ranked[n]) - counts[n]][0])
        step = steps[name]
        counts[name] = max(step, counts[name] - (counts[name] % step or step))
    for name, step in steps.items():  # what the last removal left over may do for a group of smaller units
        most = len(ranked[name]) - step
        while counts[name] <= most and bound.load({**counts, name: counts[name] + step}) <= 1:
            counts[name] += step
    return {name: sorted(unit for _, unit in units[len(units) - counts[name] :]) for name, units in ranked.items()}


def _squares(rows: Rows) -> Tensor:
    """Sums of squares of a parameter over all dimensions but the units'  # (size of that,)"""
    parameter, others = rows.tensor, [d for d in range(rows.tensor.dim()) if d != rows.dim]
    wide = torch.promote_types(parameter.dtype, torch.float32)
    if not others:
        return parameter.to(wide).square()
    norms: Tensor = torch.linalg.vector_norm(parameter, dim=others, dtype=wide)
    return norms.square()
