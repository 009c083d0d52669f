"""What is no method: the whole template, and the architecture that another run ended with, trained as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from apical._checks import check, fits, shown
from apical.baselines._comparator import Course, Task
from apical.errors import ConfigError


@dataclass(frozen=True)
class Dense:
    """Changes nothing, whatever the budget: what training the whole model costs.

    Example:
        >>> import torch
        >>> from apical.baselines import Comparator
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> Comparator(Dense(), net, None, torch.zeros(1, 3), "50% macs", epochs=1).end_epoch()["macs_fraction"]
        1.0
    """

    name: ClassVar[str] = "dense"

    def last(self, epochs: int) -> int:  # noqa: ARG002
        """No epoch changes the network."""
        return 0

    def start(self, task: Task) -> Course:  # noqa: ARG002
        """Leave it as it is."""
        return Course()


@dataclass(frozen=True)
class Final:
    """Gives the freshly built model the widths and blocks of a finished run before the first step, then stays.

    Every group keeps its first units, with the weights that they were initialised with. It is trained for the same
    epochs (``final-same-epochs``) or, as recipes and `apical compare` arrange, for as many as cost the same training
    MACs (``final-same-macs``). The budget is that run's, and not looked at again.

    Attributes:
        widths: of every group that is there, by name, as in a run's ``summary.json``.
        skip: blocks that are left out.

    Example:
        >>> import torch
        >>> from apical.baselines import Comparator
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> method = Comparator(Final({"0": 5}), net, None, torch.zeros(1, 3), "50% macs", epochs=1)
        >>> method.end_epoch()["widths"]
        {'0': 5}
    """

    name: ClassVar[str] = "final"
    widths: Mapping[str, int]
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        widths = isinstance(self.widths, Mapping) and all(fits(width, int) for width in self.widths.values())
        check(
            f"method {self.name}",
            {
                f"widths={shown(self.widths)}, expected a whole number for each name": widths,
                f"skip={shown(self.skip)}, expected names": fits(self.skip, tuple[str, ...]),
            },
        )

    def last(self, epochs: int) -> int:  # noqa: ARG002
        """No epoch changes the network."""
        return 0

    def start(self, task: Task) -> Course:
        """Give the model that architecture.

        Raises:
            ConfigError: the widths are those of another model.
        """
        structure = task.structure
        full = {group.name: group.size for group in structure.groups}
        needed = structure.widths(skip=[block.name for block in structure.blocks if block.name in self.skip])
        known = all(1 <= width <= full.get(name, 0) for name, width in self.widths.items())
        if not known or not self.widths.keys() >= needed.keys():
            raise ConfigError(
                f"the final architecture has the groups {dict(self.widths)}, this model has {full}: it comes from a "
                "run with another model"
            )
        task.subject.resize_({name: range(width) for name, width in self.widths.items()}, self.skip)
        return Course()
