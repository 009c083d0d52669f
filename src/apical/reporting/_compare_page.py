"""A comparison as JSON, as a Markdown table, and as a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from apical.reporting._comparison import Comparison, Difference, MeanStd, MethodRow, cost_curve, rows
from apical.reporting._read import showing
from apical.reporting._style import COLOURS
from apical.reporting._svg import Series, line_chart
from apical.reporting._tables import page, write_page


def write_comparison(comparison: Comparison, folder: str | Path) -> tuple[Path, Path, Path]:
    """Write compare.json, compare.md and compare.html.

    Returns:
        The three files.

    Raises:
        DataError: one cannot be written, or a run's folder holds values that apical does not write.
    """
    with showing(*(run.record for run in comparison.runs)):
        lines = rows(comparison)
        content = {
            "compare.json": json.dumps(_plain(comparison, lines), indent=2, allow_nan=False) + "\n",
            "compare.md": render_markdown(comparison, lines),
            "compare.html": render_page(comparison, lines),
        }
    json_file, markdown, html = (write_page(Path(folder) / name, text) for name, text in content.items())
    return json_file, markdown, html


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
        *(f"latency, batch {batch}: ms" for batch in comparison.dense_latency),
        *(f"batch {batch}: of dense" for batch in comparison.dense_latency),
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
        *(f"{row.latency_ms[b]:.3g}" if b in row.latency_ms else "" for b in comparison.dense_latency),
        *(f"{row.latency_vs_dense[b]:.2f}x" if b in row.latency_vs_dense else "" for b in comparison.dense_latency),
    ]


def method_table(comparison: Comparison, lines: Sequence[MethodRow]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, without the columns of which nothing is known, such as latencies that were not measured."""
    head, filled = headings(comparison), [cells(comparison, row) for row in lines]
    known = [i for i in range(len(head)) if any(texts[i] for texts in filled)]
    return [head[i] for i in known], [[texts[i] for i in known] for texts in filled]


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


_OPEN = ("within the spread", "one seed")  # what the numbers do not decide; which mean is higher is said


def verdict(comparison: Comparison, lines: Sequence[MethodRow]) -> str:
    """The result in a sentence: where the reference is ahead, level and behind."""
    pattern, scale = comparison.metric["pattern"], float(comparison.metric["scale"])
    found: dict[str, list[str]] = {}
    for row in lines:
        if row.against is None or row.against.verdict == "reference":
            continue
        far = pattern.format(scale * abs(row.against.mean))
        spread = "" if row.against.spread is None else f" ± {pattern.format(scale * row.against.spread)}"
        if row.against.verdict in _OPEN:  # whose mean is higher is said by name
            told = f"{row.method} {far}{spread} {'higher' if row.against.mean > 0 else 'lower'}"
            told = f"means equal{spread}" if far == pattern.format(0) else told
        else:
            told = f"by {far}{spread}"
        found.setdefault(row.against.verdict, []).append(f"{row.method} ({told})")
    words = {
        "worse": "is ahead of",
        "within the spread": "cannot be told apart from",
        "better": "is behind",
        "one seed": "differs from",
    }
    said = [f"{words[name]} {', '.join(found[name])}" for name in words if name in found]
    if not said:
        return ""
    once = "; of one seed nothing can be said" if "one seed" in found else ""
    seeds, more = min(len(row.seeds) for row in lines), ""
    if seeds < 5 and "within the spread" in found:
        more = ". Telling them apart takes five seeds or more"
    elif seeds < 3 and "one seed" not in found:
        more = ". Of two seeds that is a hint; a claim takes three or more"
    return f"{comparison.reference} {', '.join(said)}{once}{more}."


def best(comparison: Comparison, lines: Sequence[MethodRow]) -> str | None:
    """The method with the best mean of the metric on the test data."""
    tested = [row for row in lines if row.test is not None]
    sign = 1 if comparison.metric["higher_is_better"] else -1
    return max(tested, key=lambda row: sign * row.test.mean if row.test else 0.0).method if len(tested) > 1 else None


def notes(comparison: Comparison) -> list[str]:
    """What a reader has to know about the numbers."""
    facts = comparison.facts
    latency = "Latency: medians of forward passes of all final networks in one process, taken in turns."
    read = (
        "Test data are read once, at the end of each run; curves use the data that are evaluated on after each epoch."
    )
    if any(run.record.evaluated_on == "test" for run in comparison.runs):
        read = (
            "No images were held out of training: test data are evaluated on after each epoch, too, and curves use "
            "them. Choose no settings by this page; validation_fraction=0.1 holds out a tenth to choose by."
        )
    return [
        f"{comparison.epochs} epochs; means ± sample standard deviation over seeds. {read}",
        f"A difference to {comparison.reference} that is no larger than √(σ² + σ'²) is marked as within the spread; "
        "this is no significance test.",
        "Training MACs are three times those of the forward passes, against the full model and against the method's "
        f"own final network, both for {comparison.epochs} epochs.",
        *([latency] if comparison.dense_latency else []),
        f"Seconds hold for this machine: {facts.get('device')}, {facts.get('threads')} thread(s).",
    ]


