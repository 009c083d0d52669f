"""SoftFilterPruning: after every epoch the weakest filters are set to zero, and may come back (He et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from apical._checks import check
from apical.baselines._choose import strongest
from apical.baselines._comparator import Change, Course, Task, epoch_at
from apical.baselines._scores import filter_norms, writers
from apical.baselines._subject import Subject
from apical.baselines._uniform import one_ratio


@dataclass(frozen=True)
class SoftFilterPruning:
    """Zeroes the filters with the smallest L2 norm after every epoch and keeps training all; removes them at the end.

        after each epoch:  W_f ← 0  for the filters f outside the k_g with the largest ‖W_f‖₂

    with one ratio for the widths k of all groups, residual streams left whole where the budget allows. Zeroed filters
    get gradients and grow again. Source: He, Kang, Dong, Fu, Yang, *Soft Filter Pruning for Accelerating Deep
    Convolutional Neural Networks*, IJCAI 2018, algorithm 1; docs/methods/soft.md says what differs.

    Attributes:
        compact_epochs: how many of the last epochs train the network without its zeroed filters, at least 1.
        hard: remove the filters after the first epoch for good, the control that the paper calls hard pruning.
    """

    name: ClassVar[str] = "soft"
    compact_epochs: int = 1
    hard: bool = False

    def __post_init__(self) -> None:
        rule = f"compact_epochs={self.compact_epochs}, expected at least 1"
        check(f"method {self.name}", {rule: self.compact_epochs >= 1})

    def last(self, epochs: int) -> int:
        """When the zeroed filters are removed."""
        return epoch_at(0.0 if self.hard else 1 - self.compact_epochs / max(1, epochs), epochs, self.name)

    def start(self, task: Task) -> Course:
        """Fix the widths."""
        widths = one_ratio(task)

        def decide(epoch: int) -> Change | None:
            keep = strongest(filter_norms(task.subject, order=2), widths)
            if epoch == task.last:
                return Change(keep)
            zero_others_(task.subject, keep)
            return None

        return Course(decide)


def zero_others_(subject: Subject, keep: dict[str, list[int]]) -> None:
    """Set what computes the other units to zero: weights and bias, not the normalisation after them."""
    for group in subject.structure.groups:
        gone = torch.ones(group.size, dtype=torch.bool)
        gone[keep[group.name]] = False
        for rows in subject.rows(group, writers(subject.structure, group)):
            rows.zero_(gone.nonzero().reshape(-1))
