"""What growing costs beside training, and what it saves: step times against plain modules and against dense training.

    python benchmarks/growth.py                     # ResNet-20, batch 128, 32x32
    python benchmarks/growth.py --epochs 10 --steps 20 --check

Every architecture that the run visits is also built as a plain module with an optimizer of its own, and both take steps
in turn, so that the machine's moods hit both alike. Dense steps are timed in the same turns.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import apical
from apical.models import resnet20

MAX_OVERHEAD = 1.02  # median step with apical over the same step without
MAX_RESTRUCTURING = 0.01  # share of the run's training time
CIFAR_STEPS = 390  # steps of one epoch of CIFAR-10 at batch 128


@dataclass(frozen=True)
class EpochTiming:
    """Median milliseconds of one training step of each kind, and the epoch's restructuring."""

    macs_fraction: float
    grown_ms: float
    plain_ms: float
    dense_ms: float
    overhead: float  # median over turns of grown / plain
    restructure_ms: float


@dataclass(frozen=True)
class Summary:
    """The run in four ratios."""

    overhead: float
    restructuring_share: float
    macs_ratio: float
    seconds_ratio: float


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One ordinary step as a function."""

    def step() -> None:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)


def timed(step: Callable[[], None]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    step()
    return 1000 * (time.perf_counter() - start)


def run(epochs: int, steps: int, batch: int) -> list[EpochTiming]:
    """Grow for some epochs, timing grown, plain and dense steps in turn."""
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    dense, model = resnet20(), resnet20()
    dense_step = training_step(dense, sgd(dense), x, y)
    optimizer = sgd(model)
    grower = apical.Grower(model, optimizer, (x[:1],), "50% macs", epochs)
    timings = []
    for _ in range(epochs):
        plain = copy.deepcopy(model)
        turns = [training_step(model, optimizer, x, y), training_step(plain, sgd(plain), x, y), dense_step]
        for step in turns:
            step()
        rows = []
        for i in range(steps):
            order = turns[:2] if i % 2 else turns[1::-1]
            first, second = (timed(step) for step in order)
            rows.append((*((first, second) if i % 2 else (second, first)), timed(dense_step)))
        grown, plain_ms, dense_ms = (statistics.median(column) for column in zip(*rows, strict=True))
        overhead = statistics.median(a / b for a, b, _ in rows)
        record = grower.end_epoch()
        restructure = 1000 * record["restructure_seconds"]
        timings.append(EpochTiming(record["macs_fraction"], grown, plain_ms, dense_ms, overhead, restructure))
    return timings


def summarise(timings: list[EpochTiming], steps_per_epoch: int = CIFAR_STEPS) -> Summary:
    """Ratios of the whole run, for epochs of a realistic length."""
    grown = sum(t.grown_ms for t in timings)
    dense = sum(t.dense_ms for t in timings)
    return Summary(
        overhead=statistics.median(t.overhead for t in timings),
        restructuring_share=sum(t.restructure_ms for t in timings) / (steps_per_epoch * grown),
        macs_ratio=statistics.mean(t.macs_fraction for t in timings),
        seconds_ratio=grown / dense,
    )


def report(timings: list[EpochTiming], summary: Summary) -> None:
    print("epoch   MACs  grown ms  plain ms  dense ms  grown/plain  restructuring ms")
    for i, t in enumerate(timings):
        print(f"{i:5d} {t.macs_fraction:6.1%} {t.grown_ms:9.1f} {t.plain_ms:9.1f} {t.dense_ms:9.1f} {t.overhead:12.3f} "
              f"{t.restructure_ms:17.1f}")  # fmt: skip
    print(f"\nsteps with apical over plain modules (median): {summary.overhead:.3f}x (target {MAX_OVERHEAD}x)")
    print(f"restructuring: {summary.restructuring_share:.2%} of training (target {MAX_RESTRUCTURING:.0%})")
    print(f"summed step time over dense: {summary.seconds_ratio:.2f}, MACs over dense: {summary.macs_ratio:.2f}")


def within_targets(summary: Summary) -> bool:
    """Whether overhead and restructuring meet their targets."""
    return summary.overhead <= MAX_OVERHEAD and summary.restructuring_share <= MAX_RESTRUCTURING


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    options = parser.parse_args()
    timings = run(options.epochs, options.steps, options.batch)
    summary = summarise(timings)
    report(timings, summary)
    return int(options.check and not within_targets(summary))


if __name__ == "__main__":
    sys.exit(main())
