"""What every way of growing has in common, whatever decides the network: its terms, its schedule, its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.budget import BoundBudget, Budget, LatencyTable
from apical.errors import ConfigError
from apical.growth._components import Components, checked
from apical.growth._observer import GateObserver, Round
from apical.growth._schedule import Schedule
from apical.growth._widths import Limits
from apical.resizing._selection import Selection
from apical.structure import Structure
from apical.structure._cost import lies_in


@dataclass(frozen=True)
class Terms:
    """The terms of growth."""

    structure: Structure  # what can grow
    budget: Budget  # what the final network may cost
    divisor: int  # rounding of widths
    min_units: int  # fewest units of a group
    whole: Mapping[str, int]  # groups that keep all of their units, by name
    stay: frozenset[str]  # names of blocks that do not leave
    latency: LatencyTable | None = None  # what layers take on this device, where the budget needs it

    @cached_property
    def limits(self) -> Limits:
        """Fewest and most units and rounding of each group."""
        return Limits.of(self.structure, self.divisor, self.min_units, self.whole)

    @cached_property
    def bound(self) -> BoundBudget:
        """The budget, which prices networks."""
        least = self.limits.least_of(self.structure)
        return BoundBudget(self.budget, self.structure, minimum=least, latency=self.latency, fixed_blocks=self.stay)

    @cached_property
    def fixed_load(self) -> float:
        """The load of what no network can do without: frozen parts, as the head of a language model often is."""
        counts = {g.name: self.whole.get(g.name, 0) for g in self.structure.groups}
        return min(1.0, self.bound.load(counts, [b.name for b in self.structure.blocks if b.name not in self.stay]))

    def with_whole_streams(self) -> Limits:
        """Limits with which residual streams have all of their units."""
        streams = [g.role == "stream" for g in self.structure.groups]
        least = tuple(
            most if stream else least
            for stream, least, most in zip(streams, self.limits.least, self.limits.most, strict=True)
        )
        return replace(self.limits, least=least)


def terms_of(
    model: nn.Module, structure: Structure, budget: Budget, config: Any, latency: LatencyTable | None = None
) -> Terms:
    """The terms that a config and a budget set.

    Args:
        model: the template, whose module paths ``config.ignore`` names.
        structure: of it.
        budget: what the final network may cost.
        config: with ``divisor`` (a number), ``min_units``, ``ignore`` and ``grow_depth``.
        latency: measured table, where the budget needs it.

    Raises:
        BudgetError: the budget cannot be met.
        ConfigError: ``config.ignore`` names no module.
    """
    names = [n for n, _ in model.named_modules()]
    for path in config.ignore:
        if path not in names:
            raise ConfigError(f"ignore names {path!r}, which is no module of the model; modules are {names[1:6]} …")
    whole = {
        g.name: g.size for g in structure.groups if any(lies_in(m.tensor, p) for m in g.members for p in config.ignore)
    }
    ignored = {
        b.name
        for b in structure.blocks
        for own in b.modules
        for p in config.ignore
        if lies_in(p, own) or lies_in(own, p)
    }
    stay = frozenset(ignored if config.grow_depth else {b.name for b in structure.blocks})
    terms = Terms(structure, budget, config.step, config.min_units, whole, stay, latency)
    _ = terms.bound  # whether the budget can be met is found out at once
    return terms


@dataclass(frozen=True)
class Choice:
    """A network: kept positions by group, blocks left out, and its share of the budget."""

    keep: dict[str, list[int]]
    skip: tuple[str, ...]
    load: float


class Measurement(ABC):
    """What is read from the gradients of every training step, on the device, without synchronising it.

    With several optimizers, a training step is a round in which each steps at most once.
    """

    def __init__(self, components: Components, observers: Sequence[GateObserver]) -> None:
        self._components = components
        self._round = Round(observers)

    @torch.no_grad()
    def observe(self, index: int, optimizer: Optimizer) -> None:
        """Read the gradients of one optimizer's parameters, just before it steps."""
        for products in self._round.observe(index, optimizer):
            self._take(products)

    @torch.no_grad()
    def write_back(self) -> None:
        """End a round that some optimizers did not join, and copy what was gathered to the components."""
        for products in self._round.end():
            self._take(products)
        self._copy_back()

    @abstractmethod
    def _take(self, products: Tensor) -> None:
        """Take in the gate products of a round  # (entries,)"""

    @abstractmethod
    def _copy_back(self) -> None:
        """Copy what was gathered to the components."""


class Method(ABC):
    """Chooses the seed, and then the next network at every restructuring; changes no weight.

    Args:
        terms: budget, limits of widths, and what must stay as it is.
        config: the options, with numbers for interval and divisor.
        length: of the whole training, in the unit of the interval.

    Attributes:
        components: what is known of all units and blocks.
        relative: what groups and blocks were worth for their cost at the last restructuring: the logarithm of its ratio
            to the mean of the widths, by name; empty where the method does not compare them.
        target_load: scheduled cost of the present network as a fraction of the budget.
        frozen: whether the present network is the last.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("relative", "target_load", "seed_load", "frozen")
    """What a restructuring changes, besides components and generator: tensors and plain values."""

    reads_shifts: ClassVar[bool]
    """Whether the gate of a block multiplies the constant that its branch adds, too."""

    def __init__(self, terms: Terms, config: Any, length: int) -> None:
        self.terms = terms
        self.config = config
        self.schedule = Schedule.of(config, length)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.components = Components(terms.structure, self.generator)
        self.relative: dict[str, float] = {}
        self.target_load = 1.0
        self.seed_load = 1.0
        self.frozen = self.schedule.at_once

    @abstractmethod
    def seed(self) -> Choice:
        """The network that training starts with."""

    @abstractmethod
    def next(self, done: int, present: Selection) -> Choice:
        """The network to go on with.

        Args:
            done: epochs or steps that are over, in the unit of the interval.
            present: the network so far.
        """

    @abstractmethod
    def watch(self, observers: Sequence[GateObserver], device: torch.device) -> Measurement:
        """Measure the present network from now on."""

    @abstractmethod
    def applied(self, born: Tensor) -> None:
        """Note which components have just appeared  # (entries,)"""

    @abstractmethod
    def end_epoch(self) -> None:
        """Note that an epoch ended."""

    def due(self, done: int) -> bool:
        """Whether it is time to restructure, after this many epochs or steps."""
        return self.schedule.due(done) and not self.frozen

    def _advance(self, done: int) -> None:
        """Note what the next network may cost, and whether it is the last."""
        self.frozen = self.schedule.is_last(done)
        self.target_load = self.schedule.load(done, self.seed_load)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers only."""
        own = {name: _copied(getattr(self, name)) for name in self.SAVED}
        return {"components": self.components.state_dict(), "generator": self.generator.get_state(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the method that was saved."""
        self.components.load_state_dict(state["components"])
        # on the CPU, though torch.load may have mapped the state to the model's device
        self.generator.set_state(state["generator"].cpu())
        for name in self.SAVED:
            setattr(self, name, _copied(checked(getattr(self, name), state[name], name)))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to("cpu", copy=True)
    return dict(value) if isinstance(value, Mapping) else value
