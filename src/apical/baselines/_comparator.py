"""One comparator for all rules: it owns the network, the epochs, the hooks and the state; a rule decides what stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from apical._checks import changed_since, fits, shown
from apical.baselines._subject import Subject
from apical.budget import Budget
from apical.budget._rounding import warn_of_idle_divisor
from apical.errors import CheckpointError, ConfigError
from apical.resizing._undisturbed import undisturbed
from apical.structure import ExampleInputs, Keep, Structure


@dataclass(frozen=True)
class Task:
    """What a rule is given when a run starts.

    Attributes:
        subject: the network. A rule may resize it when it starts.
        budget: what the final network may cost.
        last: number of the last epoch after which the network changes; afterwards it keeps its shape.
        epochs: number of all epochs.
        divisor: of widths.
        generator: for what the rule draws; the rule seeds it. It is saved with the run.
    """

    subject: Subject
    budget: Budget
    last: int
    epochs: int
    divisor: int
    generator: torch.Generator

    @property
    def structure(self) -> Structure:
        """Of the template."""
        return self.subject.structure


def _nothing(*_: object) -> None:
    """What most rules do at most times."""


@dataclass(frozen=True)
class Course:
    """What a rule does in one run.

    Attributes:
        decide: told how many epochs have ended, up to the task's last: the units that stay by group (all where a group
            is not named) if the network is to change, else None.
        begin_epoch: told how many epochs have ended, before every further one up to the last, also after resuming.
        before_step: before every optimizer step in these epochs, when the gradients are complete.
        after_step: after every optimizer step in these epochs; told the optimizer.
    """

    decide: Callable[[int], Keep | None] = _nothing
    begin_epoch: Callable[[int], None] = _nothing
    before_step: Callable[[], None] | None = None
    after_step: Callable[[Optimizer], None] | None = None


class Rule(Protocol):
    """A way to choose a network: a frozen dataclass of its options."""

    name: ClassVar[str]

    def last(self, epochs: int) -> int:
        """The number of the last epoch after which the network changes, of so many; 0 if it never does."""
        ...

    def start(self, task: Task) -> Course:
        """Begin a run.

        Raises:
            BudgetError: the budget cannot be met; the network is unchanged.
            ConfigError: the network has nothing that the rule could choose from.
        """
        ...


class Comparator:
    """Trains, prunes or grows a network as a rule decides, with the interface of `apical.Grower`.

    Args:
        rule: what decides: `Dense`, `Uniform`, `Final`, `L1`, `Slimming`, `Taylor` or `ISS`.
        model: the full-size model; it is resized in place.
        optimizer: its optimizer; None will do for rules that do nothing at its steps.
        example_inputs: arguments of one call with one example: a tensor, a tuple, or a dict of keyword arguments.
        budget: what the final network may cost.
        epochs: how many times `end_epoch` will be called in all; at least 2 where the rule changes it while it trains.
        divisor: widths are multiples of it, in groups of at least two such steps.
        copies: further models to resize alike.
        structure: of the model, if it is known already.

    Attributes:
        structure: of the template.
        subject: the network, and what of it is present.

    Raises:
        BudgetError: the budget cannot be met; the model is unchanged.
        ConfigError: there are too few epochs, no optimizer, or nothing that the rule could choose from; or the rule or
            divisor is none.
        TraceError: the model cannot be analysed.

    Example:
        >>> from apical.baselines import L1
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> method = Comparator(L1(prune_at=0.5), net, None, torch.zeros(1, 3), "50% macs", epochs=4)
        >>> [method.end_epoch()["widths"]["0"] for _ in range(4)]
        [8, 8, 4, 4]
    """

    def __init__(
        self,
        rule: Rule,
        model: nn.Module,
        optimizer: Optimizer | None,
        example_inputs: ExampleInputs,
        budget: Budget | str,
        epochs: int,
        *,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        limits = Budget.of(budget)
        if not fits(epochs, int) or epochs < 1:
            raise ConfigError(f"epochs must be a whole number of at least 1, got {shown(epochs)}")
        if isinstance(rule, type) or not callable(getattr(rule, "last", None)):
            raise ConfigError(f"rule must be a rule with its options, such as L1(prune_at=0.5), got {shown(rule)}")
        if not fits(divisor, int) or divisor < 1:
            raise ConfigError(f"divisor must be a whole number of at least 1, got {shown(divisor)}")
        self.rule = rule
        self._epoch, self._last = 0, rule.last(epochs)
        self.subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = self.subject.structure
        warn_of_idle_divisor((g.size for g in self.structure.groups), divisor)
        self._generator = torch.Generator()
        self._course = rule.start(Task(self.subject, limits, self._last, epochs, divisor, self._generator))
        self._hooks = self._listen(optimizer)
        self._begin_epoch()

    @undisturbed()
    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's network; change it if the rule says so.

        Raises:
            ResizeError: the model is not as the comparator left it, or cannot be resized as it is now.
        """
        if self._epoch < self._last:
            self.subject.check_shapes()
        record = self.subject.record()
        self._epoch += 1
        if self._epoch <= self._last:
            keep = self._course.decide(self._epoch)
            if keep is not None:
                self.subject.resize_(keep)
        self._begin_epoch()
        return record

    def finish(self) -> None:
        """Remove the hooks and release what was removed."""
        while self._hooks:
            self._hooks.pop().remove()
        self.subject.release()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the rule and its options, the generator and the present network, in tensors and containers."""
        return {
            "epoch": self._epoch,
            "rule": self.rule.name,
            "options": dataclasses.asdict(self.rule),  # type: ignore[call-overload]
            "generator": self._generator.get_state(),
            **self.subject.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; load the state dicts of model and optimizer after this.

        Raises:
            CheckpointError: the state belongs to another model, another rule or other options; or it was changed since
                it was saved, and model and comparator are then to be made anew.
        """
        mend = "Build model, optimizer and comparator anew; these are half restored"
        with changed_since("the saved state of a comparator", mend):
            mine, saved = self.state_dict(), [state.get(name) for name in ("rule", "options")]
            if saved != [mine["rule"], mine["options"]]:
                raise CheckpointError(
                    f"the saved run went by the rule {saved[0]} with the options {saved[1]}, this one goes by "
                    f"{self.rule}"
                )
            epoch = state["epoch"]
            if not fits(epoch, int) or epoch < 0:
                raise CheckpointError(f"the saved state has the epoch {shown(epoch)}, expected a number of epochs")
            self.subject.load_state_dict(state)
            self._epoch = epoch
            self._generator.set_state(state["generator"])
            self._begin_epoch()

    def _listen(self, optimizer: Optimizer | None) -> list[RemovableHandle]:
        before, after = self._course.before_step, self._course.after_step
        if before is None and after is None:
            return []
        if optimizer is None:
            raise ConfigError(f"method {self.rule.name} acts at the steps of an optimizer, got None; pass the model's")
        return [
            optimizer.register_step_pre_hook(lambda *_: None if before is None else before()),
            optimizer.register_step_post_hook(lambda *_: None if after is None else after(optimizer)),
        ]

    def _begin_epoch(self) -> None:
        if self._epoch < self._last:
            self._course.begin_epoch(self._epoch)
        else:
            self.finish()


def epoch_at(fraction: float, epochs: int, method: str) -> int:
    """The epoch after which a share of training is done, with at least one epoch before and one after it.

    Example:
        >>> epoch_at(0.5, 30, "l1"), epoch_at(0.01, 30, "l1"), epoch_at(0.99, 30, "l1")
        (15, 1, 29)
    """
    if epochs < 2:
        raise ConfigError(
            f"method {method}: got epochs={epochs}; expected at least 2, one before the network is pruned and one after"
        )
    return min(epochs - 1, max(1, round(fraction * epochs)))
