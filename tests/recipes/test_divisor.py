"""`growth.divisor=auto` in runs: measured once, kept in the run's config, the same for every method and process."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apical.errors import ConfigError
from apical.runs import compare, read_config, run
from apical.runs._plan import plan_recipe
from apical.training import make_progress
from marks import slow
from recipes.test_run import StopAfter, do, tiny
from tiny_run import assert_same_run

AUTO = ("growth.divisor=auto", "model.width=16")


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """A device that pads to multiples of 4, instead of a measurement; the inputs that it was asked to time."""
    seen: list[tuple[int, ...]] = []

    def step_ms(layer: nn.Module, x: torch.Tensor) -> float:
        seen.append(tuple(x.shape))
        return float(ceil(layer.weight.shape[0] / 4) * ceil(layer.weight.shape[1] / 4))

    monkeypatch.setattr("apical.timing._divisor.time_step_ms", step_ms)
    return seen


def never(*_: Any) -> float:
    raise AssertionError("measured again")


@pytest.mark.parametrize("method", ["grown", slow("scs"), slow("uniform"), slow("taylor")])
def test_every_method_goes_by_the_measured_number(method: str, shapes: list[Any], tmp_path: Path) -> None:
    result = do(tiny(*AUTO, f"method={method}"), tmp_path / "auto")
    assert {shape[0] for shape in shapes} == {16}, "the batch of training"
    assert result.summary["divisor"] == read_config(tmp_path / "auto").growth.divisor == 4
    assert "growth.divisor=4" in result.summary["command"]
    assert all(width % 4 == 0 for width in result.summary["widths"].values())
    given = do(tiny(*AUTO, f"method={method}", "growth.divisor=4"), tmp_path / "given")
    assert_same_run(result, given)  # as if the number had been given


def test_a_resumed_run_does_not_measure(shapes: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = do(tiny(*AUTO), tmp_path / "whole")
    for name, config in {"as_written": None, "as_given": tiny(*AUTO)}.items():
        with monkeypatch.context() as patch:
            with pytest.raises(KeyboardInterrupt):
                run(tiny(*AUTO), tmp_path / name, progress=StopAfter(2))
            patch.setattr("apical.timing._divisor.time_step_ms", never)
            resumed = do(config or read_config(tmp_path / name), tmp_path / name, resume=True)
        assert whole.summary["test_loss"] == resumed.summary["test_loss"]
        assert whole.summary["widths"] == resumed.summary["widths"]


def test_the_choice_is_shown(shapes: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tiny(*AUTO, "epochs=1"), tmp_path, progress=make_progress("plain"))
    assert "divisor 4, by steps of layer" in capsys.readouterr().out


def test_a_comparison_measures_once(shapes: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def together(methods: list[str]) -> None:
        config = tiny(*AUTO, "epochs=2", "limit=32")
        compare(config, methods, [0], tmp_path, latency=False, progress=lambda: make_progress("quiet"),
                message=lines.append)  # fmt: skip

    together(["uniform"])
    assert lines[0].startswith("divisor 4, by steps of")
    monkeypatch.setattr("apical.timing._divisor.time_step_ms", never)
    together(["uniform", "l1"])
    assert lines[-3:] == [
        "divisor 4, as measured before", "uniform, seed 0 (1 of 2): done before", "l1, seed 0 (2 of 2): done"
    ]  # fmt: skip
    assert "divisor=4" in json.loads((tmp_path / "compare.json").read_text())["command"]


def test_a_divisor_of_one_method_is_not_taken_for_the_measured_one(shapes: list[Any], tmp_path: Path) -> None:
    def together(methods: list[str]) -> None:
        compare(tiny(*AUTO, "epochs=2", "limit=32"), methods, [0], tmp_path, options={"uniform": {"divisor": 2}},
                latency=False, progress=lambda: make_progress("quiet"))  # fmt: skip

    together(["uniform"])
    together(["uniform", "l1"])
    assert [read_config(tmp_path / f"{m}-seed0").growth.divisor for m in ("uniform", "l1")] == [2, 4]


def test_a_method_of_a_comparison_may_measure_alone_and_go_on(
    shapes: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def together(methods: list[str]) -> None:
        compare(tiny("model.width=16", "epochs=2", "limit=32"), methods, [0], tmp_path,
                options={"uniform": {"divisor": "auto"}}, latency=False,
                progress=lambda: make_progress("quiet"))  # fmt: skip

    together(["uniform"])
    monkeypatch.setattr("apical.timing._divisor.time_step_ms", never)
    together(["uniform", "l1"])
    assert [read_config(tmp_path / f"{m}-seed0").growth.divisor for m in ("uniform", "l1")] == [4, 1]


def test_a_method_that_has_no_widths_to_round_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apical.timing._divisor.time_step_ms", never)
    do(tiny(*AUTO, "epochs=1", "method=dense"), tmp_path / "alone")
    compare(tiny(*AUTO, "epochs=1"), ["dense"], [0], tmp_path, latency=False,
            progress=lambda: make_progress("quiet"))  # fmt: skip
    assert [read_config(tmp_path / run).growth.divisor for run in ("alone", "dense-seed0")] == ["auto", "auto"]


def test_what_cannot_measure_says_so() -> None:
    config = tiny(*AUTO)
    with pytest.raises(ConfigError, match=r"a plan cannot choose growth\.divisor=auto"):
        plan_recipe(config, {"classes": ["a", "b"], "image_shape": [3, 16, 16]})
    with pytest.raises(ConfigError, match="divisor='auto' has not been measured here"):
        _ = config.growth.step
    with pytest.raises(ConfigError, match="expected a whole number or 'auto', got 'best'"):
        tiny("growth.divisor=best")
