"""The report page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from apical.errors import DataError
from apical.reporting._pictures import picture_rows
from apical.reporting._read import RunRecord, read_run
from apical.reporting._style import STYLE
from apical.reporting._svg import Series, heat_strip, line_chart


def write_report(run: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run folder; it may still be running.

    Args:
        run: the folder.
        out: the file; ``report.html`` in the folder if None.

    Returns:
        The file.

    Raises:
        DataError: the folder does not hold a run, a file is damaged, or the report cannot be written.
    """
    record = read_run(run)
    path = Path(out) if out is not None else record.folder / "report.html"
    aside = path.with_name(f".{path.name}.tmp")
    try:
        aside.write_text(render_report(record), encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}") from error
    return path


def render_report(run: RunRecord) -> str:
    """The page of a run: one HTML document without scripts, fonts or images from elsewhere."""
    title = f"{_text(run.config.get('recipe'))} · {_text(run.config.get('method'))} · {_text(run.config.get('budget'))}"
    body = "".join(
        (
            f"<h1>{escape(title)}</h1>",
            _state(run),
            _figures(run),
            picture_rows(run.folder),
            _charts(run),
            _growth(run),
            _widths(run),
            _frozen(run),
            _repeat(run),
            _settings(run),
        )
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>apical: {escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _state(run: RunRecord) -> str:
    epochs = (run.config.get("training") or {}).get("epochs")
    if run.summary:
        return f"<p>{len(run.history)} epochs, on {escape(_text(run.summary.get('device')))}.</p>"
    return f'<p class="warn">Not finished: {len(run.history)} of {_text(epochs)} epochs are done.</p>'


_FIGURES: tuple[tuple[str, str, float, str], ...] = (
    ("macs_fraction", "MACs of the full model", 100, "{:.1f} %"),
    ("params_fraction", "parameters of the full model", 100, "{:.1f} %"),
    ("train_macs_fraction", "training MACs, against the full model", 100, "{:.1f} %"),
    ("train_macs_vs_final", "training MACs, against the final network", 100, "{:.1f} %"),
    ("train_seconds", "training", 1, "{:.1f} s"),
    ("num_params", "parameters", 1, "{:,.0f}"),
    ("macs", "MACs of an example", 1, "{:,.0f}"),
)


def _figures(run: RunRecord) -> str:
    source = run.summary or (run.history[-1] if run.history else {})
    name, pattern = run.metric["name"], f"{run.metric['pattern']}{run.metric['unit']}"
    judged = (f"test_{name}", f"test {run.metric_label}", run.metric["scale"], pattern)
    tiles = [
        f"<div><b>{pattern.format(scale * source[name])}</b><span>{label}</span></div>"
        for name, label, scale, pattern in (judged, *_FIGURES)
        if isinstance(source.get(name), (int, float))
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _charts(run: RunRecord) -> str:
    name, label, scale, unit = run.metric["name"], run.metric_label, run.metric["scale"], run.metric["unit"]
    charts = (
        line_chart(
            f"{label[:1].upper() if label == name else label[:1]}{label[1:]}{',' if unit else ''}{unit}",
            [
                Series("held out", run.series(f"eval_{name}", scale), 1),
                Series("training", run.series(f"train_{name}", scale), 2),
            ],
            unit,
            from_zero=False,
        ),
        line_chart(
            "Loss", [Series("held out", run.series("eval_loss"), 1), Series("training", run.series("train_loss"), 2)]
        ),
        line_chart(
            "Cost, % of the full model",
            [
                Series("MACs", run.series("macs_fraction", 100), 3),
                Series("parameters", run.series("params_fraction", 100), 4),
            ],
            " %",
        ),
        line_chart(
            "Seconds of an epoch",
            [
                Series("steps", run.series("step_seconds"), 1),
                Series("data", run.series("data_seconds"), 2),
                Series("restructuring", run.series("restructure_seconds"), 3),
            ],
            " s",
        ),
    )
    drawn = "".join(charts)
    return f'<h2>Training</h2><div class="charts">{drawn}</div>' if drawn else ""


def _growth(run: RunRecord) -> str:
    strip = heat_strip(run.widths(), _template(run).get("widths") or {})
    if not strip:
        return ""
    blocks = line_chart("Blocks", [Series("present", run.series("blocks"), 3)])
    return (
        "<h2>Widths by epoch</h2><p>A row for each group of channels, from the input down; full colour is the full "
        f"width, empty is absent.</p>{strip}<div class='charts'>{blocks}</div>"
    )


def _widths(run: RunRecord) -> str:
    full, roles, widths = _template(run).get("widths") or {}, _template(run).get("roles") or {}, run.widths()
    rows = [
        (name, roles.get(name, ""), most, values[-1] or "absent", f"{100 * values[-1] / most:.0f} %")
        for name, values in widths.items()
        if (most := full.get(name) or max(*values, 1))
    ]
    skipped = run.history[-1].get("skipped") if run.history else None
    text = f"<p>Blocks that were left out: {escape(', '.join(skipped))}.</p>" if skipped else ""
    table = _table(("group", "role", "full model", "final", "share"), rows)
    return f"<h2>The network</h2>{text}{table}" if rows else ""


def _frozen(run: RunRecord) -> str:
    rows = [(f.get("name"), f.get("size"), f.get("reason")) for f in _template(run).get("frozen") or []]
    return f"<h2>What could not grow</h2>{_table(('part', 'size', 'reason'), rows)}" if rows else ""


def _repeat(run: RunRecord) -> str:
    command = run.summary.get("command") or f"apical train --resume {run.folder.name}"
    heading = "Repeat it" if run.summary else "Go on with it"
    return f"<h2>{heading}</h2><pre>{escape(str(command))}</pre>"


def _settings(run: RunRecord) -> str:
    versions = run.summary.get("versions") or run.config.get("versions") or {}
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    rows = list(_flat({name: value for name, value in run.config.items() if name not in ("versions", "input")}))
    table = _table(("setting", "value"), rows)
    return f"<h2>Settings</h2><p>{escape(made)}</p><details><summary>all settings</summary>{table}</details>"


def _template(run: RunRecord) -> Mapping[str, Any]:
    template = run.summary.get("template")
    return template if isinstance(template, Mapping) else {}


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value, ensure_ascii=False)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else _text(value)
    right = isinstance(value, (int, float)) or text.endswith(" %")
    return f'<td class="num">{escape(text)}</td>' if right else f"<td>{escape(text)}</td>"


def _text(value: Any) -> str:
    return "" if value is None else str(value)
