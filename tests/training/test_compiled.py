"""`compile`: the same run, compiled once the network is final or throughout; compilations counted."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from apical.errors import ConfigError
from apical.training import TrainingConfig
from tiny_run import TinyGrower, assert_same_run, tiny_config, tiny_train


class Freezing(TinyGrower):
    """Says when it has nine units: after three epochs."""

    @property
    def frozen(self) -> bool:
        return self.width >= 9


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The graphs that a backend was given, which runs them as they are."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    yield graphs
    torch.compiler.reset()


def without_counts(run: Any) -> Any:
    """The run without what only compiled ones record; returns it by epoch."""
    return [record.pop("compilations") for record in run.history]


def test_a_compiled_run_is_the_same_run(tmp_path: Path, compiled: list[Any]) -> None:
    plain = tiny_train(tmp_path / "plain", tiny_config(epochs=14))
    assert "compilations" not in plain.summary
    run = tiny_train(tmp_path / "run", tiny_config(epochs=14, compile=True))
    assert len(compiled) == len({record["widths"]["hidden"] for record in run.history})
    assert run.summary["compilations"] == len(compiled) == 4
    assert 0 < run.summary["compile_seconds"] < run.summary["step_seconds"]
    assert without_counts(run) == [1, 1, 1, 1] + [0] * 10
    assert all((record["compile_seconds"] > 0) == (record["epoch"] <= 4) for record in run.history)
    assert_same_run(plain, run)


@pytest.mark.slow
def test_only_the_final_network_is_compiled(tmp_path: Path, compiled: list[Any]) -> None:
    plain = tiny_train(tmp_path / "plain", tiny_config(epochs=6), method=Freezing)
    run = tiny_train(tmp_path / "run", tiny_config(epochs=6, compile=True), method=Freezing)
    assert len(compiled) == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["compilations"] == 1
    assert without_counts(run) == [0, 0, 0, 1, 0, 0]
    assert_same_run(plain, run)


@pytest.mark.slow
def test_a_method_that_never_freezes_is_compiled_throughout(tmp_path: Path, compiled: list[Any]) -> None:
    run = tiny_train(tmp_path / "grown", tiny_config(epochs=5, compile=True))
    assert run.summary["compilations"] == len(compiled) == 4
    run = tiny_train(tmp_path / "plain", tiny_config(epochs=3, compile=True), method=None)
    assert without_counts(run) == [1, 0, 0]


@pytest.mark.usefixtures("compiled")
def test_a_resumed_run_compiles_in_the_same_epochs(tmp_path: Path) -> None:
    """The new process compiles the network that it finds; the rest is the same run."""
    config = tiny_config(epochs=6, compile=True)
    whole = tiny_train(tmp_path / "whole", config, method=Freezing)

    def hook(epoch: int, batch: int) -> None:
        if (epoch, batch) == (6, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_train(tmp_path / "run", config, method=Freezing, hook=hook)
    resumed = tiny_train(tmp_path / "run", config, method=Freezing, resume=True)
    assert without_counts(whole)[-1] == 0
    assert without_counts(resumed)[-1] == 1
    assert_same_run(whole, resumed)


@pytest.mark.slow
def test_another_shape_of_batch_is_counted_too(tmp_path: Path, compiled: list[Any]) -> None:
    """A last, smaller batch is a graph of its own; torch may then take any size for the next."""
    from apical.training import Loaders, train
    from tiny_run import Recorder, TinyLoader, tiny_model

    loaders = Loaders(TinyLoader(samples=25), TinyLoader(shuffle=False))
    run = train(tiny_model(), None, loaders, tiny_config(epochs=2, compile=True), tmp_path, progress=Recorder())
    assert without_counts(run) == [2, 0]
    assert len(compiled) == 2


def test_the_setting() -> None:
    for good in (True, False):
        assert TrainingConfig.from_mapping({"compile": good}).compile == good
    for bad in ("final", 3):
        with pytest.raises(ConfigError, match="compile"):
            TrainingConfig.from_mapping({"compile": bad})
