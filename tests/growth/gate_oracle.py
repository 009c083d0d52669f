"""The slow, explicit way: the gates multiply the parameters inside the forward pass of the full-size template."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from apical import Grower
from apical.growth import ScsConfig
from apical.resizing._indexing import TemplateMap, scatter_
from apical.resizing._install import lookup
from apical.resizing._selection import Selection
from growth.cases import built, grown, loss_of


def prepared(name: str, **options: Any) -> tuple[nn.Module, nn.Module, Optimizer, Grower]:
    """The template, the live model, its optimizer and Grower, all in float64."""
    template = built(name).double()
    model = copy.deepcopy(template)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return template, model, optimizer, grown(name, model, optimizer, **options)


def loss(name: str, seed: int) -> Callable[[Any], Tensor]:
    return lambda model: loss_of(model, name, seed, torch.float64)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> None:
    scale = b.abs().max()
    assert scale > 0
    assert (a - b).abs().max() <= tolerance * scale


class GatedTemplate:
    """A full-size network in which every unit and block is multiplied by a gate where it sits.

    Absent components have q = 0 and arbitrary weights.

    Args:
        template: the network before it was seeded.
        grower: whose live network is taken over.
    """

    def __init__(self, template: nn.Module, grower: Grower) -> None:
        self.state = grower.state_dict()
        self.structure = grower.structure
        self.shifts = isinstance(grower.config, ScsConfig)  # whether they are gated in blocks
        self.live = self.state["components"]["live"]
        self.model = _full_size(template, grower)
        self.effective = {n: p.detach().clone() for n, p in self.model.named_parameters()}  # what the live network has

    def _gates(self, gates: Tensor, shifts: bool = True) -> list[tuple[str, Tensor]]:
        """Factors of each gated parameter, shaped to multiply it; of the last shift of a block only if ``shifts``."""
        found, offset = [], 0
        for group in self.structure.groups:
            for part in group.gate_site:
                shape = self.structure.tensors[part.tensor].shape
                along = torch.ones(shape[part.dim], dtype=gates.dtype)
                for unit, positions in enumerate(part.positions):
                    along = along.index_fill(0, torch.tensor(positions), 0) + (
                        torch.zeros(shape[part.dim], dtype=gates.dtype).index_fill(0, torch.tensor(positions), 1)
                        * gates[offset + unit]
                    )
                found.append((part.tensor, along.reshape([-1 if d == part.dim else 1 for d in range(len(shape))])))
            offset += group.size
        for i, block in enumerate(self.structure.blocks):
            scales = [n for n in block.gate_site if self.shifts or not n.endswith("bias")]  # a shift sees no input
            found += [(name, gates[offset + i]) for name in scales or block.gate_site]
        return found

    def products(self, loss: Callable[[Any], Tensor]) -> Tensor:
        """∂L/∂m at m = 1 by autograd, where blocks keep their last shift.

        The loss is a function of something that is called like the model.
        """
        gates = self.live.to(torch.float64).requires_grad_()
        return torch.autograd.grad(self._loss(loss, self.effective, gates, shifts=False), gates)[0] * self.live

    def score_gradient(self, loss: Callable[[Any], Tensor]) -> Tensor:
        """∂L/∂s by autograd, with gates q σ(β s): the scores and temperatures are those of the paper's version."""
        scores, beta = self.state["components"]["values"].clone().requires_grad_(), self.state["beta"]
        theta = dict(self.effective)
        with torch.no_grad():  # the live network holds m θ; the template holds θ
            for name, gate in self._gates(torch.where(self.live, torch.sigmoid(beta * scores), 1.0)):
                theta[name] = theta[name] / gate
        return torch.autograd.grad(self._loss(loss, theta, self.live * torch.sigmoid(beta * scores)), scores)[0]

    def _loss(
        self, loss: Callable[[Any], Tensor], theta: dict[str, Tensor], gates: Tensor, shifts: bool = True
    ) -> Tensor:
        gated = dict(theta)
        for name, gate in self._gates(gates, shifts):
            gated[name] = gated[name] * gate
        return loss(lambda *inputs: functional_call(self.model, gated, inputs))


def _full_size(template: nn.Module, grower: Grower) -> nn.Module:
    """The template with the live network's weights at their places."""
    full, state = copy.deepcopy(template).train(), grower.state_dict()
    selection = Selection({k: tuple(v) for k, v in state["keep"].items()}, frozenset(state["skip"]))
    places = TemplateMap(grower.structure)
    with torch.no_grad():
        for name, spec in grower.structure.tensors.items():
            if spec.is_parameter and places.present(name, selection):
                live = lookup(grower.model, places.live_names(name, selection)[0])
                scatter_(lookup(full, name), places.index(name, selection), live.detach())
    return full
