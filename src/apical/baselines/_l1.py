"""L1: train, remove the filters with the smallest weights, fine-tune (Li et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from apical._checks import check
from apical.baselines._choose import Scores, strongest
from apical.baselines._comparator import Course, Task, epoch_at
from apical.baselines._scores import filter_norms
from apical.baselines._uniform import one_ratio
from apical.structure import Keep


@dataclass(frozen=True)
class L1:
    """Trains the whole model, removes once the filters with the smallest L1 norm, and trains on.

        s_f = Σ |W_f|,   the k_g filters of group g with the largest s stay

    with one ratio for the widths k of all groups, residual streams left whole where the budget allows. Source: Li,
    Kadav, Durdanovic, Samet, Graf, *Pruning Filters for Efficient ConvNets*, ICLR 2017, section 3; docs/methods/l1.md
    says what differs.

    Attributes:
        prune_at: share of the epochs after which filters are removed, in (0, 1); the rest is fine-tuning.
        order: which filters go: ``"smallest"``, or ``"random"`` and ``"largest"``, the paper's own controls.
        seed: of the random order.
    """

    name: ClassVar[str] = "l1"
    prune_at: float = 0.5
    order: Literal["smallest", "random", "largest"] = "smallest"
    seed: int = 0

    def __post_init__(self) -> None:
        orders = ("smallest", "random", "largest")
        check(
            f"method {self.name}",
            {
                f"prune_at={self.prune_at}, expected a number in (0, 1)": 0 < self.prune_at < 1,
                f"order={self.order!r}, expected one of {orders}": self.order in orders,
            },
        )

    def last(self, epochs: int) -> int:
        """When filters are removed."""
        return epoch_at(self.prune_at, epochs, self.name)

    def start(self, task: Task) -> Course:
        """Fix the widths."""
        widths = one_ratio(task)
        task.generator.manual_seed(self.seed)

        def scores() -> Scores:
            norms = filter_norms(task.subject)
            if self.order == "random":
                return {name: torch.rand(len(norm), generator=task.generator) for name, norm in norms.items()}
            return norms if self.order == "smallest" else {name: -norm for name, norm in norms.items()}

        def decide(epoch: int) -> Keep | None:
            return strongest(scores(), widths) if epoch == task.last else None

        return Course(decide)
