"""The divisor that growth goes by: given, measured on its device, or that of a saved state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from apical.budget import Budget
from apical.growth._config import GrowthConfig
from apical.growth._scs import ScsConfig
from apical.structure import Structure
from apical.timing import DIVISORS, DivisorChoice
from apical.timing._divisor import divisor_for

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
    choice = divisor_for(model, structure, example_inputs, budget)
    return replace(config, divisor=choice.divisor), choice


def adopted_divisor(config: AnyConfig, state: Any) -> AnyConfig:
    """The config with the divisor that a saved growth state measured, if it names one that can be measured."""
    identity = state.get("identity") if isinstance(state, Mapping) else None
    saved = identity.get("divisor") if isinstance(identity, Mapping) else None
    if isinstance(saved, int) and not isinstance(saved, bool) and saved in DIVISORS:
        return replace(config, divisor=saved)
    return config
