"""(f) Seconds of tracing, resizing and pricing, and memory of tracing, from ResNet-20 to ConvNeXt-L."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import apical
from apical.recipes import ModelConfig, build_model
from apical.structure import Structure
from benchmarks.seconds.cases.memory import resident_mib
from benchmarks.seconds.findings import Findings, NotAvailableError
from benchmarks.seconds.spread import Spread, exponent, spread
from benchmarks.seconds.steps import Options

NETWORKS = {
    "ResNet-20": ("resnet20", 32, 3),
    "ResNet-56": ("resnet56", 32, 3),
    "ResNet-50": ("resnet50", 224, 3),
    "ResNet-101": ("resnet101", 224, 2),
    "ResNet-152": ("torchvision:resnet152", 224, 2),
    "ConvNeXt-L": ("torchvision:convnext_large", 224, 1),
}
"""Model, pixels, repeats."""
QUICK = ("ResNet-20", "ResNet-56")
TARGETS = {"trace": 5.0, "shrink": 0.3, "grow": 0.3, "macs()": 1e-3, "num_params()": 1e-3}
"""Seconds, for ResNet-50 at 224 pixels."""


def sizes(options: Options, found: Findings) -> None:
    """Every network once or a few times: nothing is compared here, so there are no turns."""
    rows: list[tuple[Any, ...]] = []
    points: list[tuple[int, float, float]] = []
    for name, (model, pixels, repeats) in NETWORKS.items():
        if options.quick and name not in QUICK:
            continue
        with found.part(name):
            if ":" in model:
                _need_torchvision()
            built = _built(model, pixels)
            layers = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in built.modules())
            params = sum(p.numel() for p in built.parameters())
            seconds, structure = measure(built, pixels, 1 if options.quick else repeats)
            peak = trace_peak_mib(model, pixels)
            rows.append(
                (name, layers, params / 1e6, len(structure.groups), peak, *(_ms(seconds[what]) for what in TARGETS))
            )
            points.append((layers, seconds["trace"].median, seconds["shrink"].median))
            if name == "ResNet-50":
                for what, limit in TARGETS.items():
                    found.target(f"seconds of {what}, ResNet-50 at 224 px", seconds[what], limit)
        gc.collect()
    columns = [("network", ""), ("layers", "d"), ("parameters M", ".1f"), ("groups", "d"), ("trace peak MiB", ".0f"),
               ("trace ms", ".0f"), ("shrink ms", ".0f"), ("grow ms", ".0f"), ("macs() ms", ".3f"),
               ("num_params() ms", ".3f")]  # fmt: skip
    note = ("Shrink: to a random half of every group, with SGD momentum and the store; grow: back. Trace peak: "
            "resident memory above the model and the libraries, in a process of its own.")  # fmt: skip
    if len(points) > 2:
        powers = [exponent([point[0] for point in points], [point[part] for point in points]) for part in (1, 2)]
        note += (f" Tracing grows as layers to the power of {powers[0]:.2f}, shrinking as {powers[1]:.2f} (but the "
                 "weights get larger too).")  # fmt: skip
    found.table("Milliseconds", columns, rows, note)


def _built(model: str, pixels: int) -> nn.Module:
    return build_model(ModelConfig(model), num_classes=1000 if pixels == 224 else 10)


def trace_peak_mib(model: str, pixels: int) -> float:
    """The most memory that tracing takes at once beside the model and the libraries, in MiB.

    Raises:
        NotAvailableError: the system does not say.
    """
    if not Path("/proc/self/status").exists():
        raise NotAvailableError("the peak of resident memory is read from /proc, which this system lacks")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mib, (model, pixels, torch.get_num_threads()))


def _peak_mib(model: str, pixels: int, threads: int) -> float:
    torch.set_num_threads(threads)
    if ":" in model:
        _need_torchvision()
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    apical.trace(small, torch.zeros(1, 3, 8, 8))  # libraries load
    built = _built(model, pixels)
    before = resident_mib("VmRSS")
    apical.trace(built, torch.zeros(1, 3, pixels, pixels))
    return max(0.0, resident_mib("VmHWM") - before)


def _need_torchvision() -> None:
    """Imports torchvision as the tests do, so that its compiled operators, which may not fit this torch, are no matter.

    Raises:
        NotAvailableError: it is not installed.
    """
    sys.path.append(str(Path(__file__).resolve().parents[3] / "tests"))
    from torchvision_shim import has_torchvision, import_torchvision

    if not has_torchvision():
        raise NotAvailableError("torchvision is not installed; pip install torchvision")
    import_torchvision()


def _ms(seconds: Spread) -> Spread:
    return Spread(1000 * seconds.median, 1000 * seconds.low, 1000 * seconds.high, seconds.samples)


def measure(model: nn.Module, pixels: int, repeats: int) -> tuple[dict[str, Spread], Structure]:
    """Seconds of each operation, and the structure."""
    inputs = (torch.zeros(1, 3, pixels, pixels),)
    structures: list[Structure] = []
    found = {"trace": [_seconds(lambda: structures.append(apical.trace(model, inputs))) for _ in range(repeats)]}
    structure = structures[-1]
    optimizer, store = _with_momentum(model), apical.DormantStore()
    found |= {"shrink": [], "grow": []}
    for seed in range(repeats):
        keep = half_of_each_group(structure, seed)
        found["shrink"].append(_seconds(_resize(model, structure, keep, optimizer, store)))
        found["grow"].append(_seconds(_resize(model, structure, {}, optimizer, store)))
    for what, price in (("macs()", structure.macs), ("num_params()", structure.num_params)):
        keep = half_of_each_group(structure, 0)
        price(keep)  # makes the closed form first
        found[what] = [_seconds(lambda p=price, k=keep: [p(k) for _ in range(100)]) / 100 for _ in range(3)]
    return {what: spread(values) for what, values in found.items()}, structure


def _resize(
    model: nn.Module, structure: Structure, keep: dict[str, list[int]], optimizer: Any, store: apical.DormantStore
) -> Callable[[], object]:
    return lambda: apical.resize_(model, structure, keep, optimizer=optimizer, store=store)


def half_of_each_group(structure: Structure, seed: int) -> dict[str, list[int]]:
    """A random half of every group's units."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: sorted(torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)].tolist())
        for group in structure.groups
    }


def _with_momentum(model: nn.Module) -> torch.optim.Optimizer:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    optimizer.step()
    return optimizer


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
