"""What people see while a run goes on: a live table on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TextIO, runtime_checkable

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from apical.training._run_folder import plain
from apical.training._task import Classification, Metric

Record = Mapping[str, Any]
_FEW = 3  # groups that are shown one by one
_LINE_S = 30.0  # between two lines about a running epoch where the output is no terminal
_DRAW_S = 0.2  # between two pictures on a terminal
ProgressMode = Literal["auto", "table", "plain", "json", "quiet"]


class Progress(Protocol):
    """Receives what happens. `start` and `stop` are called once, `stop` even when the run fails."""

    def start(self, epochs: int, run: str, metric: Metric) -> None:
        """A run of so many epochs begins; `run` is its folder, `metric` what it is judged by."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Step `step` of `steps` of epoch `epoch` (both from 1) is done. Called often."""

    def epoch(self, record: Record) -> None:
        """An epoch is done."""

    def message(self, text: str) -> None:
        """Something that people should know."""

    def summary(self, summary: Record) -> None:
        """The run is done."""

    def stop(self) -> None:
        """Nothing more will come."""


@runtime_checkable
class PacedProgress(Progress, Protocol):
    """A display that also shows how fast a run is."""

    def pace(self, samples: int, unit: str) -> None:
        """Each step from now on computes so many examples in all processes; `unit` is what they are: ``"images"``."""


def make_progress(mode: ProgressMode = "auto", stream: TextIO | None = None) -> Progress:
    """The display for a mode; `"auto"` is a live table on a terminal and plain lines elsewhere.

    Args:
        mode: `"auto"`, `"table"`, `"plain"`, `"json"` (one object per line) or `"quiet"` (messages only, on stderr).
        stream: where to write; standard output if None.

    Example:
        >>> progress = make_progress("json", sys.stdout)
        >>> progress.epoch({"epoch": 1, "eval_accuracy": 0.5})
        {"event": "epoch", "epoch": 1, "eval_accuracy": 0.5}
    """
    out = sys.stdout if stream is None else stream
    if mode == "auto":
        mode = "table" if out.isatty() else "plain"
    if mode == "table":
        return TableProgress(Console(file=out))
    if mode == "plain":
        return PlainProgress(out)
    return JsonProgress(out) if mode == "json" else QuietProgress(sys.stderr)


def summarise_widths(widths: Mapping[str, int] | None) -> str:
    """Widths of all groups in a few characters.

    Each in the order of the forward pass if there are few; else how many units in all, and the narrowest and widest.

    Example:
        >>> summarise_widths({"embedding": 650, "layers.0": 373, "layers.1": 315})
        '650/373/315'
        >>> summarise_widths({f"conv{n}": 8 * n for n in range(1, 6)})
        '120 (8-40)'
        >>> summarise_widths(None)
        '-'
    """
    if not widths:
        return "-"
    values = list(widths.values())
    if len(values) <= _FEW:
        return "/".join(map(str, values))
    return f"{sum(values)} ({min(values)}-{max(values)})"


def _number(name: str, pattern: str, scale: float = 1.0) -> Callable[[Record], str]:
    def cell(record: Record) -> str:
        value = record.get(name)
        return "-" if value is None else pattern.format(value * scale)

    return cell


def _seconds(record: Record) -> str:
    parts = ("step_seconds", "data_seconds", "eval_seconds", "restructure_seconds")
    return f"{sum(record.get(part) or 0.0 for part in parts):.1f}"


Column = tuple[str, int, Callable[[Record], str]]
"""Heading, width in characters and content."""


def columns(metric: Metric) -> tuple[Column, ...]:
    """The columns of the table and of the plain lines."""
    judged = _number(f"eval_{metric.name}", metric.pattern, metric.scale)
    return (
        ("epoch", 5, _number("epoch", "{:.0f}")),
        ("widths", 14, lambda record: summarise_widths(record.get("widths"))),
        ("blocks", 6, _number("blocks", "{:.0f}")),
        ("MACs %", 6, _number("macs_fraction", "{:.1f}", 100)),
        ("params %", 8, _number("params_fraction", "{:.1f}", 100)),
        ("lr", 8, _number("lr", "{:.2g}")),
        ("loss", 7, _number("train_loss", "{:.4f}")),
        (metric.heading, max(6, len(metric.heading)), judged),
        ("seconds", 7, _seconds),
    )


def _closing_line(summary: Record, metric: Metric) -> str:
    value = summary.get(f"test_{metric.name}")
    split = summary.get("test_split") or "test"
    parts = [] if value is None else [f"{split} {metric.name} {metric.text(value)}"]
    for name, label, pattern, scale in (
        ("macs_fraction", "MACs", "{:.1f} %", 100),
        ("params_fraction", "params", "{:.1f} %", 100),
        ("latency_fraction", "predicted latency", "{:.1f} %", 100),
        ("train_macs_fraction", "training MACs", "{:.1f} % of dense", 100),
        ("train_seconds", "training", "{:.1f} s", 1),
    ):
        if summary.get(name) is not None:
            parts.append(f"{label} {pattern.format(summary[name] * scale)}")
    return "done: " + ", ".join(parts)


