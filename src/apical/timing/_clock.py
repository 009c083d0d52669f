"""Milliseconds of calls: of one alone, of a training step, of several in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, TypeVar

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
    run: Callable[[], object], device: torch.device = CPU, repeats: int = 2, at_least_s: float = AT_LEAST_S
) -> float:
    """Least wall time of a call in milliseconds, after two calls to warm up: what disturbs it only adds."""
    run()
    calls = max(1, int(at_least_s / seconds(run, 1, device)))
    return min(1000 * seconds(run, calls, device) / calls for _ in range(repeats))


def least(samples: Sequence[Mapping[Key, float]]) -> dict[Key, float]:
    """The least of several times of the same things, some of which may be missing from some samples."""
    keys = dict.fromkeys(key for sample in samples for key in sample)
    return {key: min(sample[key] for sample in samples if key in sample) for key in keys}


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


BATCHES = (1, 128)
ROUNDS = 15


def network_samples_ms(
    networks: Mapping[Key, nn.Module], example: tuple[Tensor, ...], device: torch.device, rounds: int = ROUNDS
) -> dict[Key, dict[int, list[float]]]:
    """Milliseconds of a forward pass of networks that take the same inputs, for batches of 1 and 128.

    Args:
        networks: in eval mode.
        example: arguments of one call. If their first dimension is not 1, they are no single example that could be
            repeated, and are timed as they are, as batch 1.
        device: where to measure.
        rounds: samples of each.
    """
    found: dict[Key, dict[int, list[float]]] = {key: {} for key in networks}
    sizes = BATCHES if all(value.dim() and value.shape[0] == 1 for value in example) else BATCHES[:1]
    for network in networks.values():
        network.to(device).eval()
    for batch in sizes:
        inputs = batch_of(example, batch if len(sizes) > 1 else 1, device)
        calls = {key: _forward(network, inputs, device) for key, network in networks.items()}
        samples = list(islice(rounds_ms(calls), rounds))
        for key in networks:
            found[key][batch] = [sample[key] for sample in samples]
    return found


def batch_of(example: tuple[Tensor, ...], size: int, device: torch.device, along: int = 0) -> tuple[Tensor, ...]:
    """So many examples from one, along a dimension: noise, or the same whole numbers again and again."""
    repeated = [value.to(device).repeat_interleave(size, along) for value in example]
    return tuple(torch.randn_like(x) if x.is_floating_point() else x for x in repeated)


def _forward(network: nn.Module, inputs: tuple[Any, ...], device: torch.device) -> Callable[[], object]:
    @torch.inference_mode()
    def call() -> None:
        network(*inputs)
        synchronise(device)

    return call
