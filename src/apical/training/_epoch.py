"""One epoch of training, one pass of evaluation: plain PyTorch, with the seconds of each part told apart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from apical.errors import DataError, TrainingError
from apical.training._config import TrainingConfig
from apical.training._parallel import Replica
from apical.training._processes import any_of_all, processes, summed
from apical.training._task import BatchResult, Classification, Task

_AMP = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EpochStats:
    """What one epoch of training was like.

    Attributes:
        loss: mean training loss per item, label smoothing included.
        metrics: the task's metrics by name, of the training batches as they came.
        samples: number of examples, in the unit that the MACs are counted for.
        steps: number of optimizer steps.
        step_seconds: in forward, backward and optimizer.
        data_seconds: waiting for batches and moving them to the device.
        restructure_seconds: in what was done between the steps.
        compilations: graphs that torch.compile compiled in these steps.
        compile_seconds: part of `step_seconds`: of the steps that compiled something.
    """

    loss: float
    metrics: Mapping[str, float]
    samples: int
    steps: int
    step_seconds: float
    data_seconds: float
    restructure_seconds: float = 0.0
    compilations: int = 0
    compile_seconds: float = 0.0


@dataclass(frozen=True)
class EvalStats:
    """What an evaluation found: mean loss, the task's metrics by name, number of examples, seconds."""

    loss: float
    metrics: Mapping[str, float]
    samples: int
    seconds: float


class _Tally:
    """Sums over batches. It reads them from the device now and then only, since reading stops the device."""

    def __init__(self, device: torch.device, where: str) -> None:
        self.loss, self.weight, self.samples = 0.0, 0.0, 0
        self.counts: Tensor | None = None
        self._team = processes()
        self._every = 1 if device.type == "cpu" and self._team.count == 1 else 50
        self._pending: list[tuple[Tensor, int | Tensor]] = []
        self._where, self._seen = where, 0

    def add(self, result: BatchResult) -> None:
        """Notes a batch. Raises TrainingError if this or a pending loss is not finite."""
        self._pending.append((result.loss.detach(), result.weight))
        self.counts = result.counts if self.counts is None else self.counts + result.counts
        self.samples += result.samples
        if len(self._pending) >= self._every:
            self.read()

    def read(self) -> None:
        """Reads the pending losses from the device."""
        wrong: str | None = None
        for loss, weight in self._pending:
            self._seen += 1
            value = float(loss)
            if not math.isfinite(value) and wrong is None:
                wrong = f"{value} {self._where}, step {self._seen}"
            self.loss += value * float(weight)
            self.weight += float(weight)
        self._pending.clear()
        if any_of_all(int(wrong is not None)):  # all processes stop together: none waits for another in vain
            raise TrainingError(
                f"the loss is {wrong or f'not finite in another process {self._where}'}; expected a finite number. "
                "Lower the learning rate, add warm-up epochs or clip gradients (clip_grad_norm), and check the data "
                "for values that are not finite."
            )

    def everywhere(self) -> dict[str, Any]:
        """The sums over all processes, in plain containers; `resume` takes them up."""
        self.read()
        sums = summed(torch.tensor([self.loss, self.weight, self.samples], dtype=torch.float64))
        assert sums is not None
        loss, weight, samples = sums.tolist()
        counts = summed(self.counts)
        return {"loss": loss, "weight": weight, "samples": int(samples), "counts": counts, "seen": self._seen}

    def resume(self, sums: Mapping[str, Any], device: torch.device) -> None:
        """Goes on from `everywhere`: the first process takes up what all had summed."""
        self._seen = sums["seen"]
        if processes().first:
            self.loss, self.weight, self.samples = sums["loss"], sums["weight"], sums["samples"]
            self.counts = None if sums["counts"] is None else sums["counts"].to(device)

    def results(self, task: Task, what: str) -> tuple[float, dict[str, float], int]:
        """Mean loss, metrics and number of examples in all processes. Raises DataError if there was no batch."""
        sums = self.everywhere()
        if sums["counts"] is None or not sums["weight"]:
            raise DataError(f"the {what} loader gave nothing to learn from {self._where}; expected at least one batch")
        loss = sums["loss"] / sums["weight"]
        return loss, task.results(loss, sums["counts"].cpu()), sums["samples"]


@dataclass(frozen=True)
class Partial:
    """An epoch that was stopped between two steps: how many steps are done, and what they summed up to."""

    steps: int
    step_seconds: float
    restructure_seconds: float
    sums: Mapping[str, Any]
    compilations: int = 0
    compile_seconds: float = 0.0