class _Epoch:
    """The running epoch: its bar, and how fast it goes, which rich estimates from the last half minute."""

    def __init__(self) -> None:
        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn("step"),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=Console(file=io.StringIO()),  # it is drawn as a part of something else
            get_time=lambda: time.monotonic(),
        )
        self._task = self.bar.add_task("", visible=False, pace="")
        self._epoch = 0
        self._samples = 0
        self._unit = "samples"

    def pace(self, samples: int, unit: str) -> None:
        """How many examples a step computes."""
        self._samples = samples
        self._unit = unit

    def step(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        """So many steps of an epoch are done."""
        name = f"epoch {epoch}/{epochs}"
        if epoch != self._epoch:
            self._epoch = epoch
            self.bar.reset(self._task, total=steps, completed=step, description=name, visible=True, pace="")
        else:
            self.bar.update(self._task, completed=step)
        self.bar.update(self._task, pace="evaluating" if step == steps else self._pace())

    def end(self) -> None:
        """The bar disappears."""
        self.bar.update(self._task, visible=False)

    def text(self) -> str:
        """The same in a line."""
        (task,) = self.bar.tasks
        pace = task.fields["pace"]
        return f"{task.description}: step {task.completed:.0f}/{task.total:.0f}{', ' * bool(pace)}{pace}"

    def _pace(self) -> str:
        (task,) = self.bar.tasks
        if not task.speed or task.time_remaining is None:
            return ""
        rate = f", {self._samples * task.speed:,.0f} {self._unit}/s" if self._samples else ""
        return f"{duration(task.time_remaining)} left{rate}"


def duration(seconds: float) -> str:
    """Seconds in words: ``"2 h 05 min"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class SilentProgress:
    """Nothing, for all processes but the first; what other displays leave out, they inherit."""

    def start(self, epochs: int, run: str, metric: Metric) -> None:
        """Say nothing."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Say nothing."""

    def epoch(self, record: Record) -> None:
        """Say nothing."""

    def message(self, text: str) -> None:
        """Say nothing."""

    def summary(self, summary: Record) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Nothing to end."""


class QuietProgress(SilentProgress):
    """Messages only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def message(self, text: str) -> None:
        self._stream.write(text + "\n")


class PlainProgress(SilentProgress):
    """A line per epoch under one heading, for logs; in long epochs also a line every half minute."""

    def __init__(self, stream: TextIO, every_s: float = _LINE_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._metric = Classification.metrics[0]
        self._epochs = 0
        self._running = _Epoch()
        self._written = time.monotonic()

    def _line(self, text: str) -> None:
        self._stream.write(text.rstrip() + "\n")
        self._stream.flush()
        self._written = time.monotonic()

    def pace(self, samples: int, unit: str) -> None:
        self._running.pace(samples, unit)

    def start(self, epochs: int, run: str, metric: Metric) -> None:
        self._metric = metric
        self._epochs = epochs
        self._line(f"{run}: {epochs} epoch{'s' * (epochs != 1)}")
        self._line("  ".join(name.rjust(width) for name, width, _ in columns(metric)))

    def step(self, epoch: int, step: int, steps: int) -> None:
        self._running.step(epoch, self._epochs, step, steps)
        if step < steps and time.monotonic() - self._written >= self._every_s:
            self._line(self._running.text())

    def epoch(self, record: Record) -> None:
        self._line("  ".join(cell(record).rjust(width) for _, width, cell in columns(self._metric)))

    def message(self, text: str) -> None:
        self._line(text)

    def summary(self, summary: Record) -> None:
        self._line(_closing_line(summary, self._metric))


class JsonProgress(SilentProgress):
    """An object per line: `{"event": "start" | "epoch" | "message" | "summary", ...}`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _event(self, event: str, content: Record) -> None:
        self._stream.write(json.dumps({"event": event, **plain(content)}, allow_nan=False) + "\n")
        self._stream.flush()

    def start(self, epochs: int, run: str, metric: Metric) -> None:
        self._event("start", {"epochs": epochs, "run": run, "metric": metric.name})

    def epoch(self, record: Record) -> None:
        self._event("epoch", record)

    def message(self, text: str) -> None:
        self._event("message", {"text": text})

    def summary(self, summary: Record) -> None:
        self._event("summary", summary)


class TableProgress:
    """A table that grows by a row per epoch, over a line that says where the running epoch is.

    While the run goes on, the table shows the epochs that fit on the screen; at the end it shows all.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._records: list[Record] = []
        self._metric = Classification.metrics[0]
        self._epochs = 0
        self._title = ""
        self._now = ""
        self._drawn = 0.0
        self._running = _Epoch()
        self._live: Live | None = None

    def pace(self, samples: int, unit: str) -> None:
        self._running.pace(samples, unit)

    def start(self, epochs: int, run: str, metric: Metric) -> None:
        self._epochs = epochs
        self._title = run
        self._metric = metric
        self._live = Live(self._render(), console=self._console, auto_refresh=False)
        self._live.start()

    def step(self, epoch: int, step: int, steps: int) -> None:
        self._running.step(epoch, self._epochs, step, steps)
        if time.monotonic() - self._drawn < _DRAW_S and step < steps:
            return
        self._drawn = time.monotonic()
        self._draw()

    def epoch(self, record: Record) -> None:
        self._records.append(record)
        self._running.end()
        self._draw()

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def summary(self, summary: Record) -> None:
        self._now = _closing_line(summary, self._metric)
        self._draw()

    def stop(self) -> None:
        if self._live is not None:
            self._live.vertical_overflow = "visible"
            self._live.update(self._render(everything=True), refresh=True)
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)

    def _render(self, everything: bool = False) -> Group:
        table = Table(title=self._title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for name, _, _ in columns(self._metric):
            table.add_column(name, justify="right", no_wrap=True)
        fitting = max(3, self._console.height - 5)
        for record in self._records if everything else self._records[-fitting:]:
            table.add_row(*(cell(record) for _, _, cell in columns(self._metric)))
        return Group(table, Text(self._now, style="dim") if self._now else self._running.bar)
