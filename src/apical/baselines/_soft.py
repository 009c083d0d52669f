"""SoftFilterPruning: after every epoch the weakest filters are set to zero, and may come back (He et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from apical.baselines._choose import LEAST_FRACTION, sparing_streams, strongest
from apical.baselines._phases import check, epoch_at
from apical.baselines._scores import filter_norms, live_rows, writers
from apical.baselines._subject import Subject
from apical.baselines._uniform import uniform_keep
from apical.budget import Budget
from apical.structure import ExampleInputs, Structure


@dataclass(frozen=True)
class SoftConfig:
    """Options of `SoftFilterPruning`.

    Attributes:
        compact_epochs: how many of the last epochs train the network without its zeroed filters, at least 1.
        hard: remove the filters after the first epoch for good, the control that the paper calls hard pruning.
    """

    compact_epochs: int = 1
    hard: bool = False

    def __post_init__(self) -> None:
        check("soft", {f"compact_epochs={self.compact_epochs}, expected at least 1": self.compact_epochs >= 1})


class SoftFilterPruning:
    """Zeroes the filters with the smallest L2 norm after every epoch and keeps training all; removes them at the end.

        after each epoch:  W_f ← 0  for the filters f outside the k_g with the largest ‖W_f‖₂

    with one ratio for the widths k of all groups, residual streams left whole where the budget allows. Zeroed filters
    get gradients and grow again. Source: He, Kang, Dong, Fu, Yang, *Soft Filter Pruning for Accelerating Deep
    Convolutional Neural Networks*, IJCAI 2018, algorithm 1; docs/methods/soft.md says what differs.

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
        config: SoftConfig | None = None,
        *,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        self.config = config or SoftConfig()
        self._subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = self._subject.structure
        least = sparing_streams(self.structure, budget, LEAST_FRACTION, divisor)
        self.widths = uniform_keep(self.structure, budget, divisor, least=least)
        last = 0.0 if self.config.hard else 1 - self.config.compact_epochs / max(1, epochs)
        self._epoch, self._remove_after = 0, epoch_at(last, epochs, "soft")

    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's network; zero its weakest filters, or remove them if it is time."""
        record = self._subject.record()
        self._epoch += 1
        if self._epoch <= self._remove_after:
            keep = strongest(filter_norms(self._subject, order=2), self.widths)
            if self._epoch == self._remove_after:
                self._subject.resize_(keep)
                self._subject.release()
            else:
                self._zero(keep)
        return record

    def _zero(self, keep: dict[str, list[int]]) -> None:
        """Set what computes the other units to zero: weights and bias, not the normalisation after them."""
        for group in self.structure.groups:
            gone = torch.ones(group.size, dtype=torch.bool)
            gone[keep[group.name]] = False
            for rows in live_rows(self._subject, group, writers(self.structure, group)):
                rows.zero_(gone.nonzero().reshape(-1))

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
