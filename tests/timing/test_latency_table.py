"""Measured latency: what the table holds and how it is used; nothing here depends on how fast the machine is."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from apical import Grower, trace
from apical.budget import BoundBudget, Budget, LatencyTable
from apical.budget._latency import LayerTable
from apical.errors import BudgetError, ResizeError
from apical.structure import SizeAxis, SkippableBlock
from apical.timing import _clock, _latency_table, _layers, measure_latency_table
from apical.timing._clock import time_ms

EXAMPLE = torch.zeros(1, 3, 8, 8)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def measured(model: nn.Module, example: torch.Tensor = EXAMPLE) -> LatencyTable:
    return measure_latency_table(model, trace(model, example), (example,))


def _layer_in(run: Any) -> nn.Module:
    return next(c.cell_contents for c in run.__closure__ if isinstance(c.cell_contents, nn.Module))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Instead of the time: a cost that grows with the parameters, disturbed; whole networks cost a little more."""
    calls: list[float] = []

    def cost(run: Any, *_: Any, **__: Any) -> float:
        run()
        if isinstance(run, partial):  # of a whole network
            layer = run.args[0]
        else:
            layer = _layer_in(run)
        calls.append(0.001 * sum(p.numel() for p in layer.parameters()) * (1.2 if len(calls) % 7 else 1.0))
        return calls[-1] + (0.05 if isinstance(run, partial) else 0.0)

    monkeypatch.setattr(_latency_table, "time_ms", cost)
    return calls


def test_the_table_of_a_tiny_network() -> None:
    """Really measured: grids reach from 15 % to the whole, the network is as before, the error is stated."""
    model = net()
    model[1].eval()
    modes, state = [m.training for m in model.modules()], copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    grower = Grower(model, sgd, EXAMPLE, "100% latency", epochs=4)
    assert torch.equal(torch.get_rng_state(), rng)
    table = grower.latency
    assert table is not None
    assert [layer.module for layer in table.layers] == ["0", "3", "5", "9"]
    assert [(layer.inputs, layer.outputs) for layer in table.layers] == [
        ((3,), (2, 6, 10, 16)), ((2, 6, 10, 16), (2, 6, 10, 16)), ((2, 6, 10, 16), (4, 8, 16, 24)),
        ((4, 8, 16, 24), (5,))
    ]  # fmt: skip
    assert table.device == "cpu"
    assert table.error >= 0
    assert table.scale > 0
    assert table.offset >= 0
    for layer in table.layers:
        grid = np.array(layer.ms)
        assert (grid > 0).all()
        assert (np.diff(grid, axis=0) >= 0).all()
        assert (np.diff(grid, axis=1) >= 0).all()
    assert [m.training for m in model.modules()] == modes
    assert all(v.shape[0] <= state[k].shape[0] for k, v in model.state_dict().items() if v.dim())


def test_a_wider_network_never_costs_less() -> None:
    table = measured(net())
    for one in itertools.product((1, 3, 8, 16), (1, 5, 24)):
        for other in itertools.product((1, 3, 8, 16), (1, 5, 24)):
            if one[0] <= other[0] and one[1] <= other[1]:
                assert table.predict_ms({"0": one[0], "5": one[1]}) <= table.predict_ms({"0": other[0], "5": other[1]})


def test_a_latency_budget_is_met_as_predicted(counted: list[float]) -> None:
    model = net()
    grower = Grower(model, torch.optim.SGD(model.parameters(), lr=0.1), EXAMPLE, "60% latency, 90% macs", epochs=4)
    assert counted
    for _ in range(4):
        grower.end_epoch()
    widths = grower.history[-1]["widths"]
    assert grower.latency is not None
    predicted = grower.latency.predict_ms(widths) / grower.latency.predict_ms()
    assert grower.history[-1]["latency_fraction"] == pytest.approx(predicted)
    assert grower.history[-1]["latency_ms"] == pytest.approx(grower.latency.predict_ms(widths))
    assert f"{predicted:.1%} of the latency" in repr(grower)
    assert 0.95 * 0.6 <= max(predicted, grower.history[-1]["macs_fraction"] / 0.9 * 0.6) <= 0.6 * 1.002


