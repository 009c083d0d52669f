"""(e) Memory of a training step by epoch: counted for every network, and seen by the system for some."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing, nn

from apical.runs._plan import plan_recipe, price
from apical.training import TrainingConfig
from benchmarks.seconds.findings import Findings, NotAvailableError
from benchmarks.seconds.steps import Growth, Options, distinct, simulated, training_step

RECIPES = {"cifar10-resnet20": "50% macs", "cifar10-vgg16": "13.6% macs, 5% params"}
MIB = 2**20


def memory(options: Options, found: Findings) -> None:
    """Growth without training: `apical plan`'s count by epoch, and real steps of the first, final and full one."""
    for recipe, budget in RECIPES.items():
        with found.part(recipe):
            _one(recipe, budget, options, found)


def _one(recipe: str, budget: str, options: Options, found: Findings) -> None:
    settings = [*options.fast, f"budget={budget}", f"batch_size={4 if options.quick else 128}"]
    growth = simulated(recipe, settings, 4 if options.quick else 12)
    samples = growth.steps * growth.config.training.batch_size
    count = price(plan_recipe(growth.config, growth.facts), samples, memory=True)
    dense = count.dense["memory_bytes"]
    seen: dict[int, float] = {}
    dense_seen: float | None = None
    with found.part(f"{recipe}: steps in a process of their own"):
        for epoch in distinct(growth.records, 2):
            seen[epoch] = peak_mib(growth, growth.at(epoch), options.device)
        dense_seen = peak_mib(growth, growth.dense(), options.device)
    full = growth.structure.macs()
    rows: list[tuple[Any, ...]] = [
        (str(i), 100 * r["macs"] / full, r["memory_bytes"] / MIB, r["memory_bytes"] / dense, seen.get(i))
        for i, r in enumerate(count.epochs)
    ]
    rows.append(("dense", 100.0, dense / MIB, 1.0, dense_seen))
    columns = [("epoch", ""), ("MACs %", ".1f"), ("counted MiB", ".1f"), ("of dense", ".3f"), ("measured MiB", ".1f")]
    note = ("Counted: parameters, gradients, optimizer state and dormant weights, and what autograd saves for the "
            "backward pass (seen by its hooks on each network). Measured: growth of the peak of resident memory over "
            "three steps in a fresh process (Linux), or what torch allocated at most (CUDA); without the dormant "
            "weights, with the kernels' own buffers and temporaries.")  # fmt: skip
    found.table(f"{recipe}, {budget}, {options.numbers}", columns, rows, note)


def peak_mib(growth: Growth, model: nn.Module, device: torch.device) -> float:
    """The most memory that three steps take, in MiB, the network itself included.

    Raises:
        NotAvailableError: the system does not say.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step = growth.step(model, device)
        for _ in range(3):
            step()
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    if not Path("/proc/self/status").exists():
        raise NotAvailableError("the peak of resident memory is read from /proc, which this system lacks")
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    arguments = (send, model, growth.config.training, growth.shape, growth.classes, torch.get_num_threads())
    process = context.Process(target=_child, args=arguments)
    process.start()
    process.join(timeout=180)
    if process.is_alive() or not receive.poll():
        process.terminate()
        raise RuntimeError(f"the process that takes three steps ended with {process.exitcode} and said nothing")
    own = sum(p.numel() * p.element_size() for p in model.parameters())
    return float(receive.recv()) + own / MIB


def _child(
    send: Any, model: nn.Module, training: TrainingConfig, shape: tuple[int, ...], classes: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    small = nn.Sequential(nn.Conv2d(shape[0], classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    training_step(small, training, shape, classes, torch.device("cpu"))()  # libraries load, threads start
    trim: Callable[[int], object] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    before = resident_mib("VmRSS")
    step = training_step(model, training, shape, classes, torch.device("cpu"))
    for _ in range(3):
        step()
    send.send(max(0.0, resident_mib("VmHWM") - before))
    send.close()


def resident_mib(name: str) -> float:
    """A size of this process as Linux tells it."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise NotAvailableError(f"/proc/self/status of this {sys.platform} has no {name}")
