"""`price="time"`: at the same MACs, a network that the table says is faster; by tables that are made up."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from apical import Grower
from apical.budget import BoundBudget, Budget, LatencyTable
from apical.budget._latency import LayerTable, layer_inputs
from apical.errors import BudgetError, ConfigError
from apical.growth._measured import MOST_PREFERRED, time_offsets, timed_widths
from apical.growth._sampling import Limits, uniform_widths
from apical.structure import SizeAxis
from growth.cases import built, example, grown, run, sgd, structure_of

NAMES = ["plain", "residual", "mlp"]


def table_of(name: str, price: Callable[[str], float]) -> LatencyTable:
    """A layer's time is its MACs times the price of its path."""
    model, structure = built(name), structure_of(name)
    axes = {(a.module, a.attribute): a.axis for a in structure.attributes}
    with torch.no_grad():
        shapes = layer_inputs(copy.deepcopy(model), (example(name),))
    layers = []
    for path, shape in shapes.items():
        module: Any = model.get_submodule(path)
        conv = isinstance(module, nn.Conv2d)
        ends = ("in_channels", "out_channels") if conv else ("in_features", "out_features")
        ins, outs = (getattr(module, end) for end in ends)
        pixels = shape[0] * (shape[-1] * shape[-2] // module.stride[0] ** 2 * module.kernel_size[0] ** 2 if conv else 1)
        grid = tuple(tuple(price(path) * pixels * i * o for o in range(outs + 1)) for i in range(ins + 1))
        in_axis, out_axis = (axes.get((path, end), SizeAxis(getattr(module, end))) for end in ends)
        layers.append(LayerTable(path, tuple(range(ins + 1)), tuple(range(outs + 1)), grid, in_axis, out_axis))
    return LatencyTable(structure, tuple(layers), 0.0, 1.0, 0.0, "made up")


def uneven(seed: int, ratio: float = 4.0) -> Callable[[str], float]:
    """Each layer is fast or slow."""
    return lambda path: random.Random(f"{seed} {path}").choice([1.0, ratio])


def bound_of(name: str, budget: str = "50% macs") -> tuple[BoundBudget, Limits]:
    return BoundBudget(Budget(budget), structure_of(name)), Limits.of(structure_of(name), 1, 1)


def offsets_of(name: str, table: LatencyTable) -> dict[str, float]:
    """What time adds to the logit of each group's share."""
    bound, limits = bound_of(name)
    return time_offsets(table, bound, limits, uniform_widths(bound), ())


def ended(name: str, table: LatencyTable, monkeypatch: pytest.MonkeyPatch, **options: Any) -> dict[str, Any]:
    monkeypatch.setattr("apical.growth._measured.measure_latency_table", lambda *_: table)
    model = built(name)
    grower = grown(name, model, sgd(model), **options)
    for _ in range(grower.epochs):
        record = grower.end_epoch()
    return dict(record)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_the_network_is_faster_at_equal_macs(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(name, uneven(seed))
    plain, timed = (ended(name, table, monkeypatch, price=price, depth_share=0.0) for price in ("budget", "time"))
    assert timed["macs_fraction"] == pytest.approx(plain["macs_fraction"], rel=0.015)
    times = [table.predict_ms(record["widths"], record["skipped"]) / record["macs"] for record in (plain, timed)]
    assert times[1] <= times[0]
    changed = plain["widths"] != timed["widths"]
    assert (times[1] < times[0]) == changed


def test_a_slow_stage_becomes_narrower(monkeypatch: pytest.MonkeyPatch) -> None:
    """What machines do: the early layers, of few channels and many pixels, take longer for each of their MACs."""
    table = table_of("residual", lambda path: 4.0 if path.startswith("layer1") else 1.0)
    plain, timed = (ended("residual", table, monkeypatch, price=price, depth_share=0.0) for price in ("budget", "time"))
    times = [table.predict_ms(record["widths"], record["skipped"]) / record["macs"] for record in (plain, timed)]
    assert times[1] < 0.95 * times[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_timed_widths_cost_what_the_goal_costs_and_take_less_time(name: str, seed: int) -> None:
    (bound, limits), table = bound_of(name), table_of(name, uneven(seed))
    goal = uniform_widths(bound)
    timed = timed_widths(table, bound, limits, goal, (), {})
    assert bound.load(timed) == pytest.approx(1.0, abs=0.1)
    assert table.predict_ms(timed, ()) / bound.load(timed) <= 1.01 * table.predict_ms(goal, ()) / bound.load(goal)
    first = next(iter(goal))
    assert timed_widths(table, bound, limits, goal, (), {first: 3})[first] == 3


@pytest.mark.parametrize("name", NAMES)
def test_where_every_mac_takes_the_same_time_nothing_changes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(name, lambda _: 3.0)
    assert max(map(abs, offsets_of(name, table).values())) < 1e-9
    plain, timed = (ended(name, table, monkeypatch, price=price) for price in ("budget", "time"))
    assert plain["widths"] == timed["widths"]


def test_slower_groups_are_preferred_less_within_bounds() -> None:
    names = [group.name for group in structure_of("plain").groups]
    for ratio in (2.0, 1e9):
        offsets = offsets_of("plain", table_of("plain", lambda path, r=ratio: r if path == names[-1] else 1.0))
        assert offsets[names[-1]] < offsets[names[0]]
        assert all(abs(offset) <= MOST_PREFERRED + 1e-12 for offset in offsets.values())
    assert offsets[names[0]] == pytest.approx(math.log(4)), "both others touch the layer that takes for ever"


def test_groups_that_the_table_does_not_know_or_that_take_no_time() -> None:
    table = table_of("plain", uneven(1))
    first, second, third = (group.name for group in structure_of("plain").groups)
    unknown = LatencyTable(table.structure, table.layers[:1], 0.0, 1.0, 0.0, "made up")
    assert offsets_of("plain", unknown) == {first: 0.0, second: 0.0, third: 0.0}, "nothing to compare with"
    flat = [LayerTable(t.module, t.inputs, t.outputs, tuple((1.0,) * len(t.outputs) for _ in t.inputs), t.in_axis,
                       t.out_axis) for t in table.layers]  # fmt: skip
    assert set(offsets_of("plain", LatencyTable(table.structure, tuple(flat), 0.0, 1.0, 0.0, "")).values()) == {0.0}
    free_end = LatencyTable(table.structure, (*table.layers[:2], *flat[2:]), 0.0, 1.0, 0.0, "")
    assert offsets_of("plain", free_end)[third] == pytest.approx(MOST_PREFERRED)


@pytest.mark.parametrize("options", [{}, {"divisor": 4}, {"seed_style": "small"}, {"sampling": "lambda", "budget":
                         "60% latency, 70% macs"}])  # fmt: skip
def test_resumed_growth_goes_by_the_saved_table(options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [built("residual"), built("residual")]
    growers: list[Grower] = []
    for seed, model in enumerate(models):
        table = table_of("residual", uneven(seed))
        monkeypatch.setattr("apical.growth._measured.measure_latency_table", lambda *_, t=table: t)
        growers.append(grown("residual", model, sgd(model), price="time", **options))
    first, second = growers
    run(first, first._optimizers[0], "residual", 0, 2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.latency == first.latency
    assert torch.equal(first.components.noise, second.components.noise)
    assert first._controller._pinned.widths == second._controller._pinned.widths
    models[0].zero_grad()  # from here on the walk goes without training
    while len(first.history) < first.epochs:
        assert first.end_epoch()["widths"] == second.end_epoch()["widths"]
    json.dumps(first.state_dict()["latency"])


def test_budgets_are_met_and_wrong_prices_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    record = ended("plain", table_of("plain", uneven(3)), monkeypatch, price="time", budget="40% params")
    assert record["params_fraction"] == pytest.approx(0.4, rel=0.02)
    model = built("mlp")
    with pytest.raises(ConfigError, match="price must be one of 'budget', 'time', got 'money'"):
        grown("mlp", model, sgd(model), price="money")
    with pytest.raises(ConfigError, match="price='time' puts its proportions into noise that is drawn once"):
        grown("mlp", model, sgd(model), price="time", noise="fresh")


def test_a_model_that_cannot_be_timed_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apical.budget._latency.layer_inputs", lambda *_: {})
    model = built("mlp")
    with pytest.raises(BudgetError, match="and price='budget'"):
        grown("mlp", model, sgd(model), price="time")
