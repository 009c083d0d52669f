"""Config, schedule, epoch, evaluation, generators and displays, one by one."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from apical.errors import ConfigError, TrainingError
from apical.training import (
    Classification,
    OptimizerConfig,
    PacedProgress,
    ScheduleConfig,
    TrainingConfig,
    evaluate,
    make_progress,
)
from apical.training._config import resolve_device
from apical.training._interrupt import InterruptGuard
from apical.training._learner import prepare_learner
from apical.training._loop import train_steps
from apical.training._optimizer import build_optimizer, lr_factor, set_lr_
from apical.training._own_state import deterministic_algorithms, random_state, set_random_state
from apical.training._progress import PlainProgress, TableProgress
from apical.training._run_folder import plain
from apical.training._tally import EpochStats, Tally
from tiny_run import Recorder, TinyLoader, tiny_config, tiny_model, tiny_train

CPU = torch.device("cpu")


def one_epoch(model: nn.Module, loader: TinyLoader, config: TrainingConfig) -> EpochStats:
    learner = prepare_learner(model, None, config, Classification(config.label_smoothing))
    tally = Tally(CPU)
    for _ in train_steps(learner, loader, tally, epoch=1):
        pass
    return tally.stats(learner.task)


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        (OptimizerConfig, {"name": "adam"}, "expected 'sgd' or 'adamw'"),
        (OptimizerConfig, {"lr": -1.0, "momentum": 1.0}, r"lr=-1\.0.*; momentum=1\.0"),
        (OptimizerConfig, {"nesterov": True, "momentum": 0.0}, "nesterov"),
        (ScheduleConfig, {"name": "step"}, "needs milestones"),
        (ScheduleConfig, {"milestones": (3, 2)}, "rising"),
        (TrainingConfig, {"epochs": 2, "schedule": ScheduleConfig(warmup_epochs=2)}, "warmup_epochs=2"),
        (TrainingConfig, {"amp": "fp16"}, "bfloat16"),
        (TrainingConfig, {"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_configs_that_cannot_work_are_refused(kind: type, values: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        kind(**values)


def test_a_config_survives_json() -> None:
    config = tiny_config(schedule=ScheduleConfig(name="step", milestones=(1, 2)), clip_grad_norm=1.0)
    assert TrainingConfig.from_mapping(json.loads(json.dumps(config.to_mapping()))) == config


@pytest.mark.parametrize(
    ("mapping", "match"),
    [
        ({"epoch": 3}, "unknown key 'epoch'"),
        ({"optimizer": {"rate": 3}}, "optimizer: unknown key 'rate'"),
        ({"epochs": "three"}, "epochs: expected a whole number, got 'three'"),
        ({"epochs": True, "optimizer": {"lr": 1}}, "epochs: expected a whole number, got True"),
        ({"channels_last": "no"}, "channels_last: expected true or false, got 'no'"),
        ({"clip_grad_norm": "1"}, "clip_grad_norm"),
        ({"schedule": {"milestones": [1, "2"]}}, "milestones"),
        ({"optimizer": 3}, "optimizer"),
        ({"schedule": None}, "schedule"),
    ],
)
def test_a_mapping_that_is_no_config_is_refused(mapping: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TrainingConfig.from_mapping(mapping)


@pytest.mark.parametrize("name", ["tpu9000", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        resolve_device(name)


@given(st.sampled_from(["cosine", "step", "constant"]), st.floats(0, 5), st.floats(0, 20))
def test_the_learning_rate_stays_between_zero_and_its_peak(name: Any, warmup: float, epoch: float) -> None:
    config = ScheduleConfig(name=name, warmup_epochs=warmup, milestones=(7, 9))
    assert 0 <= lr_factor(epoch, 20, config) <= 1
    if epoch >= warmup:
        assert lr_factor(epoch + 0.1, 20, config) <= lr_factor(epoch, 20, config) + 1e-12


def test_each_group_keeps_its_own_peak() -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[4].parameters()}], lr=0.1
    )
    for factor in (0.5, 0.1, 1.0):
        set_lr_(optimizer, factor)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor, 0.1 * factor])


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameter"):
        build_optimizer(nn.ReLU(), OptimizerConfig())


def test_an_epoch_equals_the_loop_written_by_hand() -> None:
    config = tiny_config(label_smoothing=0.1, clip_grad_norm=0.3, schedule=ScheduleConfig("constant"))
    model, by_hand = tiny_model(), tiny_model()
    torch.manual_seed(1)
    stats = one_epoch(model, TinyLoader(), config)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    losses = []
    for images, labels in TinyLoader():
        optimizer.zero_grad()
        loss = F.cross_entropy(by_hand(images), labels, label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.3)
        optimizer.step()
        losses.append(loss.item())
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert stats.loss == pytest.approx(sum(losses) / 4)
    assert (stats.steps, stats.samples) == (4, 40)


def test_a_bad_loss_leaves_the_weights_alone() -> None:
    model = tiny_model()
    with torch.no_grad():
        model[4].bias.fill_(float("nan"))
    before = model[0].weight.clone()
    with pytest.raises(TrainingError, match="step 1"):
        one_epoch(model, TinyLoader(), tiny_config())
    assert torch.equal(before, model[0].weight)


def test_waiting_for_data_is_not_counted_as_steps() -> None:
    model = tiny_model()
    loader = TinyLoader(hook=lambda epoch, batch: time.sleep(0.05))
    started = time.perf_counter()
    stats = one_epoch(model, loader, tiny_config())
    total = time.perf_counter() - started
    assert stats.data_seconds >= 0.2
    assert stats.step_seconds + stats.data_seconds <= total


def test_evaluation_is_exact_and_leaves_the_mode() -> None:
    model, loader = tiny_model(), TinyLoader(samples=37)
    stats = evaluate(model, loader, tiny_config(), CPU)
    assert model.training
    model.eval()
    with torch.no_grad():
        logits = model(loader.images)
    assert stats.metrics["accuracy"] == int((logits.argmax(1) == loader.labels).sum()) / 37
    assert stats.loss == pytest.approx(F.cross_entropy(logits, loader.labels).item(), rel=1e-5)
    assert stats.samples == 37


def test_generators_come_back() -> None:
    import random

    state = random_state()
    first = (random.random(), torch.rand(3))
    set_random_state(state)
    assert random.random() == first[0]
    assert torch.equal(torch.rand(3), first[1])


def test_deterministic_switches_are_put_back() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(True):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_guard_does_nothing_in_a_thread() -> None:
    import threading

    found: list[Any] = []

    def inside() -> None:
        with InterruptGuard() as guard:
            found.append(guard.requested)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [None]


RECORD = {
    "epoch": 3,
    "widths": {"a": 8, "b": 16},
    "blocks": 9,
    "macs_fraction": 0.123,
    "params_fraction": 0.2,
    "lr": 0.05,
    "train_loss": 0.5,
    "eval_accuracy": 0.876,
    "step_seconds": 1.0,
    "data_seconds": 0.25,
}


def test_plain_lines_line_up() -> None:
    out = io.StringIO()
    progress = make_progress("auto", out)
    progress.start(4, "runs/x", Classification.metrics[0])
    progress.step(3, 1, 4)
    progress.epoch(RECORD)
    progress.message("hello [bold]")
    progress.summary({"test_accuracy": 0.9, "macs_fraction": 0.5})
    progress.stop()
    lines = out.getvalue().splitlines()
    assert lines[0] == "runs/x: 4 epochs"
    assert lines[2].split() == ["3", "8/16", "9", "12.3", "20.0", "0.05", "0.5000", "87.60", "1.2"]
    assert len(lines[1]) == len(lines[2])
    assert lines[3:] == ["hello [bold]", "done: test accuracy 90.00 %, MACs 50.0 %"]
    progress.start(1, "runs/x", Classification.metrics[0])
    assert "runs/x: 1 epoch\n" in out.getvalue()


def paced(progress: Any, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of 100 steps of 32 images, four steps a second, stopped after 41 of them."""
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    progress.start(4, "runs/x", Classification.metrics[0])
    progress.pace(32, "images")
    for step in range(1, 42):
        clock[0] += 0.25
        progress.step(3, step, 100)


