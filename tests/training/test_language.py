"""Language modelling as a task: the stream's state, its perplexity, restructuring between windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.errors import TrainingError
from apical.models import LSTMLanguageModel
from apical.recipes import LanguageModelling
from apical.training import (
    Loaders,
    OptimizerConfig,
    StepwiseMethod,
    StreamTask,
    TrainingConfig,
    evaluate,
    train,
)
from apical.training._protocols import PlainMethod
from tiny_run import Recorder, TinyLoader, tiny_model

CPU = torch.device("cpu")


class Windows:
    """Windows of a periodic text."""

    def __init__(self, count: int = 6) -> None:
        self.tokens = (torch.arange(count * 4 + 1) % 7).unsqueeze(1).expand(-1, 3)  # (n, B)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        for start in range(0, 4 * self.count, 4):
            yield self.tokens[start : start + 4], self.tokens[start + 1 : start + 5]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def language_model() -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(7, 5, (6,), init_range=0.5)


def test_perplexity_of_windows_is_that_of_the_whole_stream() -> None:
    model, windows = language_model().eval(), Windows()
    stats = evaluate(model, windows, TrainingConfig(), CPU, task=LanguageModelling())
    logits, _ = model(windows.tokens[:-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows.tokens[1:].flatten())
    assert stats.loss == pytest.approx(loss.item(), rel=1e-6)
    assert stats.metrics["perplexity"] == pytest.approx(math.exp(loss.item()), rel=1e-6)
    assert stats.samples == 3 * 6  # windows of single streams


def test_a_pass_starts_without_a_past_and_gradients_end_with_the_window() -> None:
    model, task = language_model(), LanguageModelling()
    assert isinstance(task, StreamTask)
    (inputs, targets), *_ = Windows()
    first = task.batch(model, inputs, targets, training=True)
    assert all(not leaf.requires_grad for layer in task.state for leaf in layer)
    second = task.batch(model, inputs, targets, training=True)
    assert not torch.equal(first.loss, second.loss)
    task.begin(training=True)
    assert task.state is None
    assert torch.equal(task.batch(model, inputs, targets, training=True).loss, first.loss)


def test_the_state_outlives_the_memory_that_it_came_in() -> None:
    """As a CUDA graph does, this model writes each step's outputs over those of the step before."""

    class Replayed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("memory", torch.zeros(3))

        def forward(self, tokens: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
            self.memory.copy_(tokens[-1]) if state is None else self.memory.zero_()
            return torch.zeros(*tokens.shape, 7), self.memory

    model, task = Replayed(), LanguageModelling()
    (inputs, targets), *_ = Windows()
    task.batch(model, inputs, targets, training=True)
    carried = task.state
    model(inputs, carried)
    assert torch.equal(carried, inputs[-1].float())
    assert inputs[-1].any()


def test_a_perplexity_beyond_all_numbers_is_infinite() -> None:
    assert LanguageModelling().results(1e4, torch.tensor([1])) == {"perplexity": math.inf}
    assert not LanguageModelling.metrics[0].higher_is_better


def test_a_model_without_a_state_is_refused() -> None:
    class Logits(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.zeros(*tokens.shape, 7)

    with pytest.raises(TrainingError, match=r"Logits returned Tensor, expected the pair \(logits, state\)"):
        LanguageModelling().batch(Logits(), *next(iter(Windows())), training=False)


class Stepwise(PlainMethod):
    """Notes the states that it is handed, and gives back zeros after the second step."""

    def __init__(self, model: nn.Module, _optimizer: Optimizer, _copies: Sequence[nn.Module]) -> None:
        super().__init__(model)
        self.states: list[Any] = []

    def end_step(self, state: Any = None) -> Any:
        self.states.append(state)
        return tuple(tuple(0 * leaf for leaf in layer) for layer in state) if state and len(self.states) == 2 else state

    def end_epoch(self) -> dict[str, Any]:
        return {**super().end_epoch(), "macs": 8, "mean_macs": 5.0, "macs_fraction": 0.5}


def test_a_method_may_change_the_state_between_steps(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Watched(LSTMLanguageModel):
        def forward(self, tokens: Tensor, state: Any = None) -> Any:
            if self.training:
                seen.append(state)
            return super().forward(tokens, state)

    torch.manual_seed(0)
    config = TrainingConfig(epochs=1, optimizer=OptimizerConfig(lr=0.1), device="cpu")
    loaders = Loaders(Windows(), Windows(), Windows(2))
    result = train(
        Watched(7, 5, (6,)), Stepwise, loaders, config, tmp_path, task=LanguageModelling(), progress=Recorder()
    )
    assert isinstance(result.method, StepwiseMethod)
    assert isinstance(result.method, Stepwise)
    assert len(result.method.states) == len(seen) == 6
    assert seen[0] is None
    assert not any(leaf.any() for layer in seen[2] for leaf in layer)
    assert all(leaf.any() for layer in seen[3] for leaf in layer)
    (record,) = result.history
    assert record["train_macs"] == 3 * 5.0 * record["samples"]
    assert result.summary["train_macs_fraction"] == pytest.approx(5 / 16)
    assert result.summary["train_macs_vs_final"] == pytest.approx(5 / 8)
    assert result.summary["valid_perplexity"] == record["eval_perplexity"]
    assert result.summary["test_perplexity"] == pytest.approx(math.exp(result.summary["test_loss"]))


def test_tasks_without_a_state_let_methods_act_between_steps(tmp_path: Path) -> None:
    config = TrainingConfig(epochs=1, optimizer=OptimizerConfig(lr=0.1), device="cpu")
    loaders = Loaders(TinyLoader(), TinyLoader(shuffle=False))
    result = train(tiny_model(), Stepwise, loaders, config, tmp_path, progress=Recorder())
    assert isinstance(result.method, Stepwise)
    assert result.method.states == [None] * 4
    assert "valid_accuracy" not in result.summary  # the same batches were evaluated on and tested with