def _partial(
    steps: int, step_seconds: float, restructure_seconds: float, tally: _Tally, compilations: int, compiling: float
) -> Partial:
    return Partial(steps, step_seconds, restructure_seconds, tally.everywhere(), compilations, compiling)


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    config: TrainingConfig,
    device: torch.device,
    *,
    task: Task | None = None,
    scaler: torch.amp.GradScaler | None = None,
    average: AveragedModel | None = None,
    replica: Replica | None = None,
    begun: Partial | None = None,
    before_step: Callable[[int], None] | None = None,
    end_step: Callable[[], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    stop_after: Callable[[int, Callable[[], Partial]], None] | None = None,
    where: str = "in this epoch",
) -> EpochStats:
    """Trains a model for one epoch.

    Args:
        model: as the task runs it; for classification it maps images (batch, ...) to logits (batch, classes).
        loader: batches of (inputs, targets).
        optimizer: stepped once per batch.
        config: autocast, memory format, label smoothing and clipping are read from it.
        device: where the model is.
        task: loss and metrics; classification if None.
        scaler: for float16; None for no scaling.
        average: moving average of the weights, updated after each step.
        replica: the model as training calls it, in several processes; None calls the model itself.
        begun: what was done of this epoch before it was stopped; the loader goes on behind it.
        before_step: called with the number of the step in this epoch (from 0), to set the learning rate.
        end_step: called after each step, and timed apart: may restructure the model.
        after_step: called with the number of steps that are done; may raise to stop.
        stop_after: called after that with the number of steps and what makes a `Partial` of them; may raise to stop.
        where: the words by which an error names this epoch.

    Returns:
        Loss, metrics and seconds.

    Raises:
        TrainingError: a loss is not finite. On a CPU the weights have not yet been touched by it.
        DataError: the loader gives no batch.
    """
    model.train()
    task = task or Classification(config.label_smoothing)
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    tally, steps, step_seconds, restructure_seconds = _Tally(device, where), 0, 0.0, 0.0
    compilations, compile_seconds = 0, 0.0
    if begun is not None:
        tally.resume(begun.sums, device)
        steps, step_seconds, restructure_seconds = begun.steps, begun.step_seconds, begun.restructure_seconds
        compilations, compile_seconds = begun.compilations, begun.compile_seconds
    before_seconds = step_seconds + restructure_seconds
    task.begin(training=True)
    started = time.perf_counter()
    for inputs, targets in _on_device(loader, config, device):
        step_started = time.perf_counter()
        if before_step is not None:
            before_step(steps)
        optimizer.zero_grad(set_to_none=True)
        with autocast(config, device):
            result = task.batch(model if replica is None else replica.module, inputs, targets, training=True)
        tally.add(result)
        scaler.scale(result.loss).backward()
        if config.clip_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.update_parameters(model)
        took = time.perf_counter() - step_started
        step_seconds += took
        steps += 1
        if replica is not None and (new := replica.newly_compiled()):
            compilations, compile_seconds = compilations + new, compile_seconds + took
        if end_step is not None:
            changing = time.perf_counter()
            end_step()
            restructure_seconds += time.perf_counter() - changing
        if after_step is not None:
            after_step(steps)
        if stop_after is not None:
            so_far = (steps, step_seconds, restructure_seconds, tally, compilations, compile_seconds)
            stop_after(steps, partial(_partial, *so_far))
    read_started = time.perf_counter()
    tally.read()  # waits for the device, so these seconds are those of steps
    ended = time.perf_counter()
    step_seconds += ended - read_started
    loss, metrics, samples = tally.results(task, "training")
    data_seconds = ended - started - (step_seconds + restructure_seconds - before_seconds)
    return EpochStats(
        loss, metrics, samples, steps, step_seconds, data_seconds, restructure_seconds, compilations, compile_seconds
    )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    config: TrainingConfig,
    device: torch.device,
    *,
    task: Task | None = None,
    after_batch: Callable[[], None] | None = None,
) -> EvalStats:
    """Loss and metrics of a model in eval mode; the model's mode is put back afterwards.

    Args:
        model: as the task runs it.
        loader: batches of (inputs, targets).
        config: autocast and memory format are read from it; label smoothing is not applied.
        device: where the model is.
        task: loss and metrics; classification if None.
        after_batch: called after each batch; may raise to stop.

    Returns:
        Loss, metrics, number of examples, seconds.

    Raises:
        DataError: the loader gives no batch.

    In several processes, a loader that gives each of them a share is summed over all.
    """
    was_training, started = model.training, time.perf_counter()
    task = task or Classification()
    loss = torch.zeros((), dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    weight, samples = torch.zeros_like(loss), 0
    counts: Tensor | None = None
    model.eval()
    task.begin(training=False)
    try:
        for inputs, targets in _on_device(loader, config, device):
            with autocast(config, device):
                result = task.batch(model, inputs, targets, training=False)
            loss += result.loss * result.weight
            weight += result.weight
            counts = result.counts if counts is None else counts + result.counts
            samples += result.samples
            if after_batch is not None:
                after_batch()
    finally:
        model.train(was_training)
    if getattr(loader, "world_size", 1) > 1:
        sums, counts = summed(torch.stack([loss, weight, loss.new_tensor(samples)])), summed(counts)
        assert sums is not None
        loss, weight, samples = sums[0], sums[1], int(sums[2])
    if counts is None or not weight:
        raise DataError("the evaluation loader gave nothing to judge by; expected at least one batch")
    mean = float(loss / weight)
    return EvalStats(mean, task.results(mean, counts.cpu()), samples, time.perf_counter() - started)


def _on_device(
    loader: Iterable[tuple[Tensor, Tensor]], config: TrainingConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for inputs, targets in loader:
        moved = inputs.to(device, non_blocking=True)
        if config.channels_last and moved.ndim == 4:
            moved = moved.contiguous(memory_format=torch.channels_last)
        yield moved, targets.to(device, non_blocking=True)


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """The autocast under which a config runs its model."""
    return torch.autocast(device.type, dtype=_AMP[config.amp], enabled=config.amp != "none")


def apply_memory_format_(model: nn.Module, config: TrainingConfig) -> None:
    """Puts four-dimensional weights into channels-last order if the config asks for it; values do not change."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
