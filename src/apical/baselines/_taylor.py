"""Taylor: gradual pruning while training, by the first-order effect of removing a unit (Molchanov et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.baselines._choose import Scores, by_threshold, fewest
from apical.baselines._phases import check, epoch_at
from apical.baselines._scores import gate_products, spread
from apical.baselines._subject import Subject
from apical.budget import BoundBudget, Budget
from apical.structure import ExampleInputs, Structure


@dataclass(frozen=True)
class TaylorConfig:
    """Options of `Taylor`. Fractions of time count from 0 (start) to 1 (end of training).

    Attributes:
        prune_from: when the cost begins to fall from that of the whole model.
        prune_until: when it reaches the budget; the rest of training is fine-tuning.
        least_fraction: every group keeps at least this share of its units, in [0, 1).
        random: remove random units instead, the control.
        seed: of the random order.
    """

    prune_from: float = 0.1
    prune_until: float = 0.6
    least_fraction: float = 0.1
    random: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check(
            "taylor",
            {
                f"prune_from={self.prune_from} and prune_until={self.prune_until}, expected 0 <= from < until < 1": (
                    0 <= self.prune_from < self.prune_until < 1
                ),
                f"least_fraction={self.least_fraction}, expected a number in [0, 1)": 0 <= self.least_fraction < 1,
            },
        )


class Taylor:
    """Removes a few units after each epoch, those whose gates the loss depends on least, until the budget is met.

        I_u = mean over steps of (Σ_gate site ⟨θ_u, ∂L/∂θ_u⟩)²

    the squared first-order change of the loss when unit u's gate goes from 1 to 0. Units of all groups are ranked
    together. Source: Molchanov, Mallya, Tyree, Frosio, Kautz, *Importance Estimation for Neural Network Pruning*, CVPR
    2019 (the gates' form of the first-order importance); docs/methods/taylor.md says what differs.

    Args:
        model: the full-size model; it is resized in place.
        optimizer: its optimizer.
        example_inputs: arguments of one call with one example: a tensor, a tuple, or a dict of keyword arguments.
        budget: what the final network may cost.
        epochs: how many times `end_epoch` will be called in all, at least 2.
        config: the options.
        divisor: every width is a multiple of it.
        copies: further models to resize alike.
        structure: of the model, if it is known already.

    Raises:
        BudgetError: the budget cannot be met; the model is unchanged.
        ConfigError: there are too few epochs.
        TraceError: the model cannot be analysed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        example_inputs: ExampleInputs,
        budget: Budget | str,
        epochs: int,
        config: TaylorConfig | None = None,
        *,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        self.config, self._divisor = config or TaylorConfig(), divisor
        self._epoch, self._last = 0, epoch_at(self.config.prune_until, epochs, "taylor")
        self._first = min(self._last, max(1, round(self.config.prune_from * epochs)))
        self._subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = self._subject.structure
        self._least = fewest(self.structure, self.config.least_fraction, divisor)
        self._bound = BoundBudget(Budget.of(budget), self.structure, minimum=self._least, fixed_blocks=True)
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._forget()
        self._hook = optimizer.register_step_pre_hook(self._observe)

    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's network; remove the units that matter least if it is time."""
        record = self._subject.record()
        self._epoch += 1
        if self._first <= self._epoch <= self._last:
            keep = by_threshold(self._bound, self._scores(), self._least, self._scheduled(), self._divisor)
            self._subject.resize_(keep)
        self._forget()
        return record

    def _scheduled(self) -> float:
        """Cost after this epoch as a fraction of the budget: linear from the whole model's to 1."""
        whole = self._bound.load(None)
        done = (self._epoch - self._first + 1) / (self._last - self._first + 1)
        return whole + (1 - whole) * done

    def _scores(self) -> Scores:
        kept = self._subject.selection.keep
        squares = {name: self._squares.get(name, torch.zeros(len(units))) for name, units in kept.items()}
        if self.config.random:
            squares = {name: torch.rand(len(units), generator=self._generator) for name, units in kept.items()}
        return {group.name: spread(self._subject, group, squares[group.name]) for group in self.structure.groups}

    def _observe(self, *_: Any) -> None:
        """Add a step's squared products, just before the optimizer steps."""
        if self._epoch < self._last and not self.config.random:
            for name, products in gate_products(self._subject).items():
                self._squares[name] = products.square() + self._squares.get(name, 0.0)

    def _forget(self) -> None:
        self._squares: dict[str, Tensor] = {}

    def finish(self) -> None:
        """Remove the hook and release what was removed."""
        self._hook.remove()
        self._subject.release()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the generator and the present shape."""
        return {"epoch": self._epoch, "generator": self._generator.get_state(), **self._subject.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; load the state dicts of model and optimizer after this.

        Raises:
            CheckpointError: the state belongs to another model.
        """
        self._subject.load_state_dict(state)
        self._epoch = state["epoch"]
        self._generator.set_state(state["generator"])
        self._forget()
