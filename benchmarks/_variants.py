"""What the ablation adds to growth and the library does not do, as hooks around a `Grower`.

Each addition is made from a Grower and the optimizer of its model. `restructured` is called after every
`Grower.end_epoch`, `finish` once, after the last; `Extended` does both. The network is plain at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from _live_network import GateSite, across, gate_sites, gates_of, has_ended, owned
from torch import Tensor, nn
from torch.optim import Optimizer

import apical
from apical.gates import gate_ratio, relax
from apical.resizing import lookup
from apical.structure import lies_in


class Addition(Protocol):
    """Something that acts beside a Grower."""

    def restructured(self) -> None:
        """The Grower ended an epoch, and may have changed the network."""

    def finish(self) -> None:
        """Training is over: take the hooks away."""


class Extended:
    """A Grower with an addition, called like a Grower."""

    def __init__(self, grower: apical.Grower, addition: Addition) -> None:
        self.grower, self.addition = grower, addition

    def end_epoch(self) -> Any:
        record = self.grower.end_epoch()
        self.addition.restructured()
        return record

    def finish(self) -> None:
        self.addition.finish()
        self.grower.finish()


class GateRescaling:
    """Scores and temperatures also rescale what their gates multiply: θ_eff ← θ_eff m_new / m_old.

    With θ_eff = σ(β s) θ, the model then holds what gates within the forward pass would make of θ. After every step
    for the scores, after every restructuring for the temperatures. A unit has the weights that it is born with as its
    θ_eff, so that births stay as they are; one that comes back makes up for what its gate did in the meantime.
    """

    def __init__(self, grower: apical.Grower, optimizer: Optimizer) -> None:
        self.grower = grower
        self._scores, self._beta = gates_of(grower)  # as they are contained in θ_eff
        self._lived, self._sites = grower.components.lived.clone(), gate_sites(grower)
        self._hook = optimizer.register_step_post_hook(lambda *_: self._rescale())

    def restructured(self) -> None:
        scores, beta = gates_of(self.grower)
        self._took(self.grower.components.lived & ~self._lived, scores, beta)
        self._lived, self._sites = self.grower.components.lived.clone(), gate_sites(self.grower)
        self._rescale()

    def finish(self) -> None:
        self._hook.remove()

    def _took(self, which: Tensor, scores: Tensor, beta: Tensor) -> None:
        """Note that the weights of some components contain these gates."""
        self._scores, self._beta = torch.where(which, scores, self._scores), torch.where(which, beta, self._beta)

    @torch.no_grad()
    def _rescale(self) -> None:
        scores, beta = gates_of(self.grower)
        ratio = gate_ratio(self._scores, self._beta, scores, beta)
        for site in self._sites:
            parameter = lookup(self.grower.model, site.name)
            parameter.mul_(across(site.spread(ratio), parameter, site.dim))
        self._took(self.grower.components.live, scores, beta)


class GateInForward:
    """Outputs of the norms at the gate sites are multiplied by m = σ(β s) until growth ends, then θ ← m θ.

    The Grower's score gradient stays right, as ⟨θ, ∂L/∂θ⟩ = ⟨m θ, ∂L/∂(m θ)⟩. After the last restructuring (or at the
    end) the gates are folded into scale and shift of the norms, which changes no output, and the hooks are gone.

    Raises:
        TypeError: a gate sits elsewhere than on scale and shift of a batch norm.
    """

    def __init__(self, grower: apical.Grower, optimizer: Optimizer) -> None:
        self.grower = grower
        self._sites: dict[str, list[GateSite]] = {}
        self._factors: dict[str, Tensor] = {}
        self._handles: list[Any] = [optimizer.register_step_post_hook(lambda *_: self._update())]
        self._forward: list[Any] = []
        self._attach()

    def restructured(self) -> None:
        if not self._handles:
            return  # folded
        self._attach()
        if has_ended(self.grower):
            self.fold()

    def finish(self) -> None:
        if self._handles:
            self.fold()

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the gates into the norms and take all hooks away."""
        self._update()
        for path, factor in self._factors.items():
            norm = self.grower.model.get_submodule(path)
            for parameter in (norm.weight, norm.bias):
                parameter.mul_(factor.to(parameter))
        for handle in [*self._handles, *self._forward]:
            handle.remove()
        self._handles, self._forward, self._sites, self._factors = [], [], {}, {}

    def _attach(self) -> None:
        """Hook the norms of the present network."""
        for handle in self._forward:
            handle.remove()
        sites = gate_sites(self.grower)
        self._sites = {path: [s for s in sites if s.name == f"{path}.weight"] for path in _gated_norms(self.grower)}
        self._update()
        self._forward = [
            self.grower.model.get_submodule(path).register_forward_hook(self._gate(path)) for path in self._sites
        ]

    def _gate(self, path: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        return lambda _module, _inputs, output: output * across(self._factors[path], output, 1)

    def _update(self) -> None:
        gates = relax(*gates_of(self.grower))
        self._factors = {
            path: torch.stack([site.spread(gates) for site in sites]).prod(0) for path, sites in self._sites.items()
        }


def _gated_norms(grower: apical.Grower) -> list[str]:
    """Paths of the norms whose scale and shift are the gate sites of the present network."""
    by_module: dict[str, dict[str, list[list[int]]]] = {}
    for site in gate_sites(grower):
        path, _, leaf = site.name.rpartition(".")
        by_module.setdefault(path, {}).setdefault(leaf, []).append([*site.positions.tolist(), *site.entries.tolist()])
    for path, leaves in by_module.items():
        module = grower.model.get_submodule(path)
        alike = set(leaves) == {"weight", "bias"} and sorted(leaves["weight"]) == sorted(leaves["bias"])
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or not alike:
            raise TypeError(
                f"gates in the forward pass are built for batch norms whose scale and shift are both gated, but "
                f"{path} is a {type(module).__name__} with gates on {', '.join(sorted(leaves))}"
            )
    return list(by_module)


class NewbornRate:
    """For their first epochs, every step of the weights of units and blocks that were born is made longer.

    The step that the optimizer made is multiplied, which for SGD is a higher learning rate. A weight between two
    newborns counts once. The seed and what comes back do not count as newborn.
    """

    def __init__(self, grower: apical.Grower, optimizer: Optimizer, factor: float = 2.0, epochs: int = 2) -> None:
        self.grower, self.factor, self.epochs = grower, factor, epochs
        self._lived = grower.components.lived.clone()
        self._left = torch.zeros(len(self._lived), dtype=torch.long)  # epochs as a newborn that are left
        self._masks: list[tuple[nn.Parameter, Tensor]] = []
        self._before: list[Tensor] = []
        self._hooks = [
            optimizer.register_step_pre_hook(lambda *_: self._remember()),
            optimizer.register_step_post_hook(lambda *_: self._lengthen()),
        ]

    def restructured(self) -> None:
        components = self.grower.components
        self._left = (self._left - 1).clamp(min=0)
        self._left[components.lived & ~self._lived] = self.epochs
        self._lived = components.lived.clone()
        self._masks = self._factors(components.live & (self._left > 0))

    def finish(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _factors(self, young: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter with weights of newborns, and the factor of each of its weights."""
        masks: dict[nn.Parameter, Tensor] = {}
        for group in range(len(self.grower.structure.groups)):
            units = young[self.grower.components.entries(group)].nonzero().reshape(-1)
            for parameter, dim, positions in owned(self.grower, group) if len(units) else ():
                mask = masks.setdefault(parameter, torch.ones_like(parameter))
                mask.index_fill_(dim, positions(units).reshape(-1).to(mask.device), self.factor)
        for i, block in enumerate(self.grower.structure.blocks):
            if young[self.grower.components.num_units + i]:
                for name, parameter in self.grower.model.named_parameters():
                    if lies_in(name, block.name):
                        masks[parameter] = torch.full_like(parameter, self.factor)
        return list(masks.items())

    @torch.no_grad()
    def _remember(self) -> None:
        self._before = [parameter.clone() for parameter, _ in self._masks]

    @torch.no_grad()
    def _lengthen(self) -> None:
        for (parameter, mask), before in zip(self._masks, self._before, strict=True):
            parameter.add_((parameter - before) * (mask - 1))


class NewbornMomentum:
    """Units that appear get the mean momentum of their group's older units instead of none.

    Concerns SGD's ``momentum_buffer``. Blocks that appear have no older siblings and start without momentum.
    """

    def __init__(self, grower: apical.Grower, optimizer: Optimizer) -> None:
        self.grower, self.optimizer = grower, optimizer
        self._live = grower.components.live.clone()

    @torch.no_grad()
    def restructured(self) -> None:
        components = self.grower.components
        born, older = components.live & ~self._live, components.live & self._live
        self._live = components.live.clone()
        for group in range(len(self.grower.structure.groups)):
            new, old = (which[components.entries(group)].nonzero().reshape(-1) for which in (born, older))
            for parameter, dim, positions in owned(self.grower, group) if len(new) and len(old) else ():
                buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    _copy_mean_(buffer, dim, positions(old), positions(new))

    def finish(self) -> None:
        pass


def _copy_mean_(tensor: Tensor, dim: int, source: Tensor, target: Tensor) -> None:
    """Set what the target units own to the mean of what the source units own; both (units, positions per unit)."""
    source, target = source.to(tensor.device), target.to(tensor.device)
    parts = tensor.index_select(dim, source.reshape(-1)).unflatten(dim, source.shape)
    mean = parts.mean(dim, keepdim=True)  # one unit
    repeated = mean.expand([len(target) if d == dim else -1 for d in range(mean.dim())]).flatten(dim, dim + 1)
    tensor.index_copy_(dim, target.reshape(-1), repeated)


ADDITIONS: dict[str, Callable[[apical.Grower, Optimizer], Addition]] = {
    "gate rescaling": GateRescaling,
    "gate in forward": GateInForward,
    "newborn rate": NewbornRate,
    "newborn momentum": NewbornMomentum,
}
