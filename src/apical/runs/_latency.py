"""Measured latency of several networks in one process, taken in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from itertools import count, islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from apical.reporting import BATCHES, Latency

ROUNDS = 15
WARM_UP = 3
AT_LEAST_S = 0.01  # of the fastest call's sample, against the clock's and the scheduler's grain
Key = TypeVar("Key", bound=Hashable)


def in_turns_ms(calls: Mapping[Key, Callable[[], object]], rounds: int = ROUNDS) -> dict[Key, Latency]:
    """Median and quartiles of the milliseconds of several calls, timed in turns as `rounds_ms` does.

    Args:
        calls: what to time; each is warmed up first.
        rounds: samples of each.
    """
    samples = list(islice(rounds_ms(calls), rounds))
    return {key: _summed_up([sample[key] for sample in samples]) for key in calls}


def rounds_ms(calls: Mapping[Key, Callable[[], object]], warm_up: int = WARM_UP) -> Iterator[dict[Key, float]]:
    """Milliseconds of several calls, round by round without end: each is timed once, so that a slow spell of the
    machine meets all. Every other round goes through them backwards.

    A sample is the same number of repetitions for every call: on a busy machine a long sample is interrupted more often
    than a short one, and calls would no longer be comparable.

    Args:
        calls: what to time.
        warm_up: how often each is called first, at least 1.
    """
    fastest = min(_seconds(call) for call in calls.values() for _ in range(warm_up))
    repeats = max(1, round(AT_LEAST_S / fastest))
    for number in count():
        sample: dict[Key, float] = {}
        for key in list(calls) if number % 2 == 0 else list(calls)[::-1]:
            started = time.perf_counter()
            for _ in range(repeats):
                calls[key]()
            sample[key] = 1000 * (time.perf_counter() - started) / repeats
        yield sample


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return max(time.perf_counter() - started, 1e-7)


def _summed_up(values: list[float]) -> Latency:
    if len(values) < 2:
        return Latency(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Latency(middle, low, high)


def network_latencies(
    networks: Mapping[Key, nn.Module], example: tuple[Tensor, ...], device: torch.device, rounds: int = ROUNDS
) -> dict[Key, dict[int, Latency]]:
    """Latency of networks that take the same inputs, for batches of 1 and 128.

    Args:
        networks: in eval mode.
        example: arguments of one call. If their first dimension is not 1, they are no single example that could be
            repeated, and are timed as they are, as batch 1.
        device: where to measure.
        rounds: samples of each.
    """
    found: dict[Key, dict[int, Latency]] = {key: {} for key in networks}
    sizes = BATCHES if all(value.dim() and value.shape[0] == 1 for value in example) else BATCHES[:1]
    for network in networks.values():
        network.to(device).eval()
    for batch in sizes:
        inputs = tuple(_batch(value, batch if len(sizes) > 1 else 1).to(device) for value in example)
        calls = {key: _forward(network, inputs, device) for key, network in networks.items()}
        for key, latency in in_turns_ms(calls, rounds).items():
            found[key][batch] = latency
    return found


def _batch(value: Tensor, size: int) -> Tensor:
    repeated = torch.cat([value] * size)
    return torch.randn_like(repeated) if repeated.is_floating_point() else repeated


def _forward(network: nn.Module, inputs: tuple[Any, ...], device: torch.device) -> Callable[[], object]:
    @torch.inference_mode()
    def call() -> None:
        network(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return call
