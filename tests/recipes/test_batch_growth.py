"""`training.batch_growth` in runs of recipes: the real Grower, the real loaders."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from apical.errors import ConfigError
from apical.runs import read_config, run
from apical.runs._simulate import data_facts
from apical.training import Interrupted
from recipes.test_run import StopAfter, do, tiny

LARGER = ("training.batch_growth=4", "batch_size=8", "limit=72", "epochs=5")


class SignalAt(StopAfter):
    """SIGTERM after a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(-1)
        self.at = (epoch, step)

    def step(self, epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == self.at:
            signal.raise_signal(signal.SIGTERM)


def test_the_batch_shrinks_as_the_network_grows(tmp_path: Path) -> None:
    result = do(tiny(*LARGER), tmp_path)
    sizes = [record["batch_size"] for record in result.history]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-1]) == (32, 8)
    for record in result.history:
        room = 0.5 / record["macs_fraction"]
        assert record["batch_size"] == 8 * min(4, int(room + 0.01))
        assert record["steps"] == record["samples"] // record["batch_size"]
    spent = sum(r["macs"] * r["samples"] for r in result.history)
    assert result.summary["train_macs"] == 3 * spent


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (2, 2), (4, 5)])
def test_stopped_within_an_epoch_and_resumed_is_bit_identical(tmp_path: Path, epoch: int, step: int) -> None:
    config = tiny(*LARGER, "training.batch_growth_lr=sqrt")
    whole = do(config, tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"in epoch {epoch}, after step {step} of"):
        run(config, tmp_path / "cut", progress=SignalAt(epoch, step))
    resumed = do(read_config(tmp_path / "cut"), tmp_path / "cut", resume=True)
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [r["batch_size"] for r in whole.history] == [r["batch_size"] for r in resumed.history]
    assert [r["train_loss"] for r in whole.history] == [r["train_loss"] for r in resumed.history]


@pytest.mark.parametrize("method", ["dense", "uniform", "taylor"])
def test_comparators_keep_the_batch(method: str, tmp_path: Path) -> None:
    result = do(tiny(*LARGER, f"method={method}"), tmp_path)
    assert {record["batch_size"] for record in result.history} == {8}


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="interval_unit='steps' schedules growth"):
        do(tiny(*LARGER, "growth.interval_unit=steps", "growth.interval=4"), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"batch_growth=40 makes batches 40 times as large: .* do not fill"):
        do(tiny(*LARGER, "training.batch_growth=40"), tmp_path / "b")
    with pytest.raises(ConfigError, match="a run on paper keeps its batch, got batch_growth=4"):
        data_facts(tiny(*LARGER), 64, 10, (3, 16, 16))
