"""What growth measures of its device before it starts: a divisor, a table of times, and what a group's units cost."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from apical.budget import (
    DIVISORS,
    BoundBudget,
    Budget,
    DivisorChoice,
    LatencyTable,
    budget_share,
    from_first,
    measure_divisor,
    measure_latency_table,
)
from apical.growth._config import GrowthConfig
from apical.growth._sampling import Limits, uniform_widths
from apical.resizing import resize_
from apical.structure import Structure, quiet_rng

MOST_PREFERRED = math.log(4.0)  # no group's odds change by more than this factor, however odd its measured times


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


def measured_table(
    model: nn.Module, structure: Structure, example_inputs: tuple[Any, ...], budget: Budget, config: GrowthConfig
) -> LatencyTable | None:
    """The table of layer times, if the budget or the price is in time. Of several processes the first one measures."""
    if config.price != "time" and not any(target.kind == "latency" for target in budget.targets):
        return None

    def resized(keep: Mapping[str, list[int]], skip: tuple[str, ...]) -> nn.Module:
        twin = copy.deepcopy(model)
        resize_(twin, structure, keep, skip)
        return twin

    def measure() -> dict[str, Any]:
        return measure_latency_table(model, structure, example_inputs, resized).to_dict()

    with quiet_rng():
        return LatencyTable.from_dict(structure, from_first(measure))


def time_preference(table: LatencyTable, bound: BoundBudget, limits: Limits) -> Tensor:
    """What is added to the logits of all units of a group, so that fast groups become wider than slow ones.

        o_g = log(median of p) − log(p_g),  within ± log 4,    p_g = Δt_g / ΔMACs_g

    Δ is the difference between all of the group's units and the fewest, the others at the widths of uniform scaling to
    the budget. The shift that meets the budget is added to the logits as well, so that only differences matter.
    Groups without MACs, or without a layer in the table, get 0.

    Args:
        table: of measured times.
        bound: the budget.
        limits: fewest units of each group.

    Returns:
        o, 0 for blocks  # (entries,) float64
    """
    structure, widths = bound.structure, uniform_widths(bound)
    timed = {g for layer in table.layers for axis in (layer.in_axis, layer.out_axis) for g, _ in axis.counts}
    prices: dict[int, float] = {}
    for i, (group, least) in enumerate(zip(structure.groups, limits.least, strict=True)):
        few, all_units = {**widths, group.name: least}, {**widths, group.name: group.size}
        macs = structure.macs(all_units) - structure.macs(few)
        if i in timed and macs > 0:
            prices[i] = max(0.0, table.layers_ms(all_units, ()) - table.layers_ms(few, ())) / macs
    offsets = torch.zeros(len(structure.groups), dtype=torch.float64)
    known = [price for price in prices.values() if price > 0]
    for i, price in prices.items() if known else ():
        log_price = math.log(price / statistics.median(known)) if price else -MOST_PREFERRED
        offsets[i] = -min(MOST_PREFERRED, max(-MOST_PREFERRED, log_price))
    sizes = torch.tensor([group.size for group in structure.groups])
    return torch.cat([offsets.repeat_interleave(sizes), torch.zeros(len(structure.blocks), dtype=torch.float64)])
