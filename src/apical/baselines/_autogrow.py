"""AutoGrow: depth grows from one block per stage, new blocks randomly initialised (Wen et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, Literal

from apical._checks import check
from apical.baselines._comparator import Change, Course, Task, epoch_at
from apical.baselines._uniform import uniform_keep
from apical.budget import BoundBudget, Budget
from apical.errors import ConfigError
from apical.structure import Structure
from apical.structure._cost import lies_in


@dataclass(frozen=True)
class AutoGrow:
    """Starts with the blocks that cannot be left out and adds one block to one stage after another, widths fixed.

    The final depth is the largest that the budget pays for at almost the model's own widths: blocks are added in turn
    until the network would cost the budget, and the widths of that network are scaled to meet it exactly. Source:
    Wen, Yan, Chen, Li, *AutoGrow: Automatic Layer Growing in Deep Convolutional Networks*, KDD 2020;
    docs/methods/autogrow.md says what differs.

    Attributes:
        grow_until: share of the epochs in which blocks are added, evenly spread, in (0, 1].
        birth: ``"random"``, as initialised, which the paper found best; ``"zero"``: a new block starts as the identity.
    """

    name: ClassVar[str] = "autogrow"
    grow_until: float = 0.5
    birth: Literal["random", "zero"] = "random"

    def __post_init__(self) -> None:
        check(
            f"method {self.name}",
            {
                f"grow_until={self.grow_until}, expected a number in (0, 1]": 0 < self.grow_until <= 1,
                f"birth={self.birth!r}, expected 'random' or 'zero'": self.birth in ("random", "zero"),
            },
        )

    def last(self, epochs: int) -> int:
        """When all blocks have been added."""
        return epoch_at(self.grow_until, epochs, self.name)

    def start(self, task: Task) -> Course:
        """Shrink to the first network.

        Raises:
            BudgetError: the budget cannot be met; the network is unchanged.
            ConfigError: the network has no block that can be left out.
        """
        structure, subject = task.structure, task.subject
        if not structure.blocks:
            raise ConfigError(
                f"method autogrow: {type(subject.model).__name__} has no residual block that can be left out; autogrow "
                "needs a residual network, the other methods do not"
            )
        turn = blocks_in_turn(structure)
        bound = BoundBudget(Budget.of(task.budget), structure)
        needed = next((n for n in range(len(turn) + 1) if bound.load(None, turn[n:]) >= 1), len(turn))
        order, never = turn[:needed], turn[needed:]
        widths = uniform_keep(structure, task.budget, task.divisor, never)

        def network(epoch: int) -> Change:
            present = min(len(order), len(order) * epoch // task.last)
            return Change({name: range(width) for name, width in widths.items()}, [*order[present:], *never])

        def decide(epoch: int) -> Change | None:
            change = network(epoch)
            return None if set(change.skip) == set(subject.selection.skip) else change

        if self.birth == "zero":  # their last affine, while they wait: each is born as the identity
            for block in structure.blocks:
                for name in block.gate_site if block.name in order else ():
                    subject.model.get_parameter(name).data.zero_()
        first = network(0)
        subject.resize_(first.keep, first.skip)
        return Course(decide)


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
