"""The whole template, trained as it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from apical.baselines._subject import network_record
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
