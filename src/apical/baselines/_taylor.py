"""Taylor: gradual pruning while training, by the first-order effect of removing a unit (Molchanov et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apical._checks import check
from apical.baselines._choose import by_threshold, fewest
from apical.baselines._comparator import Course, Task, epoch_at
from apical.baselines._scores import gate_products, spread
from apical.budget import BoundBudget
from apical.structure import Keep


@dataclass(frozen=True)
class Taylor:
    """Removes a few units after each epoch, those whose gates the loss depends on least, until the budget is met.

        I_u = mean over steps of (Σ_gate site ⟨θ_u, ∂L/∂θ_u⟩)²

    the squared first-order change of the loss when unit u's gate goes from 1 to 0. Units of all groups are ranked
    together. Source: Molchanov, Mallya, Tyree, Frosio, Kautz, *Importance Estimation for Neural Network Pruning*, CVPR
    2019 (the gates' form of the first-order importance); docs/methods/taylor.md says what differs.

    Attributes:
        prune_from: when the cost begins to fall from that of the whole model, as a fraction of training.
        prune_until: when it reaches the budget; the rest of training is fine-tuning.
        least_fraction: every group keeps at least this share of its units, in [0, 1).
        random: remove random units instead, the control.
        seed: of the random order.
    """

    name: ClassVar[str] = "taylor"
    prune_from: float = 0.1
    prune_until: float = 0.6
    least_fraction: float = 0.1
    random: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            f"method {self.name}",
            {
                f"prune_from={self.prune_from} and prune_until={self.prune_until}, expected 0 <= from < until < 1": (
                    0 <= self.prune_from < self.prune_until < 1
                ),
                f"least_fraction={self.least_fraction}, expected a number in [0, 1)": 0 <= self.least_fraction < 1,
            },
        )

    def last(self, epochs: int) -> int:
        """When the budget is met."""
        return epoch_at(self.prune_until, epochs, self.name)

    def start(self, task: Task) -> Course:
        """Measure nothing yet."""
        structure, subject = task.structure, task.subject
        least = fewest(structure, self.least_fraction, task.divisor)
        bound = BoundBudget(task.budget, structure, minimum=least, fixed_blocks=True)
        first = min(task.last, max(1, round(self.prune_from * task.epochs)))
        task.generator.manual_seed(self.seed)
        squares: dict[str, Tensor] = {}  # sums over the steps of an epoch, of the present units

        def observe() -> None:
            for name, products in gate_products(subject).items():
                squares[name] = products.square() + squares.get(name, 0.0)

        def importance(name: str, units: int) -> Tensor:
            return torch.rand(units, generator=task.generator) if self.random else squares.get(name, torch.zeros(units))

        def scheduled(epoch: int) -> float:
            """Cost after an epoch as a fraction of the budget: linear from the whole model's to 1."""
            whole = bound.load(None)
            return whole + (1 - whole) * (epoch - first + 1) / (task.last - first + 1)

        def decide(epoch: int) -> Keep | None:
            if epoch < first:
                return None
            kept = subject.selection.keep
            scores = {g.name: spread(subject, g, importance(g.name, len(kept[g.name]))) for g in structure.groups}
            return by_threshold(bound, scores, least, scheduled(epoch), task.divisor)

        before_step = None if self.random else observe
        return Course(decide, begin_epoch=lambda _: squares.clear(), before_step=before_step)
