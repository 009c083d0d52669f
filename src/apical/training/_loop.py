"""The training loop: the steps of an epoch, and an evaluation, in plain PyTorch. `_run.py` calls them.

What happens around a step is not in here: `train_steps` yields after each one, so that whoever iterates may restructure
the network, show progress, save or leave. What a step changes is a `Learner`; what an epoch adds up to is a `Tally`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from apical.errors import DataError
from apical.training._config import TrainingConfig
from apical.training._learner import Learner, autocast, in_memory_format
from apical.training._optimizer import lr_factor, set_lr_
from apical.training._own_state import hand_on_
from apical.training._processes import any_of_all, summed
from apical.training._protocols import Loader
from apical.training._tally import EvalStats, Tally
from apical.training._task import Classification, Task

Batch = tuple[Tensor, Tensor]


def train_steps(
    learner: Learner, loader: Loader | tuple[()], tally: Tally, epoch: int, stream: Any = None
) -> Iterator[int]:
    """Train on each batch of an epoch, and yield after each the number of steps that are done.

    Args:
        learner: what is trained.
        loader: batches of (inputs, targets); of an epoch that was begun before, the rest of them.
        tally: of this epoch; it knows the steps that were done before.
        epoch: its number, from 1.
        stream: of an epoch that was begun before, what the task then handed on to the next batch.

    Raises:
        TrainingError: a loss is not finite. On a CPU the weights have not yet been touched by it.
    """
    config, steps = learner.config, len(loader)
    learner.model.train()
    # what the task carries from batch to batch (a recurrent state) begins anew, or where the epoch was left
    learner.task.begin(training=True)
    hand_on_(learner.task, stream, learner.device)
    for inputs, targets in on_device(loader, config, learner.device):
        started = time.perf_counter()
        # the rate by the step, not by the epoch, so that warm-up and decay are smooth
        set_lr_(learner.optimizer, lr_factor(epoch - 1 + tally.steps / steps, config.epochs, config.schedule))
        learner.optimizer.zero_grad(set_to_none=True)
        with autocast(config, learner.device):
            result = learner.task.batch(learner.replica.module, inputs, targets, training=True)
        tally.add(result)
        # backward in the scaler's units (1 without float16); clipping needs the gradients themselves
        learner.scaler.scale(result.loss).backward()
        if config.clip_grad_norm is not None:
            learner.scaler.unscale_(learner.optimizer)
            nn.utils.clip_grad_norm_(learner.model.parameters(), config.clip_grad_norm)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        if learner.average is not None:
            learner.average.update_parameters(learner.model)
        tally.step(time.perf_counter() - started, learner.replica.newly_compiled())
        yield tally.steps


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    config: TrainingConfig,
    device: torch.device,
    *,
    task: Task | None = None,
    divided: bool = False,
) -> EvalStats:
    """Loss and metrics of a model in eval mode; the model's mode is put back afterwards.

    In several processes, a loader that gives each of them a share is summed over all.

    Args:
        model: as the task runs it.
        loader: batches of (inputs, targets).
        config: autocast and memory format are read from it; label smoothing is not applied.
        device: where the model is.
        task: loss and metrics; classification if None.
        divided: whether the processes divide the model among them, so that all must call it equally often.

    Returns:
        Loss, metrics, number of examples, seconds.

    Raises:
        DataError: the loader gives no batch; of a divided model, that of any process.
    """
    started, was_training = time.perf_counter(), model.training
    task = task or Classification()
    loss = torch.zeros((), dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    weight, samples = torch.zeros_like(loss), 0
    counts: Tensor | None = None
    model.eval()
    task.begin(training=False)
    try:
        batches = on_device(loader, config, device)
        for (inputs, targets), counted in in_step(batches) if divided else ((batch, True) for batch in batches):
            with autocast(config, device):
                result = task.batch(model, inputs, targets, training=False)
            if not counted:
                continue
            loss += result.loss * result.weight
            weight += result.weight
            counts = result.counts if counts is None else counts + result.counts
            samples += result.samples
    finally:
        model.train(was_training)
    # each process judged its share: sums first, then one mean over all examples
    if getattr(loader, "world_size", 1) > 1:
        sums, counts = summed(torch.stack([loss, weight, loss.new_tensor(samples)])), summed(counts)
        assert sums is not None
        loss, weight, samples = sums[0], sums[1], int(sums[2])
    if counts is None or not weight:
        raise DataError("the evaluation loader gave nothing to judge by; expected at least one batch")
    mean = float(loss / weight)
    return EvalStats(mean, task.results(mean, counts.cpu()), samples, time.perf_counter() - started)


def in_step(batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """The batches of this process and whether each counts; its last one is repeated while other processes have more."""
    last: Batch | None = None
    while True:
        batch = next(batches, None)
        last = last if batch is None else batch
        # 2: a process has nothing at all; 1: some process has a batch still; 0: none has
        told = any_of_all(2 if last is None else int(batch is not None))
        if told == 2:
            raise DataError(
                "a process has nothing to evaluate, but all must call a divided model equally often; evaluate on at "
                "least as many samples as there are processes"
            )
        if told == 0 or last is None:
            return
        yield last, batch is not None


def on_device(
    loader: Iterable[tuple[Tensor, Tensor]], config: TrainingConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader on the device, images in the memory format that the config asks for."""
    for inputs, targets in loader:
        yield in_memory_format(inputs.to(device, non_blocking=True), config), targets.to(device, non_blocking=True)
