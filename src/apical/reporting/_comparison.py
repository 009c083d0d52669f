"""Runs of several methods and seeds, summed up per method."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from apical.reporting._read import RunRecord


@dataclass(frozen=True)
class Latency:
    """Measured milliseconds of one forward pass.

    Attributes:
        ms: median over the rounds.
        low: first quartile.
        high: third quartile.
    """

    ms: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> Latency:
        """Of one sample or more.

        Example:
            >>> Latency.of([3.0, 1.0, 2.0])
            Latency(ms=2.0, low=1.5, high=2.5)
        """
        if len(samples) < 2:
            return Latency(samples[0], samples[0], samples[0])
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return Latency(middle, low, high)


@dataclass(frozen=True)
class Run:
    """One finished run of a comparison.

    Attributes:
        method: by which it was done.
        seed: of training and growth.
        record: what its folder says.
        latency: of its final network, by batch size.
    """

    method: str
    seed: int
    record: RunRecord
    latency: Mapping[int, Latency]


@dataclass(frozen=True)
class MethodRow:
    """A line of the table: means and deviations over the seeds. Fractions are of the full model.

    Attributes:
        method: its name.
        seeds: of its runs.
        test: the metric on the test data, read once at the end of each run.
        against: difference of `test` to the reference method's; None where there is no reference.
        macs_fraction: of the final network.
        params_fraction: likewise.
        train_macs_vs_dense: training MACs over those of the full model for the comparison's epochs.
        train_macs_vs_final: over those of the method's own final network for the comparison's epochs.
        train_seconds: of steps and restructuring.
        latency_ms: median over the seeds of the medians, by batch size.
        latency_vs_dense: the same over that of the full model, by batch size.
    """

    method: str
    seeds: tuple[int, ...]
    test: MeanStd | None
    against: Difference | None
    macs_fraction: MeanStd | None
    params_fraction: MeanStd | None
    train_macs_vs_dense: MeanStd | None
    train_macs_vs_final: MeanStd | None
    train_seconds: MeanStd | None
    latency_ms: Mapping[int, float]
    latency_vs_dense: Mapping[int, float]


@dataclass(frozen=True)
class Comparison:
    """Everything that table and page show.

    Attributes:
        title: recipe and budget.
        epochs: of the comparison; ``final-same-macs`` trains fewer or more.
        reference: the method that the others are compared with.
        metric: name, pattern, scale, unit and direction, as a run's config has them.
        runs: all finished runs.
        dense_latency: of the full model, by batch size; these sizes are shown.
        facts: device, threads, versions, command.
    """

    title: str
    epochs: int
    reference: str
    metric: Mapping[str, Any]
    runs: Sequence[Run]
    dense_latency: Mapping[int, Latency]
    facts: Mapping[str, Any]

    @property
    def methods(self) -> tuple[str, ...]:
        """In the order of their first run."""
        return tuple(dict.fromkeys(run.method for run in self.runs))

    def of(self, method: str) -> list[Run]:
        """The runs of a method."""
        return [run for run in self.runs if run.method == method]


def rows(comparison: Comparison) -> list[MethodRow]:
    """A line for each method."""
    name = f"test_{comparison.metric['name']}"
    reference = _stat(comparison.of(comparison.reference), name)
    return [_row(comparison, method, name, reference) for method in comparison.methods]


def _row(comparison: Comparison, method: str, name: str, reference: MeanStd | None) -> MethodRow:
    runs = comparison.of(method)
    test = _stat(runs, name)
    against = None
    if test is not None and reference is not None:
        against = difference(test, reference, bool(comparison.metric["higher_is_better"]))
        if method == comparison.reference:
            against = Difference(0.0, None, "reference")
    dense = comparison.dense_latency
    latency = {b: statistics.median(r.latency[b].ms for r in runs) for b in dense if all(b in r.latency for r in runs)}
    return MethodRow(
        method,
        tuple(run.seed for run in runs),
        test,
        against,
        _stat(runs, "macs_fraction"),
        _stat(runs, "params_fraction"),
        _stat(runs, "train_macs_fraction", comparison.epochs),
        _stat(runs, "train_macs_vs_final", comparison.epochs),
        _stat(runs, "train_seconds"),
        latency,
        {b: ms / dense[b].ms for b, ms in latency.items()},
    )


def _stat(runs: Sequence[Run], name: str, epochs: int | None = None) -> MeanStd | None:
    """Over the seeds; with ``epochs``, a fraction of a run's own epochs becomes one of the comparison's."""
    values = []
    for run in runs:
        value = run.record.summary.get(name)
        if isinstance(value, (int, float)):
            values.append(value if epochs is None else value * run.record.summary["epochs"] / epochs)
    return mean_std(values)


def cost_curve(comparison: Comparison, method: str) -> list[tuple[float, float]]:
    """(training MACs spent, metric on the evaluation data), means over the seeds, epoch by epoch.

    MACs are in per cent of training the full model for the comparison's epochs; the metric is scaled as tables show it.
    """
    curves = [_curve(run.record, comparison) for run in comparison.of(method)]
    return [
        (statistics.fmean(x for x, _ in points), statistics.fmean(y for _, y in points))
        for points in zip(*curves, strict=False)  # final-same-macs may differ by an epoch between seeds
    ]


def _mean_fraction(record: Mapping[str, Any]) -> float:
    """What a sample of an epoch cost on average, of the full model: the network may change between steps."""
    fraction: float = record["macs_fraction"]
    return fraction * record["mean_macs"] / record["macs"] if record.get("mean_macs") else fraction


def _curve(record: RunRecord, comparison: Comparison) -> list[tuple[float, float]]:
    name, scale = f"eval_{comparison.metric['name']}", float(comparison.metric["scale"])
    history = [r for r in record.history if r.get("macs_fraction")]
    if not history:
        return []
    spent = accumulate(_mean_fraction(r) * r["samples"] for r in history)
    whole = comparison.epochs * history[0]["samples"]
    return [
        (100 * done / whole, scale * r[name])
        for done, r in zip(spent, history, strict=True)
        if isinstance(r.get(name), (int, float))
    ]


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
