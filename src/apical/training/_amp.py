"""``amp="auto"``: a training step measured in float32 and under bfloat16 autocast, once, before a run."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from apical.training._config import TrainingConfig, resolve_device
from apical.training._learner import AMP_DTYPES, autocast, in_memory_format, put_in_safe_order_
from apical.training._processes import any_of_all, processes
from apical.training._protocols import Loader
from apical.training._run_folder import begun_with
from apical.training._task import Task

Measured = Literal["none", "bfloat16"]
STEPS = 3  # timed after one that is not
WORTH = 0.95  # of float32's time: what bfloat16, which costs precision, must come to
HOPELESS = 2.0  # times float32's time in its first step: bfloat16 is timed no further


def settle_amp(
    config: TrainingConfig, model: nn.Module, task: Task, loader: Loader, earlier: Iterable[Path] = ()
) -> tuple[TrainingConfig, str]:
    """The config with what is faster here in the place of ``amp="auto"``, and in words why (empty if it was given).

    Timed are forward and backward passes of a copy of the model on the first batch of the loader, which is put back.
    Of several processes the first one decides.

    Args:
        config: batch, device and memory format are read from it.
        model: the full-size model, on any device; it is not changed.
        task: what runs the model on a batch.
        loader: of training batches.
        earlier: run folders whose choice is taken instead of measuring, so that a resumed run goes on with its own.
    """
    if config.amp != "auto":
        return config, ""
    known = next((amp for amp in begun_with(earlier, "training", "amp") if amp in [*AMP_DTYPES]), None)
    if known is not None:
        return replace(config, amp=known), f"amp={known}, as measured before"
    device = resolve_device(config.device)
    twin = copy.deepcopy(model).to(device)
    timed = put_in_safe_order_(twin, config)
    batch = first_batch(loader, timed, device)
    plain = _step_seconds(twin, task, batch, replace(timed, amp="none"), device)
    try:
        half = _step_seconds(twin, task, batch, replace(timed, amp="bfloat16"), device, HOPELESS * plain)
        found = f"{1000 * half:,.0f} ms"
    except RuntimeError as error:  # an operation that the device does not have in bfloat16
        half, found = float("inf"), f"no step ({str(error).strip().splitlines()[0]})"
    team = processes()
    chosen: Measured = "bfloat16" if any_of_all(int(team.first and half < WORTH * plain)) else "none"
    return replace(config, amp=chosen), (
        f"amp=auto: a training step of the full model takes {1000 * plain:,.0f} ms in float32 and {found} under "
        f"bfloat16 autocast on {device.type}; training {'under bfloat16' if chosen == 'bfloat16' else 'in float32'} "
        f"(amp={chosen})"
    )


def assumed_amp(config: TrainingConfig, device: torch.device) -> TrainingConfig:
    """The config with a guess for ``"auto"`` where nothing can be measured: bfloat16 on CUDA, float32 elsewhere."""
    if config.amp != "auto":
        return config
    return replace(config, amp="bfloat16" if device.type == "cuda" else "none")


def first_batch(loader: Loader, config: TrainingConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """What a loader would give next; it is put back."""
    before = loader.state_dict()
    inputs, targets = next(iter(loader))
    loader.load_state_dict(before)
    return in_memory_format(inputs.to(device), config), targets.to(device)


def _step_seconds(
    model: nn.Module,
    task: Task,
    batch: tuple[Tensor, Tensor],
    config: TrainingConfig,
    device: torch.device,
    patience: float = float("inf"),
) -> float:
    """Median seconds of forward and backward passes; those of the first, if it took longer than ``patience``."""
    model.train()
    seconds = []
    for step in range(1 + STEPS):
        task.begin(training=True)
        started = time.perf_counter()
        model.zero_grad(set_to_none=True)
        with autocast(config, device):
            loss = task.batch(model, *batch, training=True).loss
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        if step == 0 and seconds[0] > patience:
            return seconds[0]
    return sorted(seconds[1:])[STEPS // 2]
