"""Statistics of samples that were taken in turns, and the taking of them within a time limit."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from apical.timing._clock import rounds_ms

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Spread:
    """Median, first and third quartile, and number of samples."""

    median: float
    low: float
    high: float
    samples: int


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value.

    Example:
        >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0, samples=5)
    """
    if not values:
        raise ValueError("spread() needs at least one value, got none")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def of(rounds: Sequence[Mapping[Key, float]], key: Key) -> Spread:
    """The samples of one variant."""
    return spread([sample[key] for sample in rounds])


def ratio(rounds: Sequence[Mapping[Key, float]], key: Key, other: Key) -> Spread:
    """One variant over another, each ratio within one round.

    Example:
        >>> ratio([{"a": 1.0, "b": 2.0}, {"a": 10.0, "b": 20.0}], "a", "b").median
        0.5
    """
    return spread([sample[key] / sample[other] for sample in rounds])


def take_turns(
    calls: Mapping[Key, Callable[[], object]], limit_s: float, *, least: int = 3, most: int = 15, warm_up: int = 1
) -> list[dict[Key, float]]:
    """Rounds of milliseconds, each with one sample of every call, until the time is used up.

    Args:
        calls: what to time.
        limit_s: seconds after which no further round begins, warming up included.
        least: rounds that are taken in any case.
        most: rounds at most.
        warm_up: calls of each before the first round.
    """
    started, found = time.perf_counter(), []
    for sample in rounds_ms(calls, warm_up):
        found.append(sample)
        if len(found) >= most or (len(found) >= least and time.perf_counter() - started >= limit_s):
            break
    return found


def along_epochs(epochs: int, known: Mapping[int, float]) -> list[float]:
    """A figure for every epoch from those of some, linear between two known ones and constant outside.

    Example:
        >>> along_epochs(5, {0: 1.0, 2: 3.0})
        [1.0, 2.0, 3.0, 3.0, 3.0]
    """
    points = sorted(known)
    found = []
    for epoch in range(epochs):
        before = max((p for p in points if p <= epoch), default=points[0])
        after = min((p for p in points if p >= epoch), default=points[-1])
        part = 0.0 if after <= before else (epoch - before) / (after - before)
        found.append(known[before] + part * (known[after] - known[before]))
    return found


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The power with which a cost grows with size: slope of a line through the logarithms of both.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    slope, _ = statistics.linear_regression([math.log(s) for s in sizes], [math.log(c) for c in costs])
    return slope
