"""Whole runs on generated images: every method leaves a whole folder, repeats bit for bit, and resumes."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import apical
from apical.errors import ApicalError, ConfigError
from apical.recipes import RunConfig, apply_settings, get_recipe
from apical.recipes._task_kind import task_kind
from apical.runs import load_run, methods, read_config, run
from apical.training import Progress, TrainingResult, make_progress
from apical.training._progress import SilentProgress
from marks import slow
from timing.test_latency_table import counted  # noqa: F401 - a fixture: a clock that does not depend on the machine
from tiny_run import assert_same_run

FILES = {
    "config.json",
    "history.jsonl",
    "checkpoint.pt",
    "architecture.json",
    "model.safetensors",
    "summary.json",
    "report.html",
    "template.json",
}
SUMMARY = {
    "test_accuracy",
    "macs",
    "macs_fraction",
    "num_params",
    "params_fraction",
    "train_macs_fraction",
    "train_macs_vs_final",
    "train_seconds",
    "seed",
    "method",
    "recipe",
    "device",
    "versions",
    "budget",
    "command",
    "template",
    "widths",
}
TINY = (
    "data.path=synthetic",
    "limit=64",
    "crop_padding=1",
    "batch_size=16",
    "epochs=4",
    "model.depth=8",
    "model.width=8",
    "device=cpu",
    "lr=0.05",
)


def tiny(*settings: str) -> RunConfig:
    return apply_settings(get_recipe("digits"), [*TINY, *settings])


@pytest.mark.usefixtures("counted")
def test_a_run_with_a_latency_budget_says_what_it_measured_and_what_it_ended_with(tmp_path: Path) -> None:
    told = io.StringIO()
    result = run(tiny("epochs=3", "budget=70% latency"), tmp_path / "run", progress=make_progress("plain", told))
    assert 0.4 < result.summary["latency_fraction"] <= 0.702
    assert result.history[-1]["latency_ms"] == result.summary["latency_ms"]
    assert re.search(
        r"the full model takes \S+ ms: one call on the example inputs, .* by at most \d+%", told.getvalue()
    )
    share = f"predicted latency {result.summary['latency_fraction']:.1%}".replace("%", " %")
    assert share in told.getvalue().splitlines()[-1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{result.summary['latency_fraction']:.1%}".replace(
        "%", " %"
    ) + " of the full model's latency" in html.unescape(page)
    assert "ms of a call, predicted" in page


def do(config: RunConfig, out: Path, **options: Any) -> TrainingResult:
    return run(config, out, progress=make_progress("quiet"), **options)


@pytest.mark.parametrize("method", ["grown", slow("dense"), slow("uniform")])
def test_every_method_leaves_a_whole_run_folder(method: str, tmp_path: Path) -> None:
    assert method in methods()
    result = do(tiny(f"method={method}"), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} - {"checkpoint.prev.pt"} == FILES
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) >= SUMMARY
    assert (summary["method"], summary["recipe"], summary["seed"]) == (method, "digits", 0)
    assert summary["num_params"] == sum(p.numel() for p in result.model.parameters())
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 4
    structure = apical.trace(result.model, torch.zeros(1, 3, 16, 16))
    assert structure.macs() == summary["macs"]
    if method == "dense":
        assert summary["macs_fraction"] == summary["train_macs_fraction"] == 1
    else:
        assert summary["macs_fraction"] <= 0.505
    if method == "uniform":
        assert summary["macs_fraction"] == pytest.approx(0.5, rel=0.06)  # widths of 8 are coarse
        assert summary["train_macs_vs_final"] == 1


def test_the_saved_network_is_that_of_the_run(tmp_path: Path) -> None:
    result = do(tiny(), tmp_path)
    model, full_model, (example,) = load_run(tmp_path)
    assert tuple(example.shape) == (1, 3, 16, 16)
    assert sum(p.numel() for p in full_model.parameters()) > sum(p.numel() for p in model.parameters())
    assert {type(m) for m in model.modules()} <= {type(m) for m in full_model.modules()}
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images), result.model.eval()(images))
    assert read_config(tmp_path) == tiny()


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first, second, third = (do(tiny(f"seed={seed}"), tmp_path / str(n)) for n, seed in enumerate((3, 3, 4)))
    assert_same_run(first, second)
    a, c = first.model.state_dict(), third.model.state_dict()
    assert any(a[name].shape != c[name].shape or not torch.equal(a[name], c[name]) for name in a if name in c)


class StopAfter(SilentProgress):
    """A progress display that stops the run by an exception after an epoch, as a killed process would."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def epoch(self, record: Any) -> None:
        if record["epoch"] == self.epochs:
            raise KeyboardInterrupt


def resumed_as_whole(config: RunConfig, folder: Path, progress: Progress | None = None) -> TrainingResult:
    """Runs once through, and once stopped by a display (after two epochs if none) and resumed: both end alike."""
    whole = do(config, folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, folder / "cut", progress=progress or StopAfter(2))
    assert_same_run(whole, do(read_config(folder / "cut"), folder / "cut", resume=True))
    return whole


@pytest.mark.parametrize("method", ["grown", slow("uniform")])
def test_a_resumed_run_ends_as_if_it_had_not_been_stopped(method: str, tmp_path: Path) -> None:
    resumed_as_whole(tiny(f"method={method}", "ema_decay=0.9", "validation_fraction=0.2"), tmp_path)


def test_wrong_methods_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no 'grow'; did you mean 'grown'"):
        do(tiny("method=grow"), tmp_path)
    with pytest.raises(ConfigError, match="does not exist; expected a run folder"):
        read_config(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no object"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run(tmp_path)


def test_an_unfinished_run_has_no_network_to_load(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny("method=dense"), tmp_path, progress=StopAfter(1))
    with pytest.raises(ApicalError, match=r"architecture\.json does not exist"):
        load_run(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["input"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="does not say what the model's input is"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**content, "input": {"classes": ["a"]}}))
    with pytest.raises(ConfigError, match="does not describe the input of a classification model"):
        load_run(tmp_path)


def test_a_task_and_its_data_must_fit() -> None:
    config = get_recipe("digits")
    with pytest.raises(ConfigError, match="no 'clasification'; did you mean 'classification'"):
        dataclasses.replace(config, task="clasification")
    with pytest.raises(ConfigError, match="a classification run needs a DataConfig, got str"):
        dataclasses.replace(config, data="digits")


@pytest.mark.parametrize("name", ["cifar10-resnet20", "cifar10-resnet56", "fashion-mnist", "cifar10-vgg16"])
def test_the_models_of_the_recipes_are_built_and_accept_their_images(name: str) -> None:
    config = get_recipe(name)
    size = config.data.image_size or 28
    channels = 1 if name == "fashion-mnist" else 3
    facts = {"classes": list("0123456789"), "image_shape": [channels, size, size]}
    model = task_kind("classification").template(config.model, facts).eval()
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 10)


@pytest.mark.slow
def test_the_demo_meets_its_budget_and_learns_the_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = do(apply_settings(get_recipe("digits"), ["device=cpu"]), tmp_path)
    assert result.summary["test_accuracy"] >= 0.97
    assert result.summary["macs_fraction"] == pytest.approx(0.5, rel=0.01)
    assert result.history[0]["macs_fraction"] <= 0.15
