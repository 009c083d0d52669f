"""The schedule, and options that cannot work."""

from __future__ import annotations

import copy
import itertools
from functools import partial
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apical import Grower, GrowthConfig
from apical.baselines import Comparator, Uniform
from apical.errors import ApicalError, BudgetError, CheckpointError, ConfigError, ResizeError, TraceError
from apical.growth import ScsConfig
from apical.growth._schedule import Schedule, with_times
from growth.cases import begun, built, example, grown, sgd, structure_of

fractions = st.floats(0.01, 1.0)


@given(end=fractions, seed_load=st.one_of(fractions, st.floats(1.0, 50.0)))
def test_the_schedule_goes_from_the_seed_to_the_budget(end: float, seed_load: float) -> None:
    """Up from a small seed, down from a large one."""
    schedule = Schedule(growth_end=end, interval=1, length=40)
    loads = [schedule.load(i, seed_load) for i in range(41)]
    assert loads[0] == pytest.approx(seed_load)
    way = 1 if seed_load <= 1 else -1
    assert all(way * b >= way * a - 1e-12 for a, b in itertools.pairwise(loads))
    assert loads[-1] == 1


def test_the_schedule_is_linear_in_time() -> None:
    schedule = Schedule(growth_end=0.5, interval=1, length=8)
    assert [schedule.load(done, 0.2) for done in (1, 2, 3)] == pytest.approx([0.4, 0.6, 0.8])
    assert schedule.load(2, 3.0) == pytest.approx(2.0)


@given(
    epochs=st.integers(1, 300), steps=st.integers(1, 2000), end=fractions,
)  # fmt: skip
def test_an_interval_that_is_chosen_is_an_epoch_or_a_sixteenth_of_growth(epochs: int, steps: int, end: float) -> None:
    config = GrowthConfig(growth_end=end)
    by_epochs, length = with_times(config, epochs, None)
    assert (by_epochs.interval, by_epochs.interval_unit, length) == (1, "epochs", epochs)
    by_steps, length = with_times(config, epochs, steps)
    assert (by_steps.interval_unit, length) == ("steps", epochs * steps)
    assert isinstance(by_steps.interval, int)
    assert 1 <= by_steps.interval <= steps
    if by_steps.interval < steps:  # growth takes fewer than sixteen epochs
        assert by_steps.interval >= 8
        assert by_steps.interval == 8 or 16 <= end * length / by_steps.interval + 1 <= 19
    else:
        assert end * epochs >= 15.9 or steps <= 8 or end * length < 16 * 8


@pytest.mark.parametrize(
    ("options", "steps", "expected"),
    [
        ({"interval": 3}, None, (3, "epochs", 10)),
        ({"interval": 3}, 50, (3, "steps", 500)),
        ({"interval": 3, "interval_unit": "epochs"}, 50, (3, "epochs", 10)),
        ({"interval_unit": "epochs"}, 50, (1, "epochs", 10)),
        ({"interval_unit": "steps"}, 50, (8, "steps", 500)),
        ({"interval_unit": "steps", "growth_end": 0.4}, 50, (12, "steps", 500)),
        ({"interval_unit": "steps", "growth_end": 0.8}, 50, (25, "steps", 500)),
    ],
)
def test_an_interval_that_is_given_is_kept(
    options: dict[str, Any], steps: int | None, expected: tuple[int, str, int]
) -> None:
    config, length = with_times(GrowthConfig(**options), 10, steps)
    assert (config.interval, config.interval_unit, length) == expected


@pytest.mark.parametrize(
    ("epochs", "steps", "options", "end"),
    [
        (40, 156, {}, 0.25),
        (160, None, {}, 0.25),
        (50, None, {}, 0.32),  # sixteen epochs
        (10, None, {}, 0.4),
        (10, 4, {}, 0.4),
        (100, None, {"interval": 2}, 0.32),
        (160, None, {"growth_end": 0.4}, 0.4),
    ],
)
def test_growth_ends_as_early_as_sixteen_restructurings_allow(
    epochs: int, steps: int | None, options: dict[str, Any], end: float
) -> None:
    assert with_times(GrowthConfig(**options), epochs, steps)[0].growth_end == pytest.approx(end)


@given(total=st.integers(1, 50), interval=st.integers(1, 60), end=fractions)
def test_some_restructuring_is_the_last_and_lies_within_training(total: int, interval: int, end: float) -> None:
    schedule = Schedule(end, interval, total)
    events = [done for done in range(1, total) if schedule.due(done)]
    last = [done for done in events if schedule.is_last(done)]
    assert bool(last) == bool(events) != schedule.at_once
    if last:
        assert last[0] / total >= end or last[0] == events[-1]


