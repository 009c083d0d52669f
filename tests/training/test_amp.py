"""`amp="auto"`: measured once, said, kept, and then as if it had been given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from apical.recipes import get_recipe, recipes
from apical.runs import compare, read_config
from apical.training import Classification, TrainingConfig, make_progress
from apical.training._amp import settle_amp
from recipes.test_run import tiny
from tiny_run import Recorder, TinyLoader, assert_same_run, tiny_config, tiny_model, tiny_train

MEASURED = "apical.training._amp._step_seconds"


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What a step takes, instead of a measurement."""
    found = {"none": 1.0, "bfloat16": 0.5}
    monkeypatch.setattr(MEASURED, lambda _model, _task, _batch, config, *_: found[config.amp])
    return found


@pytest.mark.parametrize(("half", "chosen"), [(0.5, "bfloat16"), (0.99, "none"), (9.0, "none")])
def test_the_faster_one_is_taken_and_said(half: float, chosen: str, seconds: dict[str, float], tmp_path: Path) -> None:
    seconds["bfloat16"] = half
    progress = Recorder()
    result = tiny_train(tmp_path / "auto", tiny_config(amp="auto"), progress=progress)
    (said,) = [text for text in progress.messages if "amp" in text]
    assert "1,000 ms in float32" in said
    assert f"{1000 * half:,.0f} ms under bfloat16" in said
    assert f"(amp={chosen})" in said
    assert json.loads((tmp_path / "auto" / "config.json").read_text())["training"]["amp"] == chosen
    assert_same_run(result, tiny_train(tmp_path / "given", tiny_config(amp=chosen)))


def test_a_resumed_run_does_not_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MEASURED, lambda *_: 1.0)
    whole = tiny_train(tmp_path / "run", tiny_config(amp="auto"))
    monkeypatch.setattr(MEASURED, None)  # cannot be called
    progress = Recorder()
    assert_same_run(whole, tiny_train(tmp_path / "run", tiny_config(amp="auto"), resume=True, progress=progress))
    assert "amp=none, as measured before" in progress.messages


def test_measuring_changes_neither_model_nor_loader() -> None:
    model, loader = tiny_model(), TinyLoader()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config, said = settle_amp(TrainingConfig(amp="auto", device="cpu"), model, Classification(), loader)
    assert config.amp in ("none", "bfloat16")
    assert " ms in float32 and " in said
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(loader.generator.get_state(), TinyLoader().generator.get_state())


def test_a_device_without_bfloat16_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def step_seconds(_model: Any, _task: Any, _batch: Any, config: TrainingConfig, *_: Any) -> float:
        if config.amp == "bfloat16":
            raise RuntimeError("no bfloat16 here\nat some line")
        return 0.1

    monkeypatch.setattr(MEASURED, step_seconds)
    config, said = settle_amp(TrainingConfig(amp="auto", device="cpu"), tiny_model(), Classification(), TinyLoader())
    assert config.amp == "none"
    assert "no step (no bfloat16 here) under bfloat16" in said


def test_a_comparison_measures_once_for_all_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def step_seconds(_model: Any, _task: Any, _batch: Any, config: TrainingConfig, *_: Any) -> float:
        measured.append(config.amp)
        return float(len(measured))

    monkeypatch.setattr(MEASURED, step_seconds)
    config = tiny("amp=auto", "epochs=1", "limit=32", "batch_size=32", "warmup_epochs=0")
    lines: list[str] = []
    for _ in range(2):  # the second time, all are done
        compare(config, ["dense", "uniform"], [0], tmp_path, latency=False, message=lines.append,
                progress=lambda: make_progress("quiet"))  # fmt: skip
    assert measured == ["none", "bfloat16"]
    assert [line for line in lines if "amp" in line] == [lines[0], "amp=none, as measured before"]
    assert {read_config(tmp_path / f"{method}-seed0").training.amp for method in ("dense", "uniform")} == {"none"}


def test_no_recipe_presumes_that_bfloat16_is_fast() -> None:
    assert {get_recipe(name).training.amp for name in recipes()} == {"none", "auto"}
