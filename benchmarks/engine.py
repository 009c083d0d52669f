"""Time the engine on ResNet-50: tracing at 224 px, one resize with SGD momentum, one price.

    python benchmarks/engine.py                # medians and targets
    python benchmarks/engine.py --check        # exit status 1 if a target is missed

Medians over repeats on the wall clock, one process; run it alone on the machine.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import apical
from apical.models import resnet50
from apical.structure import Structure


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat of one operation, and what its median should stay under."""

    name: str
    seconds: tuple[float, ...]
    target_seconds: float

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)

    @property
    def met(self) -> bool:
        """Whether the median is under the target."""
        return self.median_seconds < self.target_seconds


def stopwatch(action: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def sgd_with_momentum(model: nn.Module) -> torch.optim.Optimizer:
    """SGD after one step on random gradients, so that every parameter has a gradient and a momentum buffer."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    optimizer.step()
    return optimizer


def half_of_each_group(structure: Structure, seed: int) -> dict[str, list[int]]:
    """A random half of every group's units."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: sorted(torch.randperm(group.size, generator=generator)[: max(1, group.size // 2)].tolist())
        for group in structure.groups
    }


def time_trace(model: nn.Module, repeats: int) -> tuple[Timing, Structure]:
    """Trace at 224 px, batch 1."""
    inputs = (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)
    structures: list[Structure] = []
    seconds = [stopwatch(lambda: structures.append(apical.trace(model, inputs))) for _ in range(repeats)]
    return Timing("trace ResNet-50 at 224 px", tuple(seconds), 5.0), structures[-1]


def time_resize(model: nn.Module, structure: Structure, repeats: int) -> list[Timing]:
    """Shrink to half of each group, then grow back, with optimizer and store, again and again."""
    optimizer, store = sgd_with_momentum(model), apical.DormantStore()
    shrink, grow = [], []
    for repeat in range(repeats):
        keep = half_of_each_group(structure, repeat)
        shrink.append(
            stopwatch(lambda keep=keep: apical.resize_(model, structure, keep, optimizer=optimizer, store=store))
        )
        grow.append(stopwatch(lambda: apical.resize_(model, structure, {}, optimizer=optimizer, store=store)))
    return [
        Timing("shrink ResNet-50 to half of each group", tuple(shrink), 0.3),
        Timing("grow ResNet-50 back", tuple(grow), 0.3),
    ]


def time_pricing(structure: Structure, repeats: int) -> list[Timing]:
    """One call of macs() and of num_params() for a keep set over all groups, mean of 200 calls each repeat."""
    keep = half_of_each_group(structure, 0)
    calls = 200

    def mean_seconds(price: Callable[..., int]) -> float:
        return stopwatch(lambda: [price(keep) for _ in range(calls)]) / calls

    structure.macs(keep), structure.num_params(keep)  # compile the closed forms first
    return [
        Timing("macs() of a choice", tuple(mean_seconds(structure.macs) for _ in range(repeats)), 1e-3),
        Timing("num_params() of a choice", tuple(mean_seconds(structure.num_params) for _ in range(repeats)), 1e-3),
    ]


def run(repeats: int) -> list[Timing]:
    """All timings, one after the other."""
    model = resnet50()
    trace, structure = time_trace(model, repeats)
    return [trace, *time_resize(model, structure, repeats), *time_pricing(structure, repeats)]


def report(timings: Sequence[Timing]) -> str:
    """A readable table with the machine it was measured on."""
    lines = [
        f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"Python {platform.python_version()}; median of {len(timings[0].seconds)}",
        f"{'operation':40}{'median':>13}{'min':>13}{'max':>13}{'target':>12}",
    ]
    for timing in timings:
        values = (timing.median_seconds, min(timing.seconds), max(timing.seconds))
        columns = "".join(f"{1e3 * value:>10.3f} ms" for value in values)
        verdict = "met" if timing.met else "MISSED"
        lines.append(f"{timing.name:40}{columns}{1e3 * timing.target_seconds:>9g} ms  {verdict}")
    return "\n".join(lines)


def missed(timings: Sequence[Timing]) -> list[str]:
    """Names of the operations over their target."""
    return [timing.name for timing in timings if not timing.met]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="fail if a target is missed")
    options = parser.parse_args()
    timings = run(options.repeats)
    print(report(timings))
    return 1 if options.check and missed(timings) else 0


if __name__ == "__main__":
    sys.exit(main())
