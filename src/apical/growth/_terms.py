"""What growth has to keep to, whatever decides the network: the budget, rounding, and what must stay as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from apical.budget import BoundBudget, Budget, LatencyTable
from apical.errors import ConfigError
from apical.growth._widths import Limits
from apical.structure import Structure, lies_in


@dataclass(frozen=True)
class Terms:
    """The terms of growth.

    Attributes:
        structure: what can grow.
        budget: what the final network may cost.
        divisor: rounding of widths.
        min_units: fewest units of a group.
        whole: groups that keep all of their units, by name.
        stay: names of blocks that do not leave.
        latency: what layers take on this device, where the budget needs it.
    """

    structure: Structure
    budget: Budget
    divisor: int
    min_units: int
    whole: Mapping[str, int]
    stay: frozenset[str]
    latency: LatencyTable | None = None

    @cached_property
    def limits(self) -> Limits:
        """Fewest and most units and rounding of each group."""
        return Limits.of(self.structure, self.divisor, self.min_units, self.whole)

    @cached_property
    def bound(self) -> BoundBudget:
        """The budget, which prices networks."""
        least = self.limits.least_of(self.structure)
        return BoundBudget(self.budget, self.structure, minimum=least, latency=self.latency, fixed_blocks=self.stay)

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
    ignored = {b.name for b in structure.blocks for p in config.ignore if lies_in(p, b.name) or lies_in(b.name, p)}
    stay = frozenset(ignored if config.grow_depth else {b.name for b in structure.blocks})
    terms = Terms(structure, budget, config.step, config.min_units, whole, stay, latency)
    _ = terms.bound  # whether the budget can be met is found out at once
    return terms
