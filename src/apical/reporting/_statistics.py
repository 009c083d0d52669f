"""Means, spreads, and whether a difference is more than the spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["better", "worse", "within the spread", "one seed", "reference"]


@dataclass(frozen=True)
class MeanStd:
    """Mean and sample standard deviation over seeds; no deviation if there is one value only."""

    mean: float
    std: float | None
    count: int

    def text(self, pattern: str = "{:.2f}", scale: float = 1.0) -> str:
        """As tables show it.

        Example:
            >>> MeanStd(0.9137, 0.0021, 3).text("{:.2f}", 100)
            '91.37 ± 0.21'
        """
        mean = pattern.format(scale * self.mean)
        return mean if self.std is None else f"{mean} ± {pattern.format(scale * self.std)}"


def mean_std(values: Sequence[float]) -> MeanStd | None:
    """Mean and sample standard deviation (n − 1); None of no values.

    Example:
        >>> mean_std([1.0, 2.0, 3.0])
        MeanStd(mean=2.0, std=1.0, count=3)
    """
    if not values:
        return None
    return MeanStd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Difference:
    """A method's mean minus the reference's, and what to make of it.

    Attributes:
        mean: the difference.
        spread: √(σ² + σ_ref²), the standard deviation of the difference of two single runs; None with one seed.
        verdict: ``"better"`` or ``"worse"`` only where the difference is larger than the spread.
    """

    mean: float
    spread: float | None
    verdict: Verdict


def difference(own: MeanStd, reference: MeanStd, higher_is_better: bool = True) -> Difference:
    """Compare with a reference.

    This is no significance test: with three seeds it only keeps noise from being read as a result.

    Example:
        >>> difference(MeanStd(0.92, 0.001, 3), MeanStd(0.91, 0.002, 3)).verdict
        'better'
        >>> difference(MeanStd(0.92, 0.01, 3), MeanStd(0.91, 0.002, 3)).verdict
        'within the spread'
    """
    mean = own.mean - reference.mean
    if own.std is None or reference.std is None:
        return Difference(mean, None, "one seed")
    spread = math.hypot(own.std, reference.std)
    if abs(mean) <= spread:
        return Difference(mean, spread, "within the spread")
    return Difference(mean, spread, "better" if (mean > 0) == higher_is_better else "worse")
