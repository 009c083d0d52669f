"""Network slimming: L1 on the normalisation's scales, one threshold for all layers, fine-tune (Liu et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from apical._checks import check
from apical.baselines._choose import Scores, by_threshold, sparing_streams
from apical.baselines._comparator import Course, Task, epoch_at
from apical.baselines._scores import scales, spread
from apical.baselines._subject import Subject
from apical.budget import BoundBudget
from apical.structure import Keep


@dataclass(frozen=True)
class Slimming:
    """Trains with an L1 penalty on the BatchNorm scales γ, removes the channels below one threshold, and trains on.

        ∂/∂γ (task loss + λ Σ |γ|) = ∂(task loss)/∂γ + λ sign γ,   s_c = mean over the channel's norms of |γ_c|

    The threshold is the one that meets the budget. Groups without a normalisation are penalised and scored at their
    whole gate site. Source: Liu, Li, Shen, Huang, Yan, Zhang, *Learning Efficient Convolutional Networks through
    Network Slimming*, ICCV 2017, equation 1; docs/methods/slimming.md says what differs.

    Attributes:
        penalty: λ, weight of the L1 norm of the scales; 0 for the control without it.
        prune_at: share of the epochs after which channels are removed, in (0, 1); the rest is fine-tuning.
        least_fraction: every group keeps at least this share of its channels, in [0, 1).
    """

    name: ClassVar[str] = "slimming"
    penalty: float = 1e-4
    prune_at: float = 0.5
    least_fraction: float = 0.1

    def __post_init__(self) -> None:
        check(
            f"method {self.name}",
            {
                f"penalty={self.penalty}, expected at least 0": self.penalty >= 0,
                f"prune_at={self.prune_at}, expected a number in (0, 1)": 0 < self.prune_at < 1,
                f"least_fraction={self.least_fraction}, expected a number in [0, 1)": 0 <= self.least_fraction < 1,
            },
        )

    def last(self, epochs: int) -> int:
        """When channels are removed."""
        return epoch_at(self.prune_at, epochs, self.name)

    def start(self, task: Task) -> Course:
        """Find the scales."""
        structure, subject = task.structure, task.subject
        least = sparing_streams(structure, task.budget, self.least_fraction, task.divisor)
        bound = BoundBudget(task.budget, structure, minimum=least, fixed_blocks=True)
        every = [rows.tensor for group in structure.groups for rows in scales(subject, group)]
        penalised = list({id(scale): scale for scale in every}.values())  # several groups may share one

        @torch.no_grad()
        def penalise() -> None:
            for scale in penalised:
                if scale.grad is not None:
                    scale.grad.add_(scale.sign(), alpha=self.penalty)

        def decide(epoch: int) -> Keep | None:
            if epoch < task.last:
                return None
            return by_threshold(bound, mean_scales(subject), least, divisor=task.divisor)

        return Course(decide, before_step=penalise)


def mean_scales(subject: Subject) -> Scores:
    """Mean over a unit's scales of their size."""
    found = {}
    for group in subject.structure.groups:
        sizes = [rows.of(rows.tensor).abs().mean(1) for rows in scales(subject, group)]
        found[group.name] = spread(subject, group, torch.stack(sizes).mean(0))
    return found
