"""AutoGrow: depth grows from one block per stage, new blocks randomly initialised (Wen et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from apical.baselines._phases import check, epoch_at
from apical.baselines._subject import Subject
from apical.baselines._uniform import uniform_keep
from apical.budget import BoundBudget, Budget
from apical.errors import ConfigError
from apical.structure import ExampleInputs, Structure, lies_in


@dataclass(frozen=True)
class AutoGrowConfig:
    """Options of `AutoGrow`.

    Attributes:
        grow_until: share of the epochs in which blocks are added, evenly spread, in (0, 1].
        birth: ``"random"``, as initialised, which the paper found best; ``"zero"``: a new block starts as the identity.
    """

    grow_until: float = 0.5
    birth: Literal["random", "zero"] = "random"

    def __post_init__(self) -> None:
        check(
            "autogrow",
            {
                f"grow_until={self.grow_until}, expected a number in (0, 1]": 0 < self.grow_until <= 1,
                f"birth={self.birth!r}, expected 'random' or 'zero'": self.birth in ("random", "zero"),
            },
        )


class AutoGrow:
    """Starts with the blocks that cannot be left out and adds one block to one stage after another, widths fixed.

    The final depth is the largest that the budget pays for at almost the model's own widths: blocks are added in turn
    until the network would cost the budget, and the widths of that network are scaled to meet it exactly. Source:
    Wen, Yan, Chen, Li, *AutoGrow: Automatic Layer Growing in Deep Convolutional Networks*, KDD 2020;
    docs/methods/autogrow.md says what differs.

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
        ConfigError: the model has no block that can be left out, or there are too few epochs.
        TraceError: the model cannot be analysed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        example_inputs: ExampleInputs,
        budget: Budget | str,
        epochs: int,
        config: AutoGrowConfig | None = None,
        *,
        divisor: int = 1,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        self.config = config or AutoGrowConfig()
        self._epoch, self._grow_until = 0, epoch_at(self.config.grow_until, epochs, "autogrow")
        self._subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = self._subject.structure
        if not self.structure.blocks:
            raise ConfigError(
                f"method autogrow: {type(model).__name__} has no residual block that can be left out; autogrow needs "
                "a residual network, the other methods do not"
            )
        turn = blocks_in_turn(self.structure)
        bound = BoundBudget(Budget.of(budget), self.structure)
        needed = next((n for n in range(len(turn) + 1) if bound.load(None, turn[n:]) >= 1), len(turn))
        self._order, self._never = turn[:needed], turn[needed:]
        self.widths = uniform_keep(self.structure, budget, divisor, self._never)
        self._present = self._due(0)
        self._resize()

    def end_epoch(self) -> dict[str, Any]:
        """Record the epoch's network; add blocks if it is time."""
        record = self._subject.record()
        self._epoch += 1
        if self._due(self._epoch) > self._present:
            born, self._present = self._order[self._present : self._due(self._epoch)], self._due(self._epoch)
            self._resize()
            if self.config.birth == "zero":
                self._silence(born)
        return record

    def _due(self, epoch: int) -> int:
        """How many blocks should have been added after so many epochs."""
        return min(len(self._order), len(self._order) * epoch // self._grow_until)

    def _resize(self) -> None:
        keep = {name: range(width) for name, width in self.widths.items()}
        self._subject.resize_(keep, [*self._order[self._present :], *self._never])

    def _silence(self, born: Sequence[str]) -> None:
        """Set the last affine of new blocks to zero, so that each starts as the identity."""
        for block in self.structure.blocks:
            for name in block.gate_site if block.name in born else ():
                self._subject.model.get_parameter(name).data.zero_()

    def finish(self) -> None:
        """Release what waits."""
        self._subject.release()

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the number of blocks, and the present shape."""
        return {"epoch": self._epoch, "present": self._present, **self._subject.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; load the state dicts of model and optimizer after this.

        Raises:
            CheckpointError: the state belongs to another model.
        """
        self._subject.load_state_dict(state)
        self._epoch, self._present = state["epoch"], state["present"]


def blocks_in_turn(structure: Structure) -> list[str]:
    """Skippable blocks, one of each stage in turn. A stage is the container that holds the blocks; nested blocks are
    left to the outermost one.

    Example:
        >>> import torch, apical
        >>> from apical import models
        >>> blocks_in_turn(apical.trace(models.CifarResNet(20, width=4), torch.zeros(1, 3, 8, 8)))
        ['layer1.0', 'layer2.1', 'layer3.1', 'layer1.1', 'layer2.2', 'layer3.2', 'layer1.2']
    """
    names = [block.name for block in structure.blocks]
    outermost = [n for n in names if not any(n != other and lies_in(n, other) for other in names)]
    stages: dict[str, list[str]] = {}
    for name in outermost:
        stages.setdefault(name.rpartition(".")[0], []).append(name)
    return [name for row in zip_longest(*stages.values()) for name in row if name is not None]