def test_a_log_gets_a_line_every_half_minute_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = io.StringIO(), [1000.0]
    paced(PlainProgress(out), clock, monkeypatch)
    assert len(out.getvalue().splitlines()) == 2, "ten seconds only"
    out, clock = io.StringIO(), [1000.0]
    paced(PlainProgress(out, every_s=10), clock, monkeypatch)
    (line,) = out.getvalue().splitlines()[2:]
    assert line == "epoch 3/4: step 40/100, 15 s left, 128 images/s"


def test_a_terminal_shows_steps_seconds_left_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    out, clock = io.StringIO(), [1000.0]
    progress = TableProgress(Console(file=out, force_terminal=True, width=100, height=10, color_system=None))
    paced(progress, clock, monkeypatch)
    progress.stop()
    last = re.sub(r"\s+", " ", out.getvalue().rpartition("runs/x")[2])
    assert "epoch 3/4" in last
    assert re.search(r"step 41/100 1[45] s left, 128 images/s", last)
    progress.step(3, 100, 100)
    assert progress._running.text().endswith("evaluating")


@pytest.mark.parametrize("mode", ["json", "quiet"])
def test_programs_are_not_told_of_steps(mode: Any) -> None:
    out = io.StringIO()
    progress = make_progress(mode, out)
    assert not isinstance(progress, PacedProgress)
    progress.step(1, 1, 2)
    assert out.getvalue() == ""


