"""A task of one's own: its loss is minimised, its metrics reach history, summary and table."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apical.training import BatchResult, Loaders, Metric, evaluate, make_progress, train
from tiny_run import TinyLoader, tiny_config, tiny_model


class Margin:
    """Least squares to ±1; judged by the squared error, which is better when lower. Counts how passes began."""

    name = "margin"
    metrics = (Metric("error", "sq.err", "{:.3f}", higher_is_better=False), Metric("wrong", "wrong %", scale=100.0))

    def __init__(self) -> None:
        self.passes: list[bool] = []

    def begin(self, training: bool) -> None:
        self.passes.append(training)

    def batch(self, model: nn.Module, inputs: Tensor, targets: Tensor, training: bool) -> BatchResult:
        outputs = model(inputs)[:, 0]
        signs = targets * 2.0 - 1
        wrong = (outputs.detach() * signs < 0).sum()
        return BatchResult(F.mse_loss(outputs, signs), len(targets), len(targets), torch.stack([wrong, wrong * 0 + 1]))

    def results(self, loss: float, counts: Tensor, /) -> dict[str, float]:
        return {"error": loss, "wrong": float(counts[0]) / (10 * float(counts[1]))}


def test_a_task_of_ones_own_is_trained_recorded_and_shown(tmp_path: Path) -> None:
    task, out = Margin(), io.StringIO()
    loaders = Loaders(TinyLoader(), TinyLoader(shuffle=False))
    config = dataclasses.replace(tiny_config(), epochs=4)
    result = train(tiny_model(), None, loaders, config, tmp_path, task=task, progress=make_progress("plain", out))
    first, last = result.history[0], result.history[-1]
    assert last["train_error"] == last["train_loss"] < first["train_error"]
    assert last["eval_wrong"] < 0.5
    assert result.summary["test_error"] == result.summary["test_loss"]
    assert "test_accuracy" not in result.summary
    assert task.passes == [True, False] * 4 + [False]
    lines = out.getvalue().splitlines()
    assert any("sq.err" in line for line in lines[:3])
    assert lines[-1].startswith(f"done: test error {result.summary['test_error']:.3f}")


def test_the_mean_loss_of_uneven_batches_is_that_of_all_items() -> None:
    model, loader, task = tiny_model().eval(), TinyLoader(samples=37, shuffle=False), Margin()
    stats = evaluate(model, loader, tiny_config(), torch.device("cpu"), task=task)
    expected = F.mse_loss(model(loader.images)[:, 0], loader.labels * 2.0 - 1)
    assert stats.loss == pytest.approx(expected.item(), rel=1e-6)
    assert stats.samples == 37
