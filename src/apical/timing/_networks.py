"""Latency of several networks in one process, taken in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from apical.timing._clock import Key, rounds_ms, synchronise

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

    Returns:
        For each network its samples, by batch size.
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