def test_the_loop_says_how_large_its_steps_are(tmp_path: Path) -> None:
    class Paced(Recorder):
        def pace(self, samples: int, unit: str) -> None:
            self.messages.append(f"{samples} {unit}")

    progress = Paced()
    tiny_train(tmp_path, tiny_config(epochs=2), progress=progress)
    assert progress.messages.count("10 images") == 2


def test_json_lines_are_json() -> None:
    out = io.StringIO()
    progress = make_progress("json", out)
    progress.start(4, "x", Classification.metrics[0])
    progress.epoch({**RECORD, "train_loss": float("inf")})
    progress.message("m")
    progress.summary({"seed": 1})
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["start", "epoch", "message", "summary"]
    assert events[1]["train_loss"] is None


def test_quiet_says_only_messages(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress("quiet")
    progress.start(4, "x", Classification.metrics[0])
    progress.epoch(RECORD)
    progress.message("careful")
    progress.summary({})
    assert capsys.readouterr() == ("", "careful\n")


def test_the_live_table_ends_with_every_row() -> None:
    out = io.StringIO()
    progress = TableProgress(Console(file=out, force_terminal=True, width=100, height=10))
    progress.start(30, "runs/x", Classification.metrics[0])
    for epoch in range(1, 31):
        progress.step(epoch, 1, 2)
        progress.step(epoch, 2, 2)
        progress.epoch({**RECORD, "epoch": epoch})
    progress.message("hello [bold]")
    progress.summary({"test_accuracy": 0.9})
    progress.stop()
    progress.stop()
    last = out.getvalue().rpartition("runs/x")[2]
    assert last.count("8/16") == 30
    assert "accuracy 90.00 %" in last
    assert "hello [bold]" in out.getvalue()


def test_plain_values_are_made_of_anything() -> None:
    import numpy as np

    value = plain({"a": np.float32(0.5), "b": torch.tensor([1, 2]), 3: {"z", "y"}, "d": np.int64(4), "e": True})
    assert value == {"a": 0.5, "b": [1, 2], "3": ["y", "z"], "d": 4, "e": True}
    assert json.loads(json.dumps(value)) == value
