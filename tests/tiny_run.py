"""A run small enough to be repeated dozens of times: two Gaussian blobs, one hidden layer, a method that resizes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.training import (
    Loaders,
    OptimizerConfig,
    Progress,
    ScheduleConfig,
    TrainingConfig,
    TrainingResult,
    train,
)
from apical.training._progress import SilentProgress

INPUTS, FULL = 6, 12


class TinyLoader:
    """Shuffled batches with a generator of its own; `hook(epoch, batch)` may do harm."""

    def __init__(
        self,
        samples: int = 40,
        batch: int = 10,
        seed: int = 1,
        hook: Callable[[int, int], None] | None = None,
        shuffle: bool = True,
    ) -> None:
        source = torch.Generator().manual_seed(0)
        self.labels = torch.arange(samples) % 2
        self.images = torch.randn(samples, INPUTS, generator=source) + 1.5 * (self.labels[:, None] * 2 - 1)
        self.batch, self.generator, self.epoch, self.hook = batch, torch.Generator().manual_seed(seed), 0, hook
        self.shuffle = shuffle

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.epoch += 1
        order = torch.randperm(len(self.labels), generator=self.generator)
        order = order if self.shuffle else order.sort().values
        for number, index in enumerate(order.split(self.batch), 1):
            if self.hook is not None:
                self.hook(self.epoch, number)
            yield self.images[index], self.labels[index]

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state(), "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])
        self.epoch = state["epoch"]


def tiny_model() -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(INPUTS, FULL), nn.BatchNorm1d(FULL), nn.ReLU(), nn.Dropout(0.1), nn.Linear(FULL, 2))


class TinyGrower:
    """Starts with three hidden units and adds two after every epoch, drawn from torch's global generator."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> None:
        self.model, self.optimizer, self.copies = model, optimizer, copies
        self.finished = False
        self._resize_all(3)

    @property
    def width(self) -> int:
        return self.model[0].out_features

    def end_epoch(self) -> dict[str, Any]:
        width = self.width
        macs = width * (INPUTS + 2)
        record = {
            "macs": macs,
            "macs_fraction": macs / (FULL * (INPUTS + 2)),
            "num_params": sum(p.numel() for p in self.model.parameters()),
            "params_fraction": width / FULL,
            "widths": {"hidden": width},
            "blocks": 1,
        }
        if width < 9:
            self._resize_all(width + 2)
        return record

    def finish(self) -> None:
        self.finished = True

    def state_dict(self) -> dict[str, Any]:
        return {"width": self.width}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not 1 <= state["width"] <= FULL:  # as a Grower does, and before anything is allocated
            raise ValueError(f"a width of {state['width']}, expected 1 to {FULL}")
        self._resize_all(state["width"])

    def _resize_all(self, width: int) -> None:
        for net in (self.model, *(copy.module for copy in self.copies)):
            for name, dim in (("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("4.weight", 1)):
                layer = net.get_submodule(name.split(".")[0])
                old = getattr(layer, name.split(".")[1])
                new = nn.Parameter(fit(old.detach(), dim, width))
                setattr(layer, name.split(".")[1], new)
                if net is self.model:
                    self._rekey(old, new, dim, width)
            norm = net[1]
            norm.running_mean, norm.running_var = fit(norm.running_mean, 0, width), fit(norm.running_var, 0, width)
            net[0].out_features, norm.num_features, net[4].in_features = width, width, width

    def _rekey(self, old: nn.Parameter, new: nn.Parameter, dim: int, width: int) -> None:
        for group in self.optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        state = self.optimizer.state.pop(old, {})
        if state:
            self.optimizer.state[new] = {
                key: fit(value, dim, width, fill=0.0) if torch.is_tensor(value) and value.ndim else value
                for key, value in state.items()
            }


def fit(tensor: Tensor, dim: int, size: int, fill: float | None = None) -> Tensor:
    missing = size - tensor.shape[dim]
    if missing <= 0:
        return tensor.narrow(dim, 0, size).clone()
    shape = [missing if d == dim else n for d, n in enumerate(tensor.shape)]
    return torch.cat([tensor, torch.rand(shape) if fill is None else torch.full(shape, fill)], dim)


def tiny_config(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 10,
        "optimizer": OptimizerConfig(lr=0.1),
        "schedule": ScheduleConfig(warmup_epochs=0.5),
        "device": "cpu",
        "seed": 5,
    }
    return TrainingConfig(**{**values, **changes})


class Recorder(SilentProgress):
    """A progress display that keeps everything."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.records: list[Any] = []
        self.steps = 0
        self.stopped = False

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.steps += 1

    def epoch(self, record: Any) -> None:
        self.records.append(record)

    def message(self, text: str) -> None:
        self.messages.append(text)

    def stop(self) -> None:
        self.stopped = True


def tiny_train(
    folder: Path,
    config: TrainingConfig | None = None,
    *,
    hook: Callable[[int, int], None] | None = None,
    progress: Progress | None = None,
    method: Any = TinyGrower,
    **options: Any,
) -> TrainingResult:
    """A run from freshly built objects, as a new process would have them."""
    loaders = Loaders(TinyLoader(hook=hook), TinyLoader(shuffle=False))
    return train(
        tiny_model(), method, loaders, config or tiny_config(), folder, progress=progress or Recorder(), **options
    )


def timeless(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without seconds, memory, and how often it was compiled: a resumed run compiles once more."""
    own = ("_seconds", "_mib", "compilations")
    return [{k: v for k, v in record.items() if not k.endswith(own)} for record in history]


def assert_same_run(first: TrainingResult, second: TrainingResult) -> None:
    """Bit for bit the same weights and, but for seconds and memory, the same history."""
    a, b = first.model.state_dict(), second.model.state_dict()
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name
    assert timeless(first.history) == timeless(second.history)
    assert first.summary["test_loss"] == second.summary["test_loss"]
