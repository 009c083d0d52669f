"""`compile`: the same run, one compilation for each network or one for the last, counted."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from apical.errors import ConfigError
from apical.training import TrainingConfig
from marks import slow
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

    def backend(graph: Any, inputs: Any, mode: str = "default") -> Any:
        graph.mode = mode
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
    run = tiny_train(tmp_path / "run", tiny_config(epochs=6, compile="final"), method=Freezing)
    assert len(compiled) == 1
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["compilations"] == 1
    assert without_counts(run) == [0, 0, 0, 1, 0, 0]
    assert_same_run(plain, run)


@pytest.mark.slow
def test_a_method_that_never_freezes_is_compiled_throughout(tmp_path: Path, compiled: list[Any]) -> None:
    run = tiny_train(tmp_path / "grown", tiny_config(epochs=5, compile="final"))
    assert run.summary["compilations"] == len(compiled) == 4
    run = tiny_train(tmp_path / "plain", tiny_config(epochs=3, compile="final"), method=None)
    assert without_counts(run) == [1, 0, 0]


@pytest.mark.parametrize("when", [slow(True), "final"])
def test_a_resumed_run_compiles_in_the_same_epochs(tmp_path: Path, compiled: list[Any], when: Any) -> None:
    """The new process compiles the network that it finds; the rest is the same run."""
    config = tiny_config(epochs=6, compile=when)
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


@pytest.mark.slow
@pytest.mark.parametrize("when", [True, "final"])
def test_the_mode_reaches_every_compilation(tmp_path: Path, compiled: list[Any], when: Any) -> None:
    config = tiny_config(epochs=4, compile=when, compile_mode="reduce-overhead")
    run = tiny_train(tmp_path / "run", config, method=Freezing)
    assert [graph.mode for graph in compiled] == ["reduce-overhead"] * sum(without_counts(run))
    tiny_train(tmp_path / "plain", tiny_config(epochs=1, compile=True), method=Freezing)
    assert compiled[-1].mode == "default"


@pytest.mark.gpu
def test_cuda_graphs_train_the_same_network(tmp_path: Path) -> None:
    """Kernels differ, so the numbers are close; Dropout would draw others."""
    from apical.training import Loaders, train
    from tiny_run import Recorder, TinyLoader, tiny_model

    losses = []
    for name, settings in (("plain", {}), ("graphs", {"compile": True, "compile_mode": "reduce-overhead"})):
        model = tiny_model()
        model[3] = torch.nn.Identity()
        loaders = Loaders(TinyLoader(), TinyLoader(shuffle=False))
        config = tiny_config(epochs=4, device="cuda", **settings)
        run = train(model, None, loaders, config, tmp_path / name, progress=Recorder())
        losses.append([record["train_loss"] for record in run.history])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_setting() -> None:
    for good in (True, False, "final"):
        assert TrainingConfig.from_mapping({"compile": good}).compile == good
    with pytest.raises(ConfigError, match="compile='first', expected true, false or 'final'"):
        TrainingConfig(compile="first")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="compile="):
        TrainingConfig.from_mapping({"compile": 3})


def test_the_setting_of_the_mode() -> None:
    for good in ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"):
        assert TrainingConfig(compile="final", compile_mode=good).compile_mode == good  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"compile_mode='cudagraphs', expected one of .*'reduce-overhead'"):
        TrainingConfig(compile=True, compile_mode="cudagraphs")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="compile_mode='reduce-overhead' needs compile=true or compile=final"):
        TrainingConfig(compile_mode="reduce-overhead")
