"""Network slimming: L1 on the normalisation's scales, one threshold for all layers, fine-tune (Liu et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from apical.baselines._choose import Scores, by_threshold, sparing_streams
from apical.baselines._phases import check, epoch_at, is_fraction
from apical.baselines._scores import scales, spread
from apical.baselines._subject import Rows, Subject
from apical.budget import BoundBudget, Budget
from apical.structure import ExampleInputs, Structure


@dataclass(frozen=True)
class SlimmingConfig:
    """Options of `Slimming`.

    Attributes:
        penalty: λ, weight of the L1 norm of the scales; 0 for the control without it.
        prune_at: share of the epochs after which channels are removed, in (0, 1); the rest is fine-tuning.
        least_fraction: every group keeps at least this share of its channels, in [0, 1).
    """

    penalty: float = 1e-4
    prune_at: float = 0.5
    least_fraction: float = 0.1

    def __post_init__(self) -> None:
        check(
            "slimming",
            {
                f"penalty={self.penalty}, expected at least 0": self.penalty >= 0,
                f"prune_at={self.prune_at}, expected a number in (0, 1)": is_fraction(self.prune_at),
                f"least_fraction={self.least_fraction}, expected a number in [0, 1)": 0 <= self.least_fraction < 1,
            },
        )


class Slimming:
    """Trains with an L1 penalty on the BatchNorm scales γ, removes the channels below one threshold, and trains on.

        ∂/∂γ (task loss + λ Σ |γ|) = ∂(task loss)/∂γ + λ sign γ,   s_c = mean over the channel's norms of |γ_c|

    The threshold is the one that meets the budget. Groups without a normalisation are penalised and scored at their
    whole gate site. Source: Liu, Li, Shen, Huang, Yan, Zhang, *Learning Efficient Convolutional Networks through
    Network Slimming*, ICCV 2017, equation 1; docs/methods/slimming.md says what differs.

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
        config: SlimmingConfig | None = None,
        *,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        self.config, self._divisor = config or SlimmingConfig(), divisor
        self._epoch, self._prune_after = 0, epoch_at(self.config.prune_at, epochs, "slimming")
        self._subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = self._subject.structure
        self._least = sparing_streams(self.structure, budget, self.config.least_fraction, divisor)
        self._bound = BoundBudget(Budget.of(budget), self.structure, minimum=self._least, fixed_blocks=True)
        self._penalised = self._scale_parameters()
        self._hook = optimizer.register_step_pre_hook(self._penalise)

    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's network; remove channels if it is time."""
        record = self._subject.record()
        self._epoch += 1
        if self._epoch == self._prune_after:
            self._subject.resize_(by_threshold(self._bound, self._scores(), self._least, divisor=self._divisor))
            self._subject.release()
            self._penalised = []
        return record

    def _scores(self) -> Scores:
        found = {}
        for group in self.structure.groups:
            sizes = [rows.of(rows.tensor).abs().mean(1) for rows in scales(self._subject, group)]
            found[group.name] = spread(self._subject, group, torch.stack(sizes).mean(0))
        return found

    def _scale_parameters(self) -> list[Rows]:
        """Each scale once, though several groups may share it."""
        every = [rows for group in self.structure.groups for rows in scales(self._subject, group)]
        return list({id(rows.tensor): rows for rows in every}.values())

    @torch.no_grad()
    def _penalise(self, *_: Any) -> None:
        """Add the penalty's gradient, just before the optimizer steps."""
        for rows in self._penalised:
            if rows.tensor.grad is not None:
                rows.tensor.grad.add_(rows.tensor.sign(), alpha=self.config.penalty)

    def finish(self) -> None:
        """Remove the hook and release what was removed."""
        self._hook.remove()
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
        self._penalised = self._scale_parameters() if self._epoch < self._prune_after else []