SHARED: list[tuple[dict[str, Any], str]] = [  # wrong in either way of growing
    ({"interval_unit": "minutes"}, "interval_unit"),
    ({"birth": "spontaneous"}, "birth"),
    *[({"growth_end": value}, "growth_end") for value in (0, -0.1, 1.5, float("nan"), "half", True, None)],
    *[({"seed_fraction": value}, "seed_fraction")
      for value in (0, -0.1, float("inf"), float("nan"), "half", None, True)],
    *[({name: value}, name) for name in ("interval", "divisor", "min_units") for value in (0, -1, 1.5, "2", True)],
    ({"grow_depth": "yes"}, "grow_depth"),
    ({"grow_depth": 1}, "grow_depth"),
    ({"ignore": "layer1"}, "ignore"),
    ({"ignore": (1,)}, "ignore"),
    ({"seed": 1.5}, "seed"),
    ({"seed": -1}, "seed"),
]  # fmt: skip
WRONG: list[tuple[Any, dict[str, Any], str]] = [
    *[(kind, options, name) for kind in (GrowthConfig, ScsConfig) for options, name in SHARED],
    *[(GrowthConfig, options, name) for options, name in [
        ({"seed_style": "tiny"}, "seed_style"),
        ({"utility": "taste"}, "utility"),
        ({"utility": None}, "utility"),
        *[({"damping": value}, "damping") for value in (-0.1, 1.1, float("nan"), "half", None, True)],
        *[({"shrinkage": value}, "shrinkage") for value in (-0.1, 1.1, float("nan"), "half", None, True)],
        *[({"max_change": value}, "max_change") for value in (0.9, -2, float("inf"), float("nan"), "2", None, True)],
        ({"min_units": "auto"}, "min_units"),
    ]],
    *[(ScsConfig, options, name) for options, name in [
        ({"sampling": "independent"}, "sampling"),
        ({"sampling": None}, "sampling"),
        ({"scores": "fixed"}, "scores"),
        ({"interval": "auto"}, "interval"),
        ({"interval_unit": "auto"}, "interval_unit"),
        ({"seed_fraction": 1.0}, "seed_fraction"),
        ({"beta_final": 0.5}, "beta_final"),
        ({"beta_final": float("inf")}, "beta_final"),
        ({"score_lr": -1}, "score_lr"),
        ({"score_lr": "0.1"}, "score_lr"),
        ({"score_momentum": 1.0}, "score_momentum"),
        ({"score_momentum": -0.1}, "score_momentum"),
        ({"lambda_base": float("nan")}, "lambda_base"),
        ({"lambda_base": -1.0}, "lambda_base"),
    ]],
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "name"), WRONG)
def test_an_option_that_cannot_work_is_refused_by_name(kind: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        kind(**options)


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
    ({"seed_style": "thin"}, ConfigError, "seed_style must be 'small' or 'pretrained', got 'thin'"),
    ({"seed_style": "pretrain"}, ConfigError, "got 'pretrain'; did you mean 'pretrained'"),
    ({"xyz": 8}, ConfigError, "no option 'xyz'; options are seed_style"),
    ({"divisor": 0}, ConfigError, "divisor"),
    ({"config": ScsConfig(), "seed_style": "small"}, ConfigError, "no option 'seed_style'"),
    ({"config": ScsConfig(), "score_rl": 1.0}, ConfigError, "'score_rl'; did you mean 'score_lr'"),
    ({"config": ScsConfig(interval_unit="steps")}, ConfigError, "steps_per_epoch"),
    ({"config": {"divisor": 8}}, ConfigError, "config must be a GrowthConfig or ScsConfig, got dict"),
    ({"epochs": 0}, ConfigError, "epochs"),
    ({"epochs": 2.5}, ConfigError, "epochs"),
    ({"interval_unit": "steps"}, ConfigError, "steps_per_epoch"),
    ({"interval_unit": "steps", "steps_per_epoch": 0}, ConfigError, "steps_per_epoch"),
    ({"ignore": ("layer9",)}, ConfigError, "'layer9'"),
    ({"optimizer": None}, ConfigError, "optimizer must be"),
    ({"optimizer": []}, ConfigError, "optimizer must be"),
    ({"optimizer": "sgd"}, ConfigError, "optimizer must be .* got 'sgd'$"),
    ({"optimizer": built("residual")}, ConfigError, r"got a \w+; the order is Grower\(model, optimizer, example"),
    ({"optimizer": [built("residual")]}, ConfigError, r"optimizer must be .* got a \w+$"),
    ({"budget": built("residual")}, BudgetError, r"a budget is a text or apical.Budget, got a \w+; write"),
    ({"epochs": built("residual")}, ConfigError, r"epochs must be .* got a \w+$"),
    ({"divisor": built("residual")}, ConfigError, r"divisor must be .* got a \w+$"),
    ({"copies": built("residual")}, ConfigError, r"copies must be a list of modules, got a \w+: write copies="),
    ({"budget": "1% macs", "grow_depth": False}, BudgetError, r"smallest .* costs [\d,]+ (MACs|parameters) \("),
    ({"budget": "0.001% macs"}, BudgetError, r"smallest .* costs [\d,]+ (MACs|parameters) \("),
    ({"budget": "0.00001M params"}, BudgetError, r"smallest .* costs [\d,]+ (MACs|parameters) \("),
    ({"budget": "1T macs"}, BudgetError, "whole model costs only"),
    ({"budget": "50% macs, 0.001% params"}, BudgetError, r"0.001% params.*smallest"),
    ({"budget": "50% macs", "divisor": 4, "min_units": 99, "grow_depth": False}, BudgetError, "smallest"),
    ({"budget": "50%"}, BudgetError, "cannot read"),
    ({"budget": 0.5}, BudgetError, "a budget is a text or apical.Budget, got float"),
    ({"structure": "mlp"}, ResizeError, "does not fit the structure"),
    ({"example_inputs": torch.zeros(1, 5)}, TraceError, r"not run on the example inputs \(float32 \(1, 5\)\)"),
    ({"example_inputs": []}, TraceError, r"not run on the example inputs \(none\)"),
    ({"example_inputs": (3,)}, TraceError, r"not run on the example inputs \(int\)"),
    ({"example_inputs": {"q": torch.zeros(1)}}, TraceError, r"not run on the example inputs \(q="),
    ({"example_inputs": example("residual").long()}, TraceError, "not run on the example inputs"),
    ({"shard": lambda model: 1 / 0}, ConfigError, r"shard failed \(ZeroDivisionError: division by zero\)"),
    ({"shard": lambda model: None}, ConfigError, "did not shard anything"),
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


def test_a_thin_seed_that_exceeds_the_budget_is_small_everywhere() -> None:
    """All blocks with their streams cost more than the budget."""
    thin, small = built("residual"), built("residual")
    first = grown("residual", thin, sgd(thin), budget="100 params")
    second = grown("residual", small, sgd(small), budget="100 params", seed_style="small")
    assert first.bound.load(first.state_dict()["keep"], first.state_dict()["skip"]) <= 1.002
    assert (first.keep, first.state_dict()["skip"]) == (second.keep, second.state_dict()["skip"])


def test_options_override_the_config() -> None:
    _, _, grower = begun("mlp", config=GrowthConfig(divisor=4, seed=7), divisor=2)
    assert (grower.config.divisor, grower.config.seed, grower.config.damping) == (2, 7, 0.35)
    _, _, grower = begun("mlp", config=ScsConfig(divisor=4, seed=7), divisor=2)
    assert grower.config == ScsConfig(divisor=2, seed=7)


@pytest.mark.parametrize("make", [Grower, partial(Comparator, Uniform())])
def test_a_divisor_by_which_nothing_is_rounded_is_warned_of(make: Any) -> None:
    def begin(divisor: int) -> None:
        model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
        make(model, sgd(model), torch.zeros(1, 4), "50% macs", 4, divisor=divisor)

    with pytest.warns(UserWarning, match=r"divisor=64 rounds no width.*largest has 16\..*at most 8") as caught:
        begin(64)
    assert caught[0].filename == __file__
    begin(8)  # no warning, which would be an error: it rounds the larger one


def test_the_papers_control_can_be_changed() -> None:
    config = ScsConfig.random(birth="preserving", divisor=8)
    assert (config.sampling, config.scores, config.birth, config.divisor) == ("budgeted", "random", "preserving", 8)
    with pytest.raises(ConfigError, match="birth"):
        ScsConfig.random(birth="loud")


@pytest.fixture
def likes_eights(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that pads to multiples of 8, instead of a measurement."""
    calls: list[int] = []

    def step_ms(layer: nn.Module, x: torch.Tensor) -> float:
        calls.append(1)
        return float(ceil(layer.weight.shape[0] / 8) * ceil(layer.weight.shape[1] / 8))

    monkeypatch.setattr("apical.timing._divisor.time_step_ms", step_ms)
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
        patch.setattr("apical.timing._divisor.time_step_ms", lambda *_: 1.0)
        again = grown("mlp", resumed, sgd(resumed), divisor="auto")
    assert again.config.divisor == 1, "this device measures otherwise"
    again.load_state_dict(grower.state_dict())
    assert again.config.divisor == 8
    while len(again.history) < again.epochs:
        assert again.end_epoch()["widths"] == grower.end_epoch()["widths"]
    assert all(n % 8 == 0 for n in again.history[-1]["widths"].values())


def test_a_foreign_state_does_not_change_the_divisor(likes_eights: list[int]) -> None:
    _, _, grower = begun("mlp", divisor="auto")
    for divisor in (3, "auto", True, None, [8]):
        state = grower.state_dict()
        state["identity"] = {**state["identity"], "divisor": divisor}
        with pytest.raises(CheckpointError, match="divisor was"):
            grower.load_state_dict(state)
        assert grower.config.divisor == 8


@pytest.mark.parametrize(("options", "frozen"), [
    ({"growth_end": 0.5}, [False, False, False, True, True, True, True]),
    ({"growth_end": 1.0}, [False, False, False, False, False, True, True]),
    ({"interval": 6}, [True] * 7),
    ({"interval": 2, "growth_end": 0.6}, [False, False, False, False, True, True, True]),
])  # fmt: skip
def test_a_frozen_network_does_not_change_any_more(options: dict[str, Any], frozen: list[bool]) -> None:
    """What is said from the start and after each of six epochs; also after a state was loaded."""
    _, _, grower = begun("mlp", **options)
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
