"""One epoch of training, one pass of evaluation: plain PyTorch, with the seconds of each part told apart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from apical.errors import DataError, TrainingError
from apical.training._config import TrainingConfig

_AMP = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EpochStats:
    """What one epoch of training was like.

    Attributes:
        loss: mean training loss per image, label smoothing included.
        accuracy: share of training images classified rightly while training, in [0, 1].
        samples: number of images.
        steps: number of optimizer steps.
        step_seconds: in forward, backward and optimizer.
        data_seconds: waiting for batches and moving them to the device.
    """

    loss: float
    accuracy: float
    samples: int
    steps: int
    step_seconds: float
    data_seconds: float


@dataclass(frozen=True)
class EvalStats:
    """What an evaluation found: mean cross-entropy, top-1 accuracy in [0, 1], number of images, seconds."""

    loss: float
    accuracy: float
    samples: int
    seconds: float


class _Tally:
    """Sums of losses and hits. It reads them from the device now and then only, since reading stops the device."""

    def __init__(self, device: torch.device, where: str) -> None:
        self.loss, self.hits, self.samples = 0.0, 0, 0
        self._every = 1 if device.type == "cpu" else 50
        self._pending: list[tuple[Tensor, Tensor, int]] = []
        self._where, self._seen = where, 0

    def add(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Notes a batch's mean loss. Raises TrainingError if this or a pending loss is not finite."""
        hits = (outputs.detach().argmax(1) == labels).sum()
        self._pending.append((loss.detach(), hits, labels.shape[0]))
        if len(self._pending) >= self._every:
            self.read()

    def read(self) -> None:
        """Reads the pending batches from the device."""
        for loss, hits, samples in self._pending:
            self._seen += 1
            value = float(loss)
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss is {value} {self._where}, step {self._seen}; expected a finite number. Lower the "
                    "learning rate, add warm-up epochs or clip gradients (clip_grad_norm), and check the images for "
                    "values that are not finite."
                )
            self.loss += value * samples
            self.hits += int(hits)
            self.samples += samples
        self._pending.clear()


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    optimizer: Optimizer,
    config: TrainingConfig,
    device: torch.device,
    *,
    scaler: torch.amp.GradScaler | None = None,
    average: AveragedModel | None = None,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
    where: str = "in this epoch",
) -> EpochStats:
    """Trains a classifier for one epoch.

    Args:
        model: maps images (batch, ...) to logits (batch, classes).
        loader: batches of (images, labels); labels are (batch,) int64.
        optimizer: stepped once per batch.
        config: autocast, memory format, label smoothing and clipping are read from it.
        device: where the model is.
        scaler: for float16; None for no scaling.
        average: moving average of the weights, updated after each step.
        before_step: called with the number of the step in this epoch (from 0), to set the learning rate.
        after_step: called likewise; may raise to stop.
        where: the words by which an error names this epoch.

    Returns:
        Loss, accuracy and seconds.

    Raises:
        TrainingError: a loss is not finite. On a CPU the weights have not yet been touched by it.
        DataError: the loader gives no batch.
    """
    model.train()
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    tally, steps, step_seconds = _Tally(device, where), 0, 0.0
    started = time.perf_counter()
    for images, labels in _on_device(loader, config, device):
        step_started = time.perf_counter()
        if before_step is not None:
            before_step(steps)
        optimizer.zero_grad(set_to_none=True)
        with _autocast(config, device):
            outputs = model(images)
            loss = F.cross_entropy(outputs, labels, label_smoothing=config.label_smoothing)
        tally.add(loss, outputs, labels)
        scaler.scale(loss).backward()
        if config.clip_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.update_parameters(model)
        step_seconds += time.perf_counter() - step_started
        steps += 1
        if after_step is not None:
            after_step(steps)
    read_started = time.perf_counter()
    tally.read()  # waits for the device, so these seconds are those of steps
    ended = time.perf_counter()
    step_seconds += ended - read_started
    if not tally.samples:
        raise DataError(f"the training loader gave no batch {where}; expected at least one batch of (images, labels)")
    samples = tally.samples
    return EpochStats(
        tally.loss / samples, tally.hits / samples, samples, steps, step_seconds, ended - started - step_seconds
    )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    config: TrainingConfig,
    device: torch.device,
    *,
    after_batch: Callable[[], None] | None = None,
) -> EvalStats:
    """Cross-entropy and top-1 accuracy of a classifier in eval mode; the model's mode is put back afterwards.

    Args:
        model: maps images to logits.
        loader: batches of (images, labels).
        config: autocast and memory format are read from it; label smoothing is not applied.
        device: where the model is.
        after_batch: called after each batch; may raise to stop.

    Returns:
        Loss, accuracy, number of images, seconds.

    Raises:
        DataError: the loader gives no batch.
    """
    was_training, started = model.training, time.perf_counter()
    loss = torch.zeros((), dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    hits, samples = torch.zeros((), dtype=torch.int64, device=device), 0
    model.eval()
    try:
        for images, labels in _on_device(loader, config, device):
            with _autocast(config, device):
                outputs = model(images)
            loss += F.cross_entropy(outputs.float(), labels, reduction="sum")
            hits += (outputs.argmax(1) == labels).sum()
            samples += labels.shape[0]
            if after_batch is not None:
                after_batch()
    finally:
        model.train(was_training)
    if not samples:
        raise DataError("the evaluation loader gave no batch; expected at least one batch of (images, labels)")
    return EvalStats(float(loss) / samples, int(hits) / samples, samples, time.perf_counter() - started)


def _on_device(
    loader: Iterable[tuple[Tensor, Tensor]], config: TrainingConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in loader:
        moved = images.to(device, non_blocking=True)
        if config.channels_last and moved.ndim == 4:
            moved = moved.contiguous(memory_format=torch.channels_last)
        yield moved, labels.to(device, non_blocking=True)


def _autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=_AMP[config.amp], enabled=config.amp != "none")


def apply_memory_format_(model: nn.Module, config: TrainingConfig) -> None:
    """Puts four-dimensional weights into channels-last order if the config asks for it; values do not change."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
