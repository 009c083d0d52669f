"""A batch that is larger while the network is small: sizes, learning rate, accounting, resuming, refusals."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apical.errors import CheckpointError, ConfigError
from apical.training import Interrupted, Loaders, ScheduleConfig, TrainingConfig, batch_factor, load_checkpoint, train
from apical.training._batch import BatchGrowth
from tiny_run import FULL, Recorder, TinyGrower, TinyLoader, assert_same_run, tiny_config, tiny_model

CONSTANT = ScheduleConfig(name="constant")


class Growing(TinyGrower):
    """Grows 3, 5, 7, 9 hidden units; the final network has 9."""

    def batch_room(self) -> float:
        return 9 / self.width


class Elastic(TinyLoader):
    """Its batch can grow, and it remembers the sizes that it gave."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.base, self.sizes = self.batch, []

    def set_batch_factor(self, factor: int) -> None:
        if factor * self.base > len(self.labels):
            raise ConfigError(f"{len(self.labels)} images do not fill one batch of {factor * self.base}")
        self.batch = factor * self.base

    def __iter__(self) -> Any:
        for images, labels in super().__iter__():
            self.sizes.append(len(labels))
            yield images, labels


def do(folder: Path, config: TrainingConfig | None = None, method: Any = Growing, hook: Any = None,
       loader: TinyLoader | None = None, **options: Any) -> Any:  # fmt: skip
    config = config or growing()
    loaders = Loaders(loader or Elastic(batch=5, hook=hook), TinyLoader(shuffle=False))
    return train(tiny_model(), method, loaders, config, folder, progress=Recorder(), **options)


def growing(**changes: Any) -> TrainingConfig:
    return tiny_config(**{"batch_size": 5, "batch_growth": 2, "epochs": 5, **changes})


@given(room=st.floats(0.0, 1e6), limit=st.integers(1, 64))
def test_the_factor_is_whole_and_within_its_limits(room: float, limit: int) -> None:
    factor = batch_factor(room, limit)
    assert isinstance(factor, int)
    assert 1 <= factor <= limit
    assert factor == limit or factor <= max(room, 1) * (1 + 1e-6) + 1e-6
    assert batch_factor(room + 1, limit) >= factor


def test_sizes_follow_the_network_and_costs_are_counted(tmp_path: Path) -> None:
    loader = Elastic(batch=5)
    result = do(tmp_path, growing(batch_growth=8), loader=loader)
    assert [record["widths"]["hidden"] for record in result.history] == [3, 5, 7, 9, 9]
    assert [record["batch_size"] for record in result.history] == [15, 5, 5, 5, 5]
    assert [record["steps"] for record in result.history] == [3, 8, 8, 8, 8]
    assert loader.sizes == [15, 15, 10] + [5] * 32
    assert [record["samples"] for record in result.history] == [40] * 5
    spent = sum(40 * record["macs"] for record in result.history)
    assert result.summary["train_macs"] == 3 * spent, "examples count, not steps"
    assert result.summary["train_macs_vs_final"] == spent / (200 * result.history[-1]["macs"])


@pytest.mark.parametrize(("rule", "scale"), [("linear", 3.0), ("sqrt", 3**0.5), ("none", 1.0)])
def test_the_learning_rate_follows_the_batch(tmp_path: Path, rule: Any, scale: float) -> None:
    result = do(tmp_path, growing(batch_growth=8, batch_growth_lr=rule, schedule=CONSTANT))
    rates = [record["lr"] for record in result.history]
    assert rates == pytest.approx([0.1 * scale, 0.1, 0.1, 0.1, 0.1])


def test_the_schedule_goes_by_the_share_of_the_epoch_that_is_done(tmp_path: Path) -> None:
    """Fewer, larger steps: the last one of an epoch of three starts at two thirds of it."""
    schedule = ScheduleConfig(name="poly", power=1.0)
    result = do(tmp_path, growing(batch_growth=8, schedule=schedule))
    done = [2 / 3, 1 + 7 / 8, 2 + 7 / 8, 3 + 7 / 8, 4 + 7 / 8]
    scales = [3, 1, 1, 1, 1]
    expected = [0.1 * s * (1 - d / 5) for s, d in zip(scales, done, strict=True)]
    assert [record["lr"] for record in result.history] == pytest.approx(expected)