def test_what_lies_between_layers_has_a_price_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for which a layer costs its weights, and whole networks twice that, a constant, and a costly pooling."""
    monkeypatch.setattr(_layers, "synchronise", lambda _: None)
    monkeypatch.setattr(_layers.time, "perf_counter", lambda: elapsed[0])
    elapsed = [0.0]

    class Pool(nn.AdaptiveAvgPool2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            elapsed[0] += 0.001 * x.shape[1]  # a millisecond for each channel
            return super().forward(x)

    def weights(layers: list[nn.Module]) -> float:
        return 0.001 * sum(m.get_parameter("weight").numel() for m in layers)

    def cost(run: Any, *_: Any, **__: Any) -> float:
        if not isinstance(run, partial):
            return weights([c.cell_contents for c in run.__closure__ if isinstance(c.cell_contents, nn.Module)])
        before = elapsed[0]
        run()
        layers = [m for m in run.args[0] if isinstance(m, (nn.Conv2d, nn.Linear))]
        return 3.0 + 2 * weights(layers) + 1000 * (elapsed[0] - before)

    monkeypatch.setattr(_latency_table, "time_ms", cost)
    model = net()
    model[7] = Pool(1)  # after "5", which writes 24 channels
    table = measured(model)
    assert table.error < 0.02  # widths between the grid's are interpolated
    for narrow, wide in ((4, 16), (24, 2)):
        layers = 2 * 0.001 * (3 * wide * 9 + wide * 9 + wide * narrow * 9 + narrow * 5)
        assert table.predict_ms({"0": wide, "5": narrow}) == pytest.approx(3.0 + layers + narrow, rel=0.02)


def test_times_between_layers_are_those_of_the_full_model_in_eval_mode() -> None:
    model = net()
    found = _layers.times_between(model, EXAMPLE, (nn.Conv2d, nn.Linear), torch.device("cpu"))
    assert set(found) == {"0", "3", "5", "9"}
    assert all(0 < ms < 1000 for ms in found.values())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_layers_within_layers_have_times_of_their_own() -> None:
    class LowRank(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 6)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 6, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + self.up(self.down(x))

    model = nn.Sequential(nn.Linear(3, 6), LowRank(), nn.ReLU(), nn.Linear(6, 2))
    found = _layers.times_between(model, torch.zeros(1, 3), (nn.Linear,), torch.device("cpu"))
    assert set(found) == {"0", "1", "1.down", "1.up", "3"}
    assert measured(model, torch.zeros(1, 3)).predict_ms() > 0


def test_a_calibration_has_no_negative_term() -> None:
    parts = np.array([[1.0, 10.0], [2.0, 11.0], [3.0, 12.0], [4.0, 13.0], [5.0, 20.0]])
    assert _latency_table._calibrated(parts, 2 * parts[:, 0]) == pytest.approx((0.0, 2.0, 0.0))
    assert _latency_table._calibrated(parts, 3 + parts @ [2.0, 0.5]) == pytest.approx((3.0, 2.0, 0.5))
    for measured_ms in (parts[:, 0] - 0.5, 3 * parts[:, 0] - 0.1 * parts[:, 1]):
        offset, scale, rest = _latency_table._calibrated(parts, measured_ms)
        assert offset >= 0
        assert scale > 0
        assert rest >= 0


def test_an_impossible_latency_is_refused_before_anything_changes(counted: list[float]) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BudgetError, match=r"0.0001 ms: the smallest .* costs 0.\d+ ms"):
        Grower(model, torch.optim.SGD(model.parameters(), lr=0.1), EXAMPLE, "0.0001 ms", epochs=4)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_same_layers_are_measured_once(counted: list[float]) -> None:
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(6)))
    table = measured(model, torch.zeros(1, 8, 8, 8))
    assert len(table.layers) == 6
    a_pass = 4 + 16 + 11  # points of the first layer, of the five alike, and whole networks
    assert len(counted) < (a_pass + 10) * _latency_table.PASSES


def test_tables_survive_json(counted: list[float]) -> None:
    table = measured(net())
    again = LatencyTable.from_dict(table.structure, json.loads(json.dumps(table.to_dict())))
    assert again == table
    assert again.predict_ms({"0": 7, "5": 9}) == table.predict_ms({"0": 7, "5": 9})


def test_a_resumed_grower_takes_the_saved_table(counted: list[float]) -> None:
    """Measuring again would decide otherwise."""
    models = [net(), net()]
    growers = [Grower(m, torch.optim.SGD(m.parameters(), lr=0.1), EXAMPLE, "60% latency", epochs=4) for m in models]
    assert growers[0].latency != growers[1].latency
    growers[1].load_state_dict(growers[0].state_dict())
    assert growers[0].latency == growers[1].latency
    for _ in range(4):
        first, second = (g.end_epoch() for g in growers)
        assert first["widths"] == second["widths"]
        assert growers[0].state_dict()["keep"] == growers[1].state_dict()["keep"]


def test_interpolation_is_exact_on_the_grid_and_linear_between() -> None:
    layer = LayerTable("x", (2, 4), (1, 3), ((1.0, 2.0), (3.0, 5.0)), SizeAxis(0, ((0, 1),)), SizeAxis(1, ((1, 2),)))
    assert layer.predict_ms([2, 0]) == 1.0
    assert layer.predict_ms([4, 1]) == 5.0
    assert layer.predict_ms([3, 0]) == 2.0
    assert layer.predict_ms([3, 1]) == 3.5
    assert layer.predict_ms([1, 5]) == 2.0  # held constant beyond the grid


def test_blocks_that_are_left_out_cost_nothing() -> None:
    structure = dataclasses.replace(trace(net(), EXAMPLE), blocks=(SkippableBlock("a", ()),))
    one = SizeAxis(1)
    layers = tuple(LayerTable(m, (1,), (1,), ((2.0,),), one, one) for m in ("a.conv", "ab.conv", "c"))
    table = LatencyTable(structure, layers, 0.5, 2.0, 0.01, "cpu")
    assert repr(table).startswith(f"<LatencyTable: {len(layers)} layers on cpu, {table.predict_ms():.3g} ms in all")
    assert table.predict_ms() == 0.5 + 2 * 6
    assert table.predict_ms(None, ["a"]) == 0.5 + 2 * 4
    assert BoundBudget(Budget("12.5 ms"), structure, latency=table).load(None) == 1.0
    how = r"costs (only )?.* ms.*\(measured: one call on the example inputs, .* on cpu with \d+ thread.* at most 1%\)"
    for impossible in ("0.1 ms", "1 s"):
        with pytest.raises(BudgetError, match=how):
            BoundBudget(Budget(impossible), structure, latency=table)


def test_layers_that_take_the_same_time_at_every_width_are_scaled_by_the_median(patched_clock: None) -> None:
    """Where the clock sees no difference between widths, there is no line to fit."""
    table = measured(net())
    assert table.offset == 0.0
    assert table.scale > 0


@pytest.fixture
def patched_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_latency_table, "time_ms", lambda *_, **__: 1.0)


def test_nothing_to_measure_is_an_error() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    with pytest.raises(BudgetError, match="give a budget in MACs or parameters"):
        measure_latency_table(Scale(), trace(net(), EXAMPLE), (torch.zeros(1, 3),))


def test_other_arguments_are_refused_in_words() -> None:
    model = net()
    with pytest.raises(ResizeError, match=r"expected a torch\.nn\.Module, got int"):
        measure_latency_table(3, trace(model, EXAMPLE), EXAMPLE)  # type: ignore[arg-type]
    with pytest.raises(ResizeError, match=r"structure must be the Structure .* got 3"):
        measure_latency_table(model, 3, EXAMPLE)  # type: ignore[arg-type]


def test_the_fastest_of_several_calls_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    took = iter([0.001, 0.5, 0.002, 0.7])
    monkeypatch.setattr(_clock.time, "perf_counter", lambda: elapsed[0])
    elapsed = [0.0]

    def call() -> None:
        calls.append(1)
        elapsed[0] += 0.0 if len(calls) == 1 else next(took)

    assert time_ms(call, repeats=3, at_least_s=0.0) == pytest.approx(2.0)
    assert len(calls) == 5  # two to warm up


@pytest.mark.parametrize("busy", range(_latency_table.PASSES))
def test_a_slow_spell_of_the_machine_changes_nothing(busy: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is timed during a pass takes up to three times as long: the other passes count."""
    disturbed = False
    timed: dict[tuple[tuple[int, ...], ...], int] = {}

    def cost(run: Any, *_: Any, **__: Any) -> float:
        layer = run.args[0] if isinstance(run, partial) else _layer_in(run)
        key = tuple(tuple(p.shape) for p in layer.parameters())
        timed[key] = timed.get(key, -1) + 1
        slow = 1.0 + (len(timed) % 3) if disturbed and timed[key] == busy else 1.0
        return slow * (0.01 + 0.001 * sum(p.numel() for p in layer.parameters()))

    monkeypatch.setattr(_latency_table, "time_ms", cost)
    monkeypatch.setattr(_latency_table, "times_between", lambda *_: {"0": 0.1, "3": 0.1, "5": 0.2})
    quiet = measured(net())
    disturbed = True
    timed.clear()
    again = measured(net())
    assert (again.layers, again.offset, again.scale, again.error) == (
        quiet.layers, quiet.offset, quiet.scale, quiet.error
    )  # fmt: skip
