"""Milliseconds of calls: of one alone, of a training step, of several in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import count
from typing import TypeVar

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
AT_LEAST_S = 0.01  # of a sample, against the clock's and the scheduler's grain
WARM_UP = 3
Key = TypeVar("Key", bound=Hashable)


def synchronise(device: torch.device) -> None:
    """Wait until a CUDA device has done all that it was given; other devices need no waiting."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_ms(
    run: Callable[[], object], device: torch.device = CPU, repeats: int = 7, at_least_s: float = AT_LEAST_S
) -> float:
    """Median wall time of a call in milliseconds, after two calls to warm up."""
    run()
    calls = max(1, int(at_least_s / seconds(run, 1, device)))
    return statistics.median(1000 * seconds(run, calls, device) / calls for _ in range(repeats))


def time_step_ms(layer: nn.Module, x: Tensor, at_least_s: float = 0.003) -> float:
    """Mean wall time of forward and backward of a layer over about so many seconds, once at least, after warming up."""

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        found = layer(x)
        found = found[0] if isinstance(found, tuple) else found
        found.backward(torch.ones_like(found))

    step()
    once = seconds(step, 1, x.device)
    calls = int(at_least_s / once)
    return 1000 * (once if calls < 2 else seconds(step, calls, x.device) / calls)


def rounds_ms(calls: Mapping[Key, Callable[[], object]], warm_up: int = WARM_UP) -> Iterator[dict[Key, float]]:
    """Milliseconds of several calls, round by round without end: each is timed once, so that a slow spell of the
    machine meets all. Every other round goes through them backwards.

    A sample is the same number of repetitions for every call: on a busy machine a long sample is interrupted more often
    than a short one, and calls would no longer be comparable.

    Args:
        calls: what to time; each waits for its device itself.
        warm_up: how often each is called first, at least 1.
    """
    fastest = min(seconds(call) for call in calls.values() for _ in range(warm_up))
    repeats = max(1, round(AT_LEAST_S / fastest))
    for number in count():
        order = list(calls) if number % 2 == 0 else list(calls)[::-1]
        yield {key: 1000 * seconds(calls[key], repeats) / repeats for key in order}


def seconds(run: Callable[[], object], calls: int = 1, device: torch.device = CPU) -> float:
    """Wall time of so many calls in a row, never 0."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(calls):
        run()
    synchronise(device)
    return max(time.perf_counter() - started, 1e-7)
