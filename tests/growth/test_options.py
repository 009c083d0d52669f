"""The schedule, and options that cannot work."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apical import Grower, GrowthConfig, trace
from apical.errors import ApicalError, BudgetError, CheckpointError, ConfigError, ResizeError, TraceError
from apical.growth._schedule import is_last, scheduled_load
from growth.cases import built, example, grown, sgd, structure_of

fractions = st.floats(0.01, 1.0)


@given(end=fractions, seed_load=fractions, schedule=st.sampled_from(["linear", "geometric"]))
def test_the_schedule_rises_from_the_seed_to_the_budget(end: float, seed_load: float, schedule: Any) -> None:
    config = GrowthConfig(growth_end=end, freeze_at=1.0, schedule=schedule)
    loads = [scheduled_load(config, i / 40, seed_load) for i in range(41)]
    assert loads[0] == pytest.approx(seed_load)
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(loads))
    assert scheduled_load(config, end, seed_load) == loads[-1] == 1


@given(end=fractions, seed_load=st.floats(1.0, 50.0), schedule=st.sampled_from(["linear", "geometric"]))
def test_the_schedule_falls_from_a_large_start_to_the_budget(end: float, seed_load: float, schedule: Any) -> None:
    config = GrowthConfig(growth_end=end, freeze_at=1.0, schedule=schedule)
    loads = [scheduled_load(config, i / 40, seed_load) for i in range(41)]
    assert loads[0] == pytest.approx(seed_load)
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(loads))
    assert scheduled_load(config, end, seed_load) == loads[-1] == 1


def test_the_geometric_schedule_starts_slower() -> None:
    linear, geometric = (GrowthConfig(schedule=s, growth_end=0.5, freeze_at=0.5) for s in ("linear", "geometric"))
    assert scheduled_load(geometric, 0.25, 0.16) == pytest.approx(0.4)
    assert scheduled_load(linear, 0.25, 0.16) == pytest.approx(0.58)


@given(
    total=st.integers(1, 50), interval=st.integers(1, 60), end=fractions, freeze=fractions,
)  # fmt: skip
def test_some_restructuring_is_the_last_and_lies_within_training(
    total: int, interval: int, end: float, freeze: float
) -> None:
    config = GrowthConfig(growth_end=min(end, freeze), freeze_at=max(end, freeze))
    events = [done for done in range(1, total) if done % interval == 0]
    last = [done for done in events if is_last(config, done, total, interval)]
    assert bool(last) == bool(events)
    if last:
        assert last[0] / total >= config.freeze_at or last[0] == events[-1]


def test_freezing_follows_the_end_of_growth_unless_it_is_given() -> None:
    """Each of the two can be changed alone, also in a config that others are made from."""
    assert GrowthConfig(growth_end=0.75).freeze == 0.75
    assert replace(GrowthConfig(), growth_end=0.2).freeze == 0.2
    assert GrowthConfig(freeze_at=0.9).freeze == 0.9
    with pytest.raises(ConfigError, match=r"freeze_at \(0.3\) lies before growth_end \(0.4\)"):
        GrowthConfig(freeze_at=0.3)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"seed_style": "tiny"}, "seed_style"),
    ({"schedule": "cosine"}, "schedule"),
    ({"interval_unit": "minutes"}, "interval_unit"),
    ({"sampling": None}, "sampling"),
    ({"noise": 3}, "noise"),
    ({"scores": "fixed"}, "scores"),
    ({"temperature": "hot"}, "temperature"),
    ({"birth": "spontaneous"}, "birth"),
    *[({name: value}, name) for name in ("growth_end", "freeze_at")
      for value in (0, -0.1, 1.5, float("nan"), "half", True)],
    ({"growth_end": None}, "growth_end"),
    *[({"seed_fraction": value}, "seed_fraction")
      for value in (0, -0.1, float("inf"), float("nan"), "half", None, True)],
    *[({name: value}, name) for name in ("interval", "divisor", "min_units") for value in (0, -1, 1.5, "2", True)],
    ({"freeze_at": 0.3, "growth_end": 0.6}, "freeze_at"),
    ({"beta_final": 0.5}, "beta_final"),
    ({"beta_final": float("inf")}, "beta_final"),
    ({"score_lr": -1}, "score_lr"),
    ({"score_lr": "0.1"}, "score_lr"),
    ({"score_momentum": 1.0}, "score_momentum"),
    ({"score_momentum": -0.1}, "score_momentum"),
    ({"lambda_channels": float("nan")}, "lambda_channels"),
    ({"lambda_blocks": -1.0}, "lambda_blocks"),
    ({"grow_depth": "yes"}, "grow_depth"),
    ({"grow_depth": 1}, "grow_depth"),
    ({"ignore": "layer1"}, "ignore"),
    ({"ignore": (1,)}, "ignore"),
    ({"seed": 1.5}, "seed"),
    ({"seed": -1}, "seed"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "name"), WRONG)
def test_an_option_that_cannot_work_is_refused_by_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        GrowthConfig(**options)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"growth_end.*interval"):
        GrowthConfig(growth_end=3, interval=0)


def unchanged(model: nn.Module, before: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    now = model.state_dict()
    return (
        now.keys() == before.keys()
        and all(torch.equal(now[k], v) for k, v in before.items())
        and not optimizer._optimizer_step_pre_hooks
        and [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in model.parameters()]
    )


REFUSED: list[tuple[dict[str, Any], type[ApicalError], str]] = [
    ({"divisors": 8}, ConfigError, "'divisors'; did you mean 'divisor'"),
    ({"xyz": 8}, ConfigError, "no option 'xyz'; options are seed_style"),
    ({"divisor": 0}, ConfigError, "divisor"),
    ({"config": {"divisor": 8}}, ConfigError, "config must be a GrowthConfig, got dict"),
    ({"epochs": 0}, ConfigError, "epochs"),
    ({"epochs": 2.5}, ConfigError, "epochs"),
    ({"interval_unit": "steps"}, ConfigError, "steps_per_epoch"),
    ({"interval_unit": "steps", "steps_per_epoch": 0}, ConfigError, "steps_per_epoch"),
    ({"ignore": ("layer9",)}, ConfigError, "'layer9'"),
    ({"optimizer": None}, ConfigError, "optimizer must be"),
    ({"optimizer": []}, ConfigError, "optimizer must be"),
    ({"optimizer": "sgd"}, ConfigError, "optimizer must be"),
    ({"budget": "1% macs", "grow_depth": False}, BudgetError, r"smallest .* costs [\d,]+ \("),
    ({"budget": "0.001% macs"}, BudgetError, r"smallest .* costs [\d,]+ \("),
    ({"budget": "0.00001M params"}, BudgetError, r"smallest .* costs [\d,]+ \("),
    ({"budget": "1T macs"}, BudgetError, "whole model costs only"),
    ({"budget": "50% macs, 0.001% params"}, BudgetError, r"0.001% params.*smallest"),
    ({"budget": "50% macs", "divisor": 4, "min_units": 99}, BudgetError, "smallest"),
    ({"budget": "50%"}, BudgetError, "cannot read"),
    ({"budget": 0.5}, BudgetError, "a budget is a text or apical.Budget, got float"),
    ({"structure": "mlp"}, ResizeError, "does not fit the structure"),
    ({"optimizer": "other"}, ResizeError, "belongs to another model"),
    ({"copies": "other"}, ResizeError, "copy 0"),
    ({"model": "compiled"}, ResizeError, "before torch.compile"),
    ({"model": "compiled", "structure": None}, TraceError, "before torch.compile"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_cannot_work_is_refused_before_anything_changes(
    options: dict[str, Any], error: type[ApicalError], message: str
) -> None:
    options = dict(options)
    model = built("residual")
    before, optimizer, other = copy.deepcopy(model.state_dict()), sgd(model), built("mlp")
    given: dict[str, Any] = {
        "model": model, "optimizer": optimizer, "example_inputs": example("residual"), "budget": "50% macs",
        "epochs": 4, "structure": structure_of("residual"), **options,
    }  # fmt: skip
    given["structure"] = structure_of("mlp") if given["structure"] == "mlp" else given["structure"]
    given["optimizer"] = sgd(other) if given["optimizer"] == "other" else given["optimizer"]
    given["copies"] = [other] if given.get("copies") == "other" else given.get("copies", ())
    given["model"] = torch.compile(model) if given["model"] == "compiled" else given["model"]
    with pytest.raises(error, match=message):
        Grower(**given)
    assert unchanged(model, before, optimizer)


def test_a_thin_seed_that_exceeds_the_budget_is_refused_with_advice() -> None:
    """All blocks with their streams cost more than the budget; small everywhere can meet it."""
    model = built("residual")
    before, optimizer = copy.deepcopy(model.state_dict()), sgd(model)
    with pytest.raises(BudgetError, match=r"smallest thin network costs .* seed_style='small'.*reachable [\d,]+ to"):
        grown("residual", model, optimizer, budget="100 params", depth_share=0.0)
    assert unchanged(model, before, optimizer)
    grower = grown("residual", model, optimizer, budget="100 params", seed_style="small")
    assert grower.bound.load(grower.state_dict()["keep"], grower.state_dict()["skip"]) <= 1.002


def test_options_override_the_config() -> None:
    model = built("mlp")
    grower = grown("mlp", model, sgd(model), config=GrowthConfig(divisor=4, seed=7), divisor=2)
    assert (grower.config.divisor, grower.config.seed, grower.config.score_lr) == (2, 7, 2.0)


def test_the_papers_version_can_be_changed() -> None:
    config = GrowthConfig.scs(noise="fixed", divisor=8)
    assert (config.sampling, config.noise, config.birth, config.divisor) == ("lambda", "fixed", "random", 8)
    with pytest.raises(ConfigError, match="noise"):
        GrowthConfig.scs(noise="loud")


def test_tracing_errors_come_through() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(TraceError, match="nothing in Sequential can be grown"):
        Grower(model, sgd(model), torch.zeros(1, 4), "50% macs", 3)
    with pytest.raises(TraceError, match="example"):
        Grower(built("mlp"), sgd(model), torch.zeros(1, 5), "50% macs", 3)


def test_a_structure_found_before_is_the_same_as_none() -> None:
    models = [built("mlp"), built("mlp")]
    with_it = Grower(models[0], sgd(models[0]), example("mlp"), "50% macs", 4, structure=structure_of("mlp"))
    without = Grower(models[1], sgd(models[1]), [example("mlp")], "50% macs", 4)
    assert with_it.structure == without.structure == trace(built("mlp"), example("mlp"))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.fixture
def likes_eights(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that pads to multiples of 8, instead of a measurement."""
    calls: list[int] = []

    def step_ms(layer: nn.Module, x: torch.Tensor) -> float:
        calls.append(1)
        return float(ceil(layer.weight.shape[0] / 8) * ceil(layer.weight.shape[1] / 8))

    monkeypatch.setattr("apical.budget._divisor.time_step_ms", step_ms)
    return calls


