"""Whole networks are timed in turns."""

from __future__ import annotations

import time
from itertools import islice

import torch
from torch import nn

from apical.timing._clock import network_samples_ms, rounds_ms


def test_calls_are_timed_in_turns_and_slower_ones_take_longer() -> None:
    calls = {"fast": lambda: time.sleep(0.001), "slow": lambda: time.sleep(0.012)}
    for sample in islice(rounds_ms(calls), 5):
        assert 1 <= sample["fast"] < sample["slow"]
        assert sample["slow"] >= 12


def test_inputs_that_are_no_single_example_are_timed_as_they_are() -> None:
    seen: list[int] = []

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(len(x))
            return x

    cpu = torch.device("cpu")
    assert set(network_samples_ms({"a": Net()}, (torch.zeros(1, 3),), cpu, 1)["a"]) == {1, 128}
    assert set(seen) == {1, 128}
    seen.clear()
    assert set(network_samples_ms({"a": Net()}, (torch.zeros(7, 3),), cpu, 1)["a"]) == {1}
    assert set(seen) == {7}
