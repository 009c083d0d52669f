"""What an epoch adds up to: losses, metrics and examples over its batches, and the seconds of each part told apart."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from apical.errors import DataError, TrainingError
from apical.training._processes import any_of_all, processes, summed
from apical.training._task import BatchResult, Task

READ_EVERY = 50  # batches, on a device that works on by itself: reading a loss makes it stop


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the steps of an epoch took."""

    steps: int = 0  # number of optimizer steps
    step_seconds: float = 0.0  # in forward, backward and optimizer
    restructure_seconds: float = 0.0  # in what was done between the steps
    compilations: int = 0  # graphs that torch.compile compiled in these steps
    compile_seconds: float = 0.0  # part of `step_seconds`: of the steps that compiled something


@dataclass(frozen=True, kw_only=True)
class EpochStats(Spent):
    """What one epoch of training was like."""

    loss: float  # mean training loss per item, label smoothing included
    metrics: Mapping[str, float]  # the task's metrics by name, of the training batches as they came
    samples: int  # number of examples, in the unit that the MACs are counted for
    data_seconds: float  # waiting for batches and moving them to the device


@dataclass(frozen=True)
class EvalStats:
    """What an evaluation found: mean loss, the task's metrics by name, number of examples, seconds."""

    loss: float
    metrics: Mapping[str, float]
    samples: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Partial(Spent):
    """An epoch that was stopped between two steps: what they took, and what they summed up to."""

    sums: Mapping[str, Any]


class Tally:
    """Sums over the steps of an epoch. It reads losses from the device now and then only, since reading stops it."""

    def __init__(self, device: torch.device, where: str = "in this epoch", begun: Partial | None = None) -> None:
        self._where = where
        self._every = 1 if device.type == "cpu" and processes().count == 1 else READ_EVERY
        self._pending: list[tuple[Tensor, int | Tensor]] = []  # losses and weights that are not read yet
        self._seen = 0
        self.loss = 0.0
        self.weight = 0.0
        self.samples = 0
        self.counts: Tensor | None = None
        self._spent = Spent()
        if begun is not None:
            self._resume(begun, device)
        self._seconds_before = self._spent.step_seconds + self._spent.restructure_seconds
        self._started = time.perf_counter()

    def _resume(self, begun: Partial, device: torch.device) -> None:
        """Go on from what was done; of the sums, which are those of all processes, the first one takes care."""
        self._spent = Spent(**{field.name: getattr(begun, field.name) for field in fields(Spent)})
        sums = begun.sums
        self._seen = sums["seen"]
        if processes().first:
            self.loss = sums["loss"]
            self.weight = sums["weight"]
            self.samples = sums["samples"]
            self.counts = None if sums["counts"] is None else sums["counts"].to(device)

    @property
    def steps(self) -> int:
        """How many are done."""
        return self._spent.steps

    def _spend(self, **more: float) -> None:
        """Add to what the steps took."""
        self._spent = replace(self._spent, **{name: getattr(self._spent, name) + value for name, value in more.items()})

    def add(self, result: BatchResult) -> None:
        """Note a batch."""
        self._pending.append((result.loss.detach(), result.weight))
        self.counts = result.counts if self.counts is None else self.counts + result.counts
        self.samples += result.samples
        if len(self._pending) >= self._every:
            self._read()

    def step(self, seconds: float, compilations: int = 0) -> None:
        """Note a step that is done."""
        self._spend(steps=1, step_seconds=seconds)
        if compilations:
            self._spend(compilations=compilations, compile_seconds=seconds)

    @contextmanager
    def restructuring(self) -> Iterator[None]:
        """While entered, seconds count as those of restructuring."""
        started = time.perf_counter()
        yield
        self._spend(restructure_seconds=time.perf_counter() - started)

    def partial(self) -> Partial:
        """What is done so far, in plain containers."""
        return Partial(sums=self._everywhere(), **vars(self._spent))

    def stats(self, task: Task) -> EpochStats:
        """The epoch, which ends now; its losses and metrics are those of all processes.

        Raises:
            TrainingError: a loss is not finite.
            DataError: there was no batch.
        """
        started = time.perf_counter()
        self._read()  # waits for the device, so these seconds are those of steps
        ended = time.perf_counter()
        self._spend(step_seconds=ended - started)
        sums = self._everywhere()
        if sums["counts"] is None or not sums["weight"]:
            raise DataError(
                f"the training loader gave nothing to learn from {self._where}; expected at least one batch"
            )
        loss = sums["loss"] / sums["weight"]
        spent = self._spent.step_seconds + self._spent.restructure_seconds - self._seconds_before
        return EpochStats(
            loss=loss,
            metrics=task.results(loss, sums["counts"].cpu()),
            samples=sums["samples"],
            data_seconds=ended - self._started - spent,
            **vars(self._spent),
        )

    def _read(self) -> None:
        """Read the pending losses from the device."""
        wrong: str | None = None
        losses, weights = zip(*self._pending, strict=True) if self._pending else ((), ())
        for value, weight in zip(_numbers(losses), _numbers(weights), strict=True):
            self._seen += 1
            if not math.isfinite(value) and wrong is None:
                wrong = f"{value} {self._where}, step {self._seen}"
            self.loss += value * weight
            self.weight += weight
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


def _numbers(values: Sequence[Tensor | int]) -> list[float]:
    """Numbers that may lie on the device, which is asked once."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [float(next(read) if isinstance(v, Tensor) else v) for v in values]