@pytest.mark.parametrize(("epoch", "batch"), [(1, 1), (1, 3), (2, 1), (3, 4), (5, 8)])
def test_killed_and_resumed_is_bit_identical(tmp_path: Path, epoch: int, batch: int) -> None:
    config = growing(batch_growth=3)
    whole = do(tmp_path / "whole", config)

    def hook(at_epoch: int, at_batch: int) -> None:
        if (at_epoch, at_batch) == (epoch, batch):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(tmp_path / "run", config, hook=hook)
    assert_same_run(whole, do(tmp_path / "run", config, resume=True))


def test_a_signal_while_evaluating_keeps_the_epoch_with_its_batch(tmp_path: Path) -> None:
    """The checkpoint lies behind the last step of an epoch of large batches."""

    def hook(epoch: int, batch: int) -> None:
        if epoch == 1:
            signal.raise_signal(signal.SIGTERM)

    config = growing(batch_growth=3)
    loaders = Loaders(Elastic(batch=5), TinyLoader(shuffle=False, hook=hook))
    with pytest.raises(Interrupted, match="while evaluating epoch 1"):
        train(tiny_model(), Growing, loaders, config, tmp_path / "run", progress=Recorder())
    saved = load_checkpoint(tmp_path / "run").state
    assert (saved["batch_factor"], saved["begun"]["steps"]) == (3, 3)
    assert_same_run(do(tmp_path / "whole", config), do(tmp_path / "run", config, resume=True))


def test_methods_that_do_not_grow_keep_the_batch(tmp_path: Path) -> None:
    """Also with a loader that could not grow: nothing asks it."""
    for name, method, loader in (("none", None, None), ("other", TinyGrower, TinyLoader(batch=5))):
        larger = do(tmp_path / name, method=method, loader=loader)
        plain = do(tmp_path / f"{name}-plain", growing(batch_growth=1), method=method)
        assert [record.pop("batch_size") for record in larger.history] == [5] * 5
        assert_same_run(plain, larger)


def test_a_factor_of_one_is_the_ordinary_run(tmp_path: Path) -> None:
    assert_same_run(
        do(tmp_path / "a", growing(batch_growth=1)), do(tmp_path / "b", growing(batch_growth=1), method=TinyGrower)
    )


def test_what_cannot_grow_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_growth=2: a TinyLoader cannot change its batch.*batch_growth=1"):
        do(tmp_path / "a", loader=TinyLoader(batch=5))
    with pytest.raises(ConfigError, match="batch_growth=9 makes batches 9 times as large: 40 images do not fill"):
        do(tmp_path / "b", growing(batch_growth=9))
    assert not (tmp_path / "b" / "history.jsonl").exists()
    for wrong in ({"batch_growth": 0}, {"batch_growth": -2}, {"batch_growth_lr": "cubic"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            growing(**wrong)
    with pytest.raises(ConfigError, match=r"batch_growth=1\.5"):
        TrainingConfig.from_mapping({"batch_growth": 1.5})


@pytest.mark.parametrize("factor", [0, 3, 1.0, None, "2"])
def test_a_checkpoint_with_an_impossible_batch_is_refused(tmp_path: Path, factor: Any) -> None:
    do(tmp_path, growing(epochs=1))
    content = torch.load(tmp_path / "checkpoint.pt")
    content["state"]["batch_factor"] = factor
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"the batch is .* times its base"):
        do(tmp_path, growing(epochs=1), resume=True)


def test_the_batch_of_a_method_that_forbids_it() -> None:
    class Fixed(Growing):
        def __init__(self) -> None: ...

        def batch_room(self) -> float:
            raise ConfigError("not with me")

    with pytest.raises(ConfigError, match="not with me"):
        BatchGrowth(Fixed(), Elastic(batch=5), 2)
    assert BatchGrowth(Fixed(), Elastic(batch=5), 1).factor == 1
    assert FULL > 9, "the tiny method never grows to the whole"
