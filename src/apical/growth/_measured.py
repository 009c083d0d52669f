"""What growth measures of its device before it starts: a divisor, a table of times, and what a group's units cost."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

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
from apical.growth._sampling import TOLERANCE, Limits
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


def timed_widths(
    table: LatencyTable, bound: BoundBudget, limits: Limits, goal: Mapping[str, int], skip: Sequence[str],
    fixed: Mapping[str, int],
) -> dict[str, int]:  # fmt: skip
    """Widths of the same cost as a goal's, in which groups that are fast on this device are wider than slow ones.

        w_g = N_g σ(logit(n_g / N_g) + o_g + μ)    with the largest μ that the budget allows

    Args:
        table: of measured times.
        bound: the budget.
        limits: fewest units of each group.
        goal: n, to which equal prices lead, by group name.
        skip: blocks that are left out.
        fixed: widths that do not change, by name.
    """
    offsets = time_offsets(table, bound, limits, goal, skip)
    sizes = {group.name: group.size for group in bound.structure.groups}
    least = limits.least_of(bound.structure)

    def at(shift: float) -> dict[str, int]:
        found = {}
        for name, size in sizes.items():
            share = min(goal[name] / size, 1 - 0.5 / (size + 1))  # a whole group has no logit
            odds = share / (1 - share) * math.exp(offsets[name] + shift)
            found[name] = max(least[name], round(size * odds / (1 + odds)))
        return {**found, **fixed}

    low, high = -20.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if bound.load(at(middle), skip) <= 1 + TOLERANCE else (low, middle)
    return at(low)


def time_offsets(
    table: LatencyTable, bound: BoundBudget, limits: Limits, goal: Mapping[str, int], skip: Sequence[str]
) -> dict[str, float]:
    """What a group's time adds to the logit of its share.

        o_g = log(median of p) − log(p_g),  within ± log 4,    p_g = Δt_g / ΔMACs_g

    Δ is the difference between all of the group's units and the fewest, the others as in the goal. Groups without
    MACs, or without a layer in the table, get 0.

    Returns:
        o by group name.
    """
    structure = bound.structure
    timed = {g for layer in table.layers for axis in (layer.in_axis, layer.out_axis) for g, _ in axis.counts}
    prices: dict[str, float] = {}
    for i, (group, least) in enumerate(zip(structure.groups, limits.least, strict=True)):
        few, all_units = {**goal, group.name: least}, {**goal, group.name: group.size}
        macs = structure.macs(all_units, skip) - structure.macs(few, skip)
        if i in timed and macs > 0:
            prices[group.name] = max(0.0, table.layers_ms(all_units, skip) - table.layers_ms(few, skip)) / macs
    offsets = dict.fromkeys((group.name for group in structure.groups), 0.0)
    known = [price for price in prices.values() if price > 0]
    for name, price in prices.items() if known else ():
        log_price = math.log(price / statistics.median(known)) if price else -MOST_PREFERRED
        offsets[name] = -min(MOST_PREFERRED, max(-MOST_PREFERRED, log_price))
    return offsets
