"""A comparison as JSON, as a Markdown table, and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from apical._atomic import atomic_file
from apical.errors import DataError
from apical.reporting._comparison import BATCHES, Comparison, MethodRow, cost_curve, rows
from apical.reporting._statistics import Difference, MeanStd
from apical.reporting._style import COLOURS, STYLE
from apical.reporting._svg import Series, line_chart


def write_comparison(comparison: Comparison, folder: str | Path) -> tuple[Path, Path, Path]:
    """Write compare.json, compare.md and compare.html.

    Returns:
        The three files.

    Raises:
        DataError: one cannot be written.
    """
    lines = rows(comparison)
    content = {
        "compare.json": json.dumps(_plain(comparison, lines), indent=2, allow_nan=False) + "\n",
        "compare.md": render_markdown(comparison, lines),
        "compare.html": render_page(comparison, lines),
    }
    paths = []
    for name, text in content.items():
        path = Path(folder) / name
        try:
            with atomic_file(path) as aside:
                aside.write_text(text, encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write {path}: {error}") from error
        paths.append(path)
    return paths[0], paths[1], paths[2]


def headings(comparison: Comparison) -> list[str]:
    """Of the table's columns."""
    metric = comparison.metric
    return [
        "method",
        "seeds",
        f"test {metric['name']}{metric['unit']}",
        f"against {comparison.reference}",
        "MACs %",
        "params %",
        "training MACs, % of dense",
        "% of final",
        "training s",
        *(f"latency, batch {batch}: ms" for batch in BATCHES),
        *(f"batch {batch}: of dense" for batch in BATCHES),
    ]


def cells(comparison: Comparison, row: MethodRow) -> list[str]:
    """A line of the table as text."""
    pattern, scale = comparison.metric["pattern"], float(comparison.metric["scale"])

    def per_cent(value: MeanStd | None) -> str:
        return "" if value is None else value.text("{:.1f}", 100)

    return [
        row.method,
        str(len(row.seeds)),
        "" if row.test is None else row.test.text(pattern, scale),
        "" if row.against is None else against(row.against, pattern, scale),
        per_cent(row.macs_fraction),
        per_cent(row.params_fraction),
        per_cent(row.train_macs_vs_dense),
        per_cent(row.train_macs_vs_final),
        "" if row.train_seconds is None else row.train_seconds.text("{:.1f}"),
        *(f"{row.latency_ms[b]:.3g}" if b in row.latency_ms else "" for b in BATCHES),
        *(f"{row.latency_vs_dense[b]:.2f}x" if b in row.latency_vs_dense else "" for b in BATCHES),
    ]


def against(found: Difference, pattern: str, scale: float) -> str:
    """A difference in words.

    Example:
        >>> against(Difference(0.012, 0.002, "better"), "{:.2f}", 100)
        '+1.20 (better)'
    """
    if found.verdict == "reference":
        return "reference"
    sign = "+" if found.mean >= 0 else "−"
    return f"{sign}{pattern.format(scale * abs(found.mean))} ({found.verdict})"


def notes(comparison: Comparison) -> list[str]:
    """What a reader has to know about the numbers."""
    facts = comparison.facts
    return [
        f"{comparison.epochs} epochs; means ± sample standard deviation over seeds. Test data are read once, at the "
        "end of each run; curves use the data that are evaluated on after each epoch.",
        f"A difference to {comparison.reference} that is no larger than √(σ² + σ'²) is marked as within the spread; "
        "this is no significance test.",
        "Training MACs are three times those of the forward passes, against the full model and against the method's "
        f"own final network, both for {comparison.epochs} epochs.",
        "Latency: medians of forward passes of all final networks in one process, taken in turns, on "
        f"{facts.get('device')}, {facts.get('threads')} thread(s). Seconds and milliseconds hold for this machine.",
    ]


def render_markdown(comparison: Comparison, lines: Sequence[MethodRow]) -> str:
    """The table, with what has to be known about it."""
    head = headings(comparison)
    table = [head, ["---"] * len(head), *(cells(comparison, row) for row in lines)]
    body = "\n".join(f"| {' | '.join(line)} |" for line in table)
    text = "\n".join(f"- {note}" for note in notes(comparison))
    return f"# {comparison.title}\n\n{body}\n\n{text}\n\n```console\n{comparison.facts.get('command')}\n```\n"


def render_page(comparison: Comparison, lines: Sequence[MethodRow]) -> str:
    """One HTML document without scripts, fonts or images from elsewhere."""
    head = "".join(f"<th>{escape(name)}</th>" for name in headings(comparison))
    body = "".join(_line(cells(comparison, row)) for row in lines)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    text = "".join(f"<p>{escape(note)}</p>" for note in notes(comparison))
    runs = "".join(
        f"<li><a href='{escape(f'{run.record.folder.name}/report.html', quote=True)}'>{escape(run.method)}, seed "
        f"{run.seed}</a></li>"
        for run in comparison.runs
    )
    versions = ", ".join(f"{name} {version}" for name, version in (comparison.facts.get("versions") or {}).items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>apical: {escape(comparison.title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(comparison.title)}</h1>{table}{text}{_charts(comparison, lines)}"
        f"<h2>Runs</h2><ul>{runs}</ul><h2>Repeat it</h2><pre>{escape(str(comparison.facts.get('command')))}</pre>"
        f"<p>{escape(versions)}</p></main></body></html>\n"
    )


def _line(texts: Sequence[str]) -> str:
    first, *rest = texts
    return f"<tr><td>{escape(first)}</td>{''.join(f'<td class=num>{escape(text)}</td>' for text in rest)}</tr>"


def _charts(comparison: Comparison, lines: Sequence[MethodRow]) -> str:
    """The metric against the training cost: along the way, and where every method ended."""
    metric = comparison.metric
    title = f"{metric['name']}{metric['unit']} against training MACs, % of dense training"
    curves = [
        Series(row.method, cost_curve(comparison, row.method), 1 + number % COLOURS) for number, row in enumerate(lines)
    ]
    ends = [
        Series(
            row.method,
            [(100 * row.train_macs_vs_dense.mean, float(metric["scale"]) * row.test.mean)],
            1 + number % COLOURS,
        )
        for number, row in enumerate(lines)
        if row.test is not None and row.train_macs_vs_dense is not None
    ]
    across = "{:.1f} % of dense training"
    drawn = line_chart(f"Evaluation {title}", curves, metric["unit"], from_zero=False, across=across)
    final = line_chart(f"Test {title}", ends, metric["unit"], from_zero=False, across=across)
    return f'<h2>What training costs</h2><div class="charts">{drawn}{final}</div>' if drawn or final else ""


def _plain(comparison: Comparison, lines: Sequence[MethodRow]) -> dict[str, Any]:
    return {
        "title": comparison.title,
        "epochs": comparison.epochs,
        "reference": comparison.reference,
        "metric": dict(comparison.metric),
        "methods": [asdict(row) for row in lines],
        "runs": [
            {
                "method": run.method,
                "seed": run.seed,
                "folder": run.record.folder.name,
                "latency": {str(batch): asdict(latency) for batch, latency in run.latency.items()},
                **{k: v for k, v in run.record.summary.items() if k not in ("template", "widths", "versions")},
            }
            for run in comparison.runs
        ],
        "dense_latency": {str(batch): asdict(latency) for batch, latency in comparison.dense_latency.items()},
        "curves": {method: cost_curve(comparison, method) for method in comparison.methods},
        **comparison.facts,
    }
