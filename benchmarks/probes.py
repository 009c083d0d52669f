"""Growth that measures what groups and blocks are worth, in the place of the squares of gate products.

At every restructuring the loss of some batches is compared with the loss when the least useful units of one group are
switched off at their gate site, so many that they cost a given share of the network, and so for each group in turn; a
block is switched off whole. Forward passes in train mode, on a copy of the model, without gradients; the same batches
with and without, so that what differs between batches cancels.

It was tried as an alternative to the method of the library (docs/decisions/017-growth-that-learns.md) and is not part
of it. `learning.py` runs it as the method ``probed``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import exp, log, sqrt
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn

from apical.growth import _plan
from apical.growth._allocation import MATURE, unit_prices
from apical.growth._controller import Controller, ranking
from apical.growth._method import Choice
from apical.growth._observer import GateObserver
from apical.growth._utility import KEPT
from apical.resizing._selection import Selection

SHARE = 0.05  # of the network's cost that is switched off in a group
BATCHES, SIZE = 8, 128  # that a loss is measured on


class Probe:
    """Losses of a copy of the model with components switched off at their gate sites."""

    def __init__(self, model: nn.Module, observer: GateObserver, images: Tensor, labels: Tensor,
                 generator: torch.Generator) -> None:  # fmt: skip
        self._model = copy.deepcopy(model).train()
        self._observer = observer
        names = {id(p): name for name, p in model.named_parameters()}
        own = dict(self._model.named_parameters())
        self._tensors = [own[names[id(t)]] for t in observer._tensors]
        chosen = torch.randint(len(images), (BATCHES, SIZE), generator=generator)
        self._batches = [(images[part], labels[part]) for part in chosen]
        self._base = self._losses()

    @torch.no_grad()
    def _losses(self) -> Tensor:
        """Of each batch  # (BATCHES,)"""
        return torch.stack([nn.functional.cross_entropy(self._model(x), y) for x, y in self._batches]).double()

    @torch.no_grad()
    def rise(self, entries: Sequence[int]) -> tuple[float, float]:
        """By how much the loss rises without these components, and the standard error of that."""
        o = self._observer
        where = o._sources[torch.isin(o._targets, torch.tensor(entries))]
        kept, start = [], 0
        for tensor, dim in zip(self._tensors, o._dims, strict=True):
            end = start + tensor.shape[dim]
            inside = where[(where >= start) & (where < end)] - start
            start = end
            if len(inside):
                kept.append((tensor, tensor.clone()))
                tensor.index_fill_(dim, inside, 0.0)
        found = self._losses() - self._base
        for tensor, values in kept:
            tensor.copy_(values)
        return float(found.mean()), float(found.std()) / sqrt(BATCHES)


class ProbedController(Controller):
    """The library's controller, with measured rises of the loss for its utilities."""

    data: ClassVar[tuple[Tensor, Tensor]]
    seconds: ClassVar[float] = 0.0  # that were spent on probes since `probed` began

    def __init__(self, model: nn.Module, *others: Any) -> None:
        super().__init__(model, *others)
        self._model = model
        self._drawn = torch.Generator().manual_seed(self.config.seed)
        self._logs: dict[str, float] = {}  # smoothed logarithm of what a unit of a group, or a block, is worth

    def watch(self, observers: Sequence[GateObserver], device: torch.device) -> Any:
        (self._observer,) = observers
        return super().watch(observers, device)

    def next(self, done: int, present: Selection) -> Choice:
        self._counts = [len(present.keep[group.name]) for group in self.terms.structure.groups]
        self._skip = tuple(sorted(present.skip))
        self._probed = False
        return super().next(done, present)

    def _unit_values(self) -> list[float | None]:
        squares = super()._unit_values()
        if not self._probed:  # once a restructuring, after the ages were brought up to date
            start = time.perf_counter()
            self._measure()
            ProbedController.seconds += time.perf_counter() - start
            self._probed = True
        names = [group.name for group in self.terms.structure.groups]
        return [
            None if value is None or name not in self._logs else exp(self._logs[name])
            for name, value in zip(names, squares, strict=True)
        ]

    def _measure(self) -> None:
        c, bound, structure = self.components, self.terms.bound, self.terms.structure
        probe = Probe(self._model, self._observer, *self.data, self._drawn)
        load = bound.load(self._by_name(self._counts), self._skip)
        prices = unit_prices(bound, self._counts, self.terms.limits.step, self._skip, self.multipliers)
        for i, group in enumerate(structure.groups):
            part = c.entries(i)
            units = [part.start + k for k in ranking(c, part) if c.live[part.start + k]]
            units = [k for k in units if c.age[k] >= MATURE] or units
            present = self._counts[i]
            if present < 2 or prices[i] <= 0 or not units:
                continue
            number = min(max(1, min(present // 2, round(SHARE * load / prices[i]))), len(units))
            rise, error = probe.rise(units[-number:])
            # if the loss falls like a / n, the last unit is worth (n − k) / n of the mean of k that leave
            self._note(group.name, *(x / number * (present - number) / present for x in (rise, error)))
        for i, block in enumerate(structure.blocks):
            if block.name not in self._skip:
                self._note(block.name, *probe.rise([c.num_units + i]))
                c.values[c.num_units + i] = exp(self._logs[block.name])

    def _note(self, name: str, rise: float, error: float) -> None:
        """Smooth the logarithm; what cannot be told from nothing counts half of its standard error."""
        found = log(max(rise, error / 2, 1e-9))
        self._logs[name] = KEPT * self._logs[name] + (1 - KEPT) * found if name in self._logs else found


@contextmanager
def probed(images: Tensor, labels: Tensor) -> Iterator[None]:
    """Growers that are made within measure on these images, those that training sees."""
    ProbedController.data, ProbedController.seconds = (images, labels), 0.0
    with patch.object(_plan, "Controller", ProbedController):
        yield
