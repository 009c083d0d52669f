"""What the ablation adds to growth and the library does not do, as hooks around a `Grower`.

Each addition is made from a Grower and the optimizer of its model. `restructured` is called after every
`Grower.end_epoch`, `finish` once, after the last; `Extended` does both. The network is plain at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from _live_network import owned
from torch import Tensor, nn
from torch.optim import Optimizer

import apical
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
    "newborn rate": NewbornRate,
    "newborn momentum": NewbornMomentum,
}
