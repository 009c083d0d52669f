"""L1: train, remove the filters with the smallest weights, fine-tune (Li et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from apical.baselines._choose import LEAST_FRACTION, Scores, sparing_streams, strongest
from apical.baselines._phases import check, epoch_at, is_fraction
from apical.baselines._scores import filter_norms
from apical.baselines._subject import Subject
from apical.baselines._uniform import uniform_keep
from apical.budget import Budget
from apical.structure import ExampleInputs, Structure


@dataclass(frozen=True)
class L1Config:
    """Options of `L1`.

    Attributes:
        prune_at: share of the epochs after which filters are removed, in (0, 1); the rest is fine-tuning.
        order: which filters go: ``"smallest"``, or ``"random"`` and ``"largest"``, the paper's own controls.
        seed: of the random order.
    """

    prune_at: float = 0.5
    order: Literal["smallest", "random", "largest"] = "smallest"
    seed: int = 0

    def __post_init__(self) -> None:
        orders = ("smallest", "random", "largest")
        check(
            "l1",
            {
                f"prune_at={self.prune_at}, expected a number in (0, 1)": is_fraction(self.prune_at),
                f"order={self.order!r}, expected one of {orders}": self.order in orders,
            },
        )


class L1:
    """Trains the whole model, removes once the filters with the smallest L1 norm, and trains on.

        s_f = Σ |W_f|,   the k_g filters of group g with the largest s stay

    with one ratio for the widths k of all groups, residual streams left whole where the budget allows. Source: Li,
    Kadav, Durdanovic, Samet, Graf, *Pruning Filters for Efficient ConvNets*, ICLR 2017, section 3; docs/methods/l1.md
    says what differs.

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
        optimizer: Optimizer | None,
        example_inputs: ExampleInputs,
        budget: Budget | str,
        epochs: int,
        config: L1Config | None = None,
        *,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        self.config = config or L1Config()
        self._subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = self._subject.structure
        least = sparing_streams(self.structure, budget, LEAST_FRACTION, divisor)
        self.widths = uniform_keep(self.structure, budget, divisor, least=least)
        self._epoch, self._prune_after = 0, epoch_at(self.config.prune_at, epochs, "l1")

    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's network; remove filters if it is time."""
        record = self._subject.record()
        self._epoch += 1
        if self._epoch == self._prune_after:
            self._subject.resize_(strongest(self._scores(), self.widths))
            self._subject.release()
        return record

    def _scores(self) -> Scores:
        norms = filter_norms(self._subject, order=1)
        if self.config.order == "random":
            generator = torch.Generator().manual_seed(self.config.seed)
            return {name: torch.rand(len(norm), generator=generator) for name, norm in norms.items()}
        return norms if self.config.order == "smallest" else {name: -norm for name, norm in norms.items()}

    def finish(self) -> None:
        """Release what was removed."""
        self._subject.release()

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the present shape."""
        return {"epoch": self._epoch, **self._subject.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both; load the state dicts of model and optimizer after this.

        Raises:
            CheckpointError: the state belongs to another model.
        """
        self._subject.load_state_dict(state)
        self._epoch = state["epoch"]