def test_the_measured_divisor_becomes_a_number(likes_eights: list[int]) -> None:
    """The network is that of the number, and a saved state brings its own."""
    given, measured, resumed = built("mlp"), built("mlp"), built("mlp")
    grower = grown("mlp", measured, sgd(measured), divisor="auto")
    assert likes_eights
    assert grower.config.divisor == 8
    assert grower.divisor_choice is not None
    assert "8" in str(grower.divisor_choice)
    other = grown("mlp", given, sgd(given), divisor=8)
    assert other.divisor_choice is None
    assert grower.keep == other.keep
    for mine, theirs in zip((grower.end_epoch() for _ in range(3)), (other.end_epoch() for _ in range(3)), strict=True):
        assert mine["widths"] == theirs["widths"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apical.budget._divisor.time_step_ms", lambda *_: 1.0)
        again = grown("mlp", resumed, sgd(resumed), divisor="auto")
    assert again.config.divisor == 1, "this device measures otherwise"
    again.load_state_dict(grower.state_dict())
    assert again.config.divisor == 8
    while len(again.history) < again.epochs:
        assert again.end_epoch()["widths"] == grower.end_epoch()["widths"]
    assert all(n % 8 == 0 for n in again.history[-1]["widths"].values())


def test_a_foreign_state_does_not_change_the_divisor(likes_eights: list[int]) -> None:
    model = built("mlp")
    grower = grown("mlp", model, sgd(model), divisor="auto")
    for divisor in (3, "auto", True, None, [8]):
        state = grower.state_dict()
        state["identity"] = {**state["identity"], "divisor": divisor}
        with pytest.raises(CheckpointError, match="divisor was"):
            grower.load_state_dict(state)
        assert grower.config.divisor == 8


@pytest.mark.parametrize(("options", "frozen"), [
    ({"freeze_at": 0.5, "growth_end": 0.5}, [False, False, False, True, True, True, True]),
    ({"freeze_at": 1.0, "growth_end": 1.0}, [False, False, False, False, False, True, True]),
    ({"interval": 6}, [True] * 7),
    ({"interval": 2, "freeze_at": 0.6}, [False, False, False, False, True, True, True]),
])  # fmt: skip
def test_a_frozen_network_does_not_change_any_more(options: dict[str, Any], frozen: list[bool]) -> None:
    """What is said from the start and after each of six epochs; also after a state was loaded."""
    model = built("mlp")
    grower = grown("mlp", model, sgd(model), **options)
    said, kept = [grower.frozen], [grower.keep]
    for _ in range(6):
        grower.end_epoch()
        said.append(grower.frozen)
        kept.append(grower.keep)
    assert said == frozen
    assert all(keep == kept[-1] for keep, over in zip(kept, said, strict=True) if over)
    twin = built("mlp")
    again = grown("mlp", twin, sgd(twin), **options)
    again.load_state_dict(grower.state_dict())
    assert again.frozen