def render_markdown(comparison: Comparison, lines: Sequence[MethodRow]) -> str:
    """The table, with what has to be known about it."""
    head, filled = method_table(comparison, lines)
    table_lines = [head, ["---"] * len(head), *filled]
    body = "\n".join(f"| {' | '.join(line)} |" for line in table_lines)
    text = "\n".join(f"- {note}" for note in notes(comparison))
    said = verdict(comparison, lines)
    command = f"```console\n{comparison.facts.get('command')}\n```\n"
    return "\n\n".join(part for part in (f"# {comparison.title}", said, body, text, command) if part)


def render_page(comparison: Comparison, lines: Sequence[MethodRow]) -> str:
    """One HTML document without scripts, fonts or images from elsewhere."""
    names, filled = method_table(comparison, lines)
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    ahead = best(comparison, lines)
    body = "".join(_line(texts, row.method == ahead) for row, texts in zip(lines, filled, strict=True))
    shown = f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    text = "".join(f"<p>{escape(note)}</p>" for note in notes(comparison))
    runs = "".join(
        f"<li><a href='{escape(f'{run.record.folder.name}/report.html', quote=True)}'>{escape(run.method)}, seed "
        f"{run.seed}</a></li>"
        for run in comparison.runs
    )
    command = escape(str(comparison.facts.get("command")))
    versions = ", ".join(f"{name} {version}" for name, version in (comparison.facts.get("versions") or {}).items())
    body = (
        f"<h1>{escape(comparison.title)}</h1>{_said(comparison, lines)}{shown}{text}{_charts(comparison, lines)}"
        f"<h2>Runs</h2><ul>{runs}</ul><h2>Repeat it</h2><pre tabindex='0'>{command}</pre><p>{escape(versions)}</p>"
    )
    return page(comparison.title, body)


def _said(comparison: Comparison, lines: Sequence[MethodRow]) -> str:
    said = verdict(comparison, lines)
    return f'<p class="lead">{escape(said)}</p>' if said else ""


def _line(texts: Sequence[str], best: bool) -> str:
    """A line of the table; the third cell, the metric, stands out where it is the best."""
    first, *rest = texts
    shown = [f"<b>{escape(text)}</b>" if best and place == 1 else escape(text) for place, text in enumerate(rest)]
    return f"<tr><td>{escape(first)}</td>{''.join(f'<td class=num>{text}</td>' for text in shown)}</tr>"


def _charts(comparison: Comparison, lines: Sequence[MethodRow]) -> str:
    """The metric against what it costs: training MACs along the way and at the end, and seconds of a forward pass."""
    metric, unit = comparison.metric, comparison.metric["unit"]
    scale, title = float(metric["scale"]), f"{metric['name']}{unit}"
    colours = {row.method: 1 + number % COLOURS for number, row in enumerate(lines)}
    curves = [Series(row.method, cost_curve(comparison, row.method), colours[row.method]) for row in lines]
    tested = [(row, row.test) for row in lines if row.test is not None]
    errors = {row.method: [scale * test.std] if test.std is not None else [] for row, test in tested}
    noise = 8 * max((e for found in errors.values() for e in found), default=0.0)  # a spread is an eighth of the axis

    def ends(cost: Callable[[MethodRow], float | None]) -> list[Series]:
        return [
            Series(row.method, [(x, scale * test.mean)], colours[row.method], errors[row.method])
            for row, test in tested
            if (x := cost(row)) is not None
        ]

    of_dense = "{:.1f} % of dense training"
    training = ends(lambda row: None if row.train_macs_vs_dense is None else 100 * row.train_macs_vs_dense.mean)
    along = line_chart(f"Evaluation {title} against training MACs, % of dense training", curves, unit, False, of_dense)
    charts = [along, line_chart(f"Test {title} against training MACs, % of dense training", training, unit, False,
                                of_dense, noise)]  # fmt: skip
    for batch in comparison.dense_latency:
        measured = ends(lambda row, batch=batch: 100 * row.latency_vs_dense[batch]  # type: ignore[misc]
                        if batch in row.latency_vs_dense else None)  # fmt: skip
        heading = f"Test {title} against latency at batch {batch}, % of the full model's"
        charts.append(line_chart(heading, measured, unit, False, "{:.0f} % of the full model's latency", noise))
    drawn = "".join(charts)
    return f'<h2>Against what it costs</h2><div class="charts">{drawn}</div>' if drawn else ""


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
