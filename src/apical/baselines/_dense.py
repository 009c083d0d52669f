"""What is no method: the whole template, and the architecture that another run ended with, trained as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from apical.baselines._subject import Subject, network_record
from apical.errors import CheckpointError, ConfigError
from apical.resizing import trace
from apical.structure import ExampleInputs, Structure


class Dense:
    """Changes nothing, and reports what training the whole model costs.

    Args:
        model: the model.
        example_inputs: arguments of one call with one example: a tensor, a tuple, or a dict of keyword arguments.
        structure: of the model, if it is known already.

    Raises:
        TraceError: the model cannot be analysed.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> Dense(net, torch.zeros(1, 3)).end_epoch()["macs_fraction"]
        1.0
    """

    def __init__(self, model: nn.Module, example_inputs: ExampleInputs, structure: Structure | None = None) -> None:
        self.structure = trace(model, example_inputs) if structure is None else structure

    def end_epoch(self) -> dict[str, Any]:
        """The cost of the whole model."""
        return network_record(self.structure, {})

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Final:
    """Gives the freshly built model the widths and blocks of a finished run before the first step, then stays.

    Every group keeps its first units, with the weights that they were initialised with. It is trained for the same
    epochs (``final-same-epochs``) or, as recipes and `apical compare` arrange, for as many as cost the same training
    MACs (``final-same-macs``).

    Args:
        model: the full-size model; it is resized in place.
        optimizer: its optimizer.
        example_inputs: arguments of one call with one example: a tensor, a tuple, or a dict of keyword arguments.
        widths: of every group that is there, by name, as in a run's ``summary.json``.
        skip: blocks that are left out.
        copies: further models to resize alike.
        structure: of the model, if it is known already.

    Raises:
        ConfigError: the widths are those of another model.
        TraceError: the model cannot be analysed.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> Final(net, None, torch.zeros(1, 3), {"0": 5}).end_epoch()["widths"]
        {'0': 5}
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        example_inputs: ExampleInputs,
        widths: Mapping[str, int],
        skip: Sequence[str] = (),
        *,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        self._subject = Subject(model, optimizer, example_inputs, copies, structure)
        self.structure = self._subject.structure
        full = {group.name: group.size for group in self.structure.groups}
        needed = self.structure.widths(skip=[block.name for block in self.structure.blocks if block.name in skip])
        known = all(1 <= width <= full.get(name, 0) for name, width in widths.items())
        if not known or not widths.keys() >= needed.keys():
            raise ConfigError(
                f"the final architecture has the groups {dict(widths)}, this model has {full}: it comes from a run "
                "with another model"
            )
        self.widths = dict(widths)
        self._subject.resize_({name: range(width) for name, width in widths.items()}, skip)
        self._subject.release()

    def end_epoch(self) -> dict[str, Any]:
        """The cost of the network."""
        return self._subject.record()

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """The shape, to recognise another run's."""
        return {"widths": self.widths, "skip": sorted(self._subject.selection.skip)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore: the shape was given.

        Raises:
            CheckpointError: it was another when the state was saved.
        """
        if state != self.state_dict():
            raise CheckpointError(f"the saved run had the shape {state}, this one has {self.state_dict()}")
