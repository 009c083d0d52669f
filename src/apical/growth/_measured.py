"""What growth measures of its device before it starts: a divisor, and a table of times."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from apical.budget import (
    DIVISORS,
    Budget,
    DivisorChoice,
    LatencyTable,
    budget_share,
    from_first,
    measure_divisor,
    measure_latency_table,
)
from apical.growth._config import GrowthConfig
from apical.growth._scs import ScsConfig
from apical.resizing import resize_
from apical.structure import Structure, quiet_rng

AnyConfig = TypeVar("AnyConfig", bound=GrowthConfig | ScsConfig)


def choose_divisor(
    model: nn.Module, structure: Structure, example_inputs: tuple[Any, ...], budget: Budget, config: AnyConfig
) -> tuple[AnyConfig, DivisorChoice | None]:
    """The config with a number for its divisor, and what was measured if it was to be measured.

    Of several processes the first one measures, for all.

    Args:
        model: the template.
        structure: of it.
        example_inputs: arguments of one call, whose batch is measured.
        budget: near whose widths it is measured.
        config: returned as it is if its divisor is a number.
    """
    if config.divisor != "auto":
        return config, None
    share = budget_share(budget, structure)
    choice = from_first(lambda: measure_divisor(model, structure, example_inputs, share))
    return replace(config, divisor=choice.divisor), choice


def adopted_divisor(config: AnyConfig, state: Any) -> AnyConfig:
    """The config with the divisor that a saved growth state measured, if it names one that can be measured."""
    identity = state.get("identity") if isinstance(state, Mapping) else None
    saved = identity.get("divisor") if isinstance(identity, Mapping) else None
    if isinstance(saved, int) and not isinstance(saved, bool) and saved in DIVISORS:
        return replace(config, divisor=saved)
    return config


def measured_table(
    model: nn.Module, structure: Structure, example_inputs: tuple[Any, ...], budget: Budget
) -> LatencyTable | None:
    """The table of layer times, if the budget is in time. Of several processes the first one measures."""
    if not any(target.kind == "latency" for target in budget.targets):
        return None

    def resized(keep: Mapping[str, list[int]], skip: tuple[str, ...]) -> nn.Module:
        twin = copy.deepcopy(model)
        resize_(twin, structure, keep, skip)
        return twin

    def measure() -> dict[str, Any]:
        return measure_latency_table(model, structure, example_inputs, resized).to_dict()

    with quiet_rng():
        return LatencyTable.from_dict(structure, from_first(measure))
