"""``divisor="auto"``: measured once, then a number like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from apical.budget import DIVISORS, Budget, DivisorChoice, budget_share, from_first, measure_divisor
from apical.growth._config import GrowthConfig
from apical.structure import Structure


def choose_divisor(
    model: nn.Module, structure: Structure, example_inputs: tuple[Any, ...], budget: Budget, config: GrowthConfig
) -> tuple[GrowthConfig, DivisorChoice | None]:
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


def adopted_divisor(config: GrowthConfig, state: Any) -> GrowthConfig:
    """The config with the divisor that a saved growth state measured, if it names one that can be measured."""
    identity = state.get("identity") if isinstance(state, Mapping) else None
    saved = identity.get("divisor") if isinstance(identity, Mapping) else None
    if isinstance(saved, int) and not isinstance(saved, bool) and saved in DIVISORS:
        return replace(config, divisor=saved)
    return config
