"""What an epoch adds up to: losses, metrics and examples over its batches, and the seconds of each part told apart."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apical.errors import DataError, TrainingError
from apical.training._processes import any_of_all, processes, summed
from apical.training._task import BatchResult, Task

READ_EVERY = 50  # batches, on a device that works on by itself: reading a loss makes it stop


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


@dataclass(frozen=True)
class Partial:
    """An epoch that was stopped between two steps: how many steps are done, and what they summed up to."""

    steps: int
    step_seconds: float
    restructure_seconds: float
    sums: Mapping[str, Any]
    compilations: int = 0
    compile_seconds: float = 0.0


class Tally:
    """Sums over the steps of an epoch. It reads losses from the device now and then only, since reading stops it.

    Args:
        device: where the losses are.
        where: the words by which an error names this epoch.
        begun: what was done of it before it was stopped.
    """

    def __init__(self, device: torch.device, where: str = "in this epoch", begun: Partial | None = None) -> None:
        self._where = where
        self._every = 1 if device.type == "cpu" and processes().count == 1 else READ_EVERY
        self._pending: list[tuple[Tensor, int | Tensor]] = []  # losses and weights that are not read yet
        self._seen = 0
        self.loss = 0.0
        self.weight = 0.0
        self.samples = 0
        self.counts: Tensor | None = None
        self.steps = 0
        self.step_seconds = 0.0
        self.restructure_seconds = 0.0
        self.compilations = 0
        self.compile_seconds = 0.0
        if begun is not None:
            self._resume(begun, device)
        self._seconds_before = self.step_seconds + self.restructure_seconds
        self._started = time.perf_counter()

    def _resume(self, begun: Partial, device: torch.device) -> None:
        """Goes on from what was done; of the sums, which are those of all processes, the first one takes care."""
        self.steps = begun.steps
        self.step_seconds = begun.step_seconds
        self.restructure_seconds = begun.restructure_seconds
        self.compilations = begun.compilations
        self.compile_seconds = begun.compile_seconds
        sums = begun.sums
        self._seen = sums["seen"]
        if processes().first:
            self.loss = sums["loss"]
            self.weight = sums["weight"]
            self.samples = sums["samples"]
            self.counts = None if sums["counts"] is None else sums["counts"].to(device)

    def add(self, result: BatchResult) -> None:
        """Notes a batch.

        Raises:
            TrainingError: its loss, or one that is read only now, is not finite.
        """
        self._pending.append((result.loss.detach(), result.weight))
        self.counts = result.counts if self.counts is None else self.counts + result.counts
        self.samples += result.samples
        if len(self._pending) >= self._every:
            self._read()

    def step(self, seconds: float, compilations: int = 0) -> None:
        """Notes a step that is done."""
        self.steps += 1
        self.step_seconds += seconds
        if compilations:
            self.compilations += compilations
            self.compile_seconds += seconds

    @contextmanager
    def restructuring(self) -> Iterator[None]:
        """While entered, seconds count as those of restructuring."""
        started = time.perf_counter()
        yield
        self.restructure_seconds += time.perf_counter() - started

    def partial(self) -> Partial:
        """What is done so far, in plain containers."""
        return Partial(
            self.steps,
            self.step_seconds,
            self.restructure_seconds,
            self._everywhere(),
            self.compilations,
            self.compile_seconds,
        )

    def stats(self, task: Task) -> EpochStats:
        """The epoch, which ends now; its losses and metrics are those of all processes.

        Raises:
            TrainingError: a loss is not finite.
            DataError: there was no batch.
        """
        started = time.perf_counter()
        self._read()  # waits for the device, so these seconds are those of steps
        ended = time.perf_counter()
        self.step_seconds += ended - started
        sums = self._everywhere()
        if sums["counts"] is None or not sums["weight"]:
            raise DataError(
                f"the training loader gave nothing to learn from {self._where}; expected at least one batch"
            )
        loss = sums["loss"] / sums["weight"]
        spent = self.step_seconds + self.restructure_seconds - self._seconds_before
        return EpochStats(
            loss,
            task.results(loss, sums["counts"].cpu()),
            sums["samples"],
            self.steps,
            self.step_seconds,
            ended - self._started - spent,
            self.restructure_seconds,
            self.compilations,
            self.compile_seconds,
        )

    def _read(self) -> None:
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

    def _everywhere(self) -> dict[str, Any]:
        """The sums over all processes, in plain containers."""
        self._read()
        sums = summed(torch.tensor([self.loss, self.weight, self.samples], dtype=torch.float64))
        assert sums is not None
        loss, weight, samples = sums.tolist()
        counts = summed(self.counts)
        return {"loss": loss, "weight": weight, "samples": int(samples), "counts": counts, "seen": self._seen}
