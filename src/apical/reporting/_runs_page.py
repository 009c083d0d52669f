"""Several runs beside each other, whatever they differ in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from apical.errors import DataError
from apical.reporting._growth_picture import frames, silhouette
from apical.reporting._page import run_title
from apical.reporting._read import RunRecord, read_run, showing
from apical.reporting._svg import Series, line_chart
from apical.reporting._tables import page, table, write_page

_COLOURS = 12


def write_runs_report(runs: Sequence[str | Path], out: str | Path) -> Path:
    """Write one page that compares runs: results, costs, curves, final networks, and the settings in which they differ.

    For means over seeds and a reference method use ``apical compare``; this page takes any runs that were judged alike.

    Args:
        runs: run folders, at least two; they may be unfinished.
        out: the file.

    Returns:
        The file.

    Raises:
        DataError: a folder does not hold a run, the runs are judged by different metrics, or the page cannot be
            written.
    """
    records = [read_run(folder) for folder in runs]
    if len(records) < 2:
        raise DataError(f"comparing takes at least two runs, got {len(records)}; for one, call write_report")
    with showing(*records):
        rendered = _checked(records, Path(out).parent)
    return write_page(Path(out), rendered)


def _checked(records: Sequence[RunRecord], folder: Path) -> str:
    """The page, if the runs can share one."""
    metrics = {str(record.folder): record.metric["name"] for record in records}
    if len(set(metrics.values())) > 1:
        told = ", ".join(f"{folder}: {name}" for folder, name in metrics.items())
        raise DataError(f"these runs are judged by different metrics and cannot share a table: {told}")
    return render_runs_report(records, folder)


def render_runs_report(runs: Sequence[RunRecord], folder: Path = Path()) -> str:
    """The page; links are relative to the folder that it lies in."""
    names = run_names(runs)
    title = f"{len(runs)} runs: {', '.join(names)}"
    body = (
        f"<h1>{escape(title)}</h1>{_results(runs, names)}"
        "<p>Training MACs are three times those of the forward passes. Seconds hold for the machine that they were "
        "measured on, and only runs that had it to themselves compare.</p>"
        f"{_curves(runs, names)}{_networks(runs, names)}{_differences(runs, names)}{_links(runs, names, folder)}"
    )
    return page(title, body)


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """A short name for each: its folder's, with as much of the path before it as tells them apart.

    Example:
        >>> run_names([RunRecord(Path(p), {}, []) for p in ("a/digits", "b/digits")])
        ['a/digits', 'b/digits']
    """
    parts = [record.folder.resolve().parts for record in runs]
    deepest = max(map(len, parts))
    for length in range(1, deepest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if max(Counter(names).values()) == 1:
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _results(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    metric = runs[0].metric
    judged = f"{metric['pattern']}{metric['unit']}"
    columns = (
        (f"test {runs[0].metric_label}", f"test_{metric['name']}", float(metric["scale"]), judged),
        ("MACs", "macs_fraction", 100.0, "{:.1f} %"),
        ("parameters", "params_fraction", 100.0, "{:.1f} %"),
        ("training MACs of dense", "train_macs_fraction", 100.0, "{:.1f} %"),
        ("of its final network", "train_macs_vs_final", 100.0, "{:.1f} %"),
        ("training s", "train_seconds", 1.0, "{:.1f}"),
    )
    rows = []
    for name, run in zip(names, runs, strict=True):
        state = "finished" if run.summary else f"{len(run.history)} of {run.epochs} epochs"
        source = run.summary or (run.history[-1] if run.history else {})
        rows.append(
            (name, run_title(run), state, *(_number(source.get(key), scale, p) for _, key, scale, p in columns))
        )
    return table(("run", "recipe, method, budget", "state", *(c[0] for c in columns)), rows, "results")


def _number(value: Any, scale: float, pattern: str) -> str:
    return pattern.format(scale * value) if isinstance(value, (int, float)) else ""


def _curves(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    metric = runs[0].metric
    label, name = runs[0].metric_label, metric["name"]

    def series(key: str, scale: float = 1.0) -> list[Series]:
        return [
            Series(shown, run.series(key, scale), 1 + number % _COLOURS)
            for number, (shown, run) in enumerate(zip(names, runs, strict=True))
        ]

    drawn = "".join(
        (
            line_chart(f"Held-out {label}", series(f"eval_{name}", metric["scale"]), metric["unit"], from_zero=False),
            line_chart("Training loss", series("train_loss")),
            line_chart("MACs, % of the full model", series("macs_fraction", 100), " %"),
            line_chart("Seconds of the steps of an epoch", series("step_seconds"), " s"),
        )
    )
    return f'<h2>Training</h2><div class="charts">{drawn}</div>' if drawn else ""


def _networks(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    figures = []
    for name, run in zip(names, runs, strict=True):
        shown = frames(run)
        if shown is not None:
            told = f"{name}: {shown.texts[-1]}"
            figures.append(f"<figure><figcaption>{escape(told)}</figcaption>{silhouette(shown, told)}</figure>")
    note = "<p>Outlines are the full model, from the input (left) to the output.</p>"
    return f'<h2>The networks</h2>{note}<div class="nets">{"".join(figures)}</div>' if figures else ""


def _differences(runs: Sequence[RunRecord], names: Sequence[str]) -> str:
    """Only the settings that are not the same everywhere."""
    flat = [dict(run.settings()) for run in runs]
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if len({one.get(key) for one in flat}) > 1]
    if not keys:
        return "<h2>Settings</h2><p>All settings are the same.</p>"
    rows = [(key, *(one.get(key, "") for one in flat)) for key in keys]
    return f"<h2>Settings that differ</h2>{table(('setting', *names), rows, 'settings that differ')}"


def _links(runs: Sequence[RunRecord], names: Sequence[str], folder: Path) -> str:
    items = []
    for name, run in zip(names, runs, strict=True):
        report, command = run.folder / "report.html", run.summary.get("command")
        shown = escape(name)
        if report.is_file():
            target = Path(os.path.relpath(report.resolve(), folder.resolve())).as_posix()
            shown = f'<a href="{escape(target, quote=True)}">{shown}</a>'
        items.append(f"<li>{shown}{f'<pre tabindex=0>{escape(str(command))}</pre>' if command else ''}</li>")
    return f"<h2>Runs</h2><ul>{''.join(items)}</ul>"
