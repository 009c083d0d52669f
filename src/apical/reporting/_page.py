"""The report page of a run."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from apical._reading import read_text, regular
from apical.errors import DataError
from apical.reporting._growth_picture import SCRIPT, frames, growth_figure, widths_table
from apical.reporting._read import RunRecord, metric_label, read_run, showing
from apical.reporting._svg import Series, bar_chart, evenly, heat_strip, line_chart
from apical.reporting._tables import folded, page, table, text, write_page
from apical.reporting._worth import worth_section


def write_report(run: str | Path | RunRecord, out: str | Path | None = None) -> Path:
    """Write the report of a run; it may still be running.

    Args:
        run: its folder, or what is known of it.
        out: the file; ``report.html`` in the folder if None.

    Returns:
        The file.

    Raises:
        DataError: the folder does not hold a run, a file is damaged, or the report cannot be written.
    """
    record = run if isinstance(run, RunRecord) else read_run(run)
    with showing(record):
        rendered = render_report(record)
    return write_page(Path(out) if out is not None else record.folder / "report.html", rendered)


def render_report(run: RunRecord) -> str:
    """The page of a run: one HTML document that fetches nothing."""
    title = run_title(run)
    body = "".join(
        (
            f"<h1>{escape(title)}</h1>",
            _headline(run),
            _state(run),
            _network(run),
            worth_section(run),
            bits_section(run),
            _saved(run),
            _figures(run),
            picture_rows(run.folder),
            _charts(run),
            _widths(run),
            _layers(run),
            _frozen(run),
            _repeat(run),
            _settings(run),
        )
    )
    return page(title, body, SCRIPT)


def run_title(run: RunRecord) -> str:
    """Recipe, method and budget."""
    return " · ".join(text(run.config.get(name)) for name in ("recipe", "method", "budget") if run.config.get(name))


def _state(run: RunRecord) -> str:
    epochs = (run.config.get("training") or {}).get("epochs")
    if run.summary:
        device = run.summary.get("device")
        return f"<p>{len(run.history)} epochs{f', on {escape(text(device))}' if device else ''}.</p>"
    return f'<p class="warn">Not finished: {len(run.history)} of {escape(text(epochs))} epochs are done.</p>'


def _headline(run: RunRecord) -> str:
    """The result in one number and a sentence."""
    name = f"test_{run.metric['name']}"
    source, judged = run.summary, f"{run.summary.get('test_split') or 'test'} {run.metric_label}"
    if not isinstance(source.get(name), (int, float)):
        source = run.history[-1] if run.history else {}
        name = f"eval_{run.metric['name']}"
        judged = f"{run.evaluated_on} {run.metric_label}{'' if run.summary else ' so far'}"
    if not isinstance(source.get(name), (int, float)):
        return ""
    shares = [
        f"{100 * source[key]:.1f} % of the full model's {what}"
        for key, what in (("macs_fraction", "MACs"), ("params_fraction", "parameters"), ("latency_fraction", "latency"))
        if isinstance(source.get(key), (int, float))
    ]
    with_what = f", with {' and '.join(shares)}" if shares else ""
    return f'<p class="lead"><b>{run.judged(source[name])}</b> {escape(judged)}{with_what}</p>'


_FIGURES: tuple[tuple[str, str, str], ...] = (
    ("train_seconds", "seconds of training", "{:,.1f}"),
    ("peak_memory_mib", "MiB of memory at most", "{:,.0f}"),
    ("num_params", "parameters", "{:,.0f}"),
    ("macs", "MACs of an example", "{:,.0f}"),
    ("latency_ms", "ms of a call, predicted", "{:,.3g}"),
)


def _figures(run: RunRecord) -> str:
    last = run.history[-1] if run.history else {}
    peaks = [value for _, value in run.series("peak_memory_mib")]
    source = {**({"peak_memory_mib": max(peaks)} if peaks else {}), **(run.summary or last)}
    tiles = [
        f"<div><b>{pattern.format(source[name])}</b><span>{label}</span></div>"
        for name, label, pattern in _FIGURES
        if isinstance(source.get(name), (int, float))
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _network(run: RunRecord) -> str:
    shown = frames(run)
    if shown is None:
        return ""
    return (
        "<h2>What was grown</h2><p>A bar for each group of channels that belong together, from the input to the "
        "output: its outline is the full model, its filling the share of it that exists.</p>"
        f"{growth_figure(shown)}"
    )


def _saved(run: RunRecord) -> str:
    """Training cost against the two yardsticks."""
    own, ratio = run.summary.get("train_macs_fraction"), run.summary.get("train_macs_vs_final")
    if not (isinstance(own, float) and isinstance(ratio, float) and ratio > 0):
        return ""
    final = own / ratio
    bars = [
        ("the full model, as many epochs", 100.0, False),
        ("this run", 100 * own, True),
        ("its final network from the start, as many epochs", 100 * final, False),
    ]
    said = (
        f"Training took {_against(own)} multiply-adds (MACs) than training the full model for as many epochs would, "
        f"and {_against(ratio)} than training the final network for as many epochs would, had it been known."
    )
    chart = bar_chart("Training MACs, %", bars)
    return f'<h2>What training cost</h2><p>{said}</p><div class="wide">{chart}</div>'


def _against(share: float) -> str:
    return f"{100 * abs(1 - share):.1f} % {'more' if share > 1 else 'fewer'}"


def _charts(run: RunRecord) -> str:
    seen = run.evaluated_on.replace("-", " ")
    loss = [Series(seen, run.series("eval_loss"), 1), Series("training", run.series("train_loss"), 2)]
    cost = [
        Series("MACs", run.series("macs_fraction", 100), 3),
        Series("parameters", run.series("params_fraction", 100), 4),
    ]
    seconds = [
        Series("steps", run.series("step_seconds"), 1),
        Series("data", run.series("data_seconds"), 2),
        Series("restructuring", run.series("restructure_seconds"), 3),
    ]
    charts = (
        *(_metric_chart(run, metric, seen) for metric in run.metrics if metric["name"] != "loss"),
        line_chart("Loss", loss),
        line_chart("Cost, % of the full model", cost, " %"),
        line_chart("Seconds of an epoch", seconds, " s"),
        line_chart("Peak memory, MiB", [Series("peak", run.series("peak_memory_mib"), 4)], " MiB"),
        line_chart("Blocks", [Series("present", run.series("blocks"), 3)], whole=True) if _has_blocks(run) else "",
    )
    drawn = "".join(charts)
    return f'<h2>Training</h2><div class="charts">{drawn}</div>' if drawn else ""


def _metric_chart(run: RunRecord, metric: Mapping[str, Any], seen: str) -> str:
    name, label, scale, unit = metric["name"], metric_label(metric), metric["scale"], metric["unit"]
    series = [
        Series(seen, run.series(f"eval_{name}", scale), 1),
        Series("training", run.series(f"train_{name}", scale), 2),
    ]
    heading = f"{label[:1].upper() if label == name else label[:1]}{label[1:]}{',' if unit else ''}{unit}"
    return line_chart(heading, series, unit, from_zero=False)


def _has_blocks(run: RunRecord) -> bool:
    return bool(run.template.get("blocks") or any(record.get("blocks") for record in run.history))


def _widths(run: RunRecord) -> str:
    shown = frames(run)
    if shown is None:
        return ""
    full = run.template.get("widths") or {}
    head, rows = widths_table(shown)
    skipped = run.history[-1].get("skipped")
    left_out = f"<p>Blocks that were left out: {escape(', '.join(skipped))}.</p>" if skipped else ""
    return (
        "<h2>Widths by epoch</h2><p>A row for each group of channels, from the input down; full colour is the full "
        f"width, empty is absent.</p><div class='scroll' tabindex='0'>"
        f"{heat_strip(run.widths(), full)}</div>"
        f"{folded('the widths as a table', table(head, rows, 'widths by epoch'))}{left_out}"
    )


def _layers(run: RunRecord) -> str:
    """The final network beside the template."""
    rows = []
    for layer in run.template.get("layers") or []:
        (before, after), (macs, macs_after) = layer["params"], layer["macs"]
        final = "gone" if layer["final"] is None else _shapes(layer["final"])
        share = f"{100 * after / before:.0f} %" if before else ""
        rows.append(
            (layer["name"], layer["type"], _shapes(layer["full"]), final, before, after, share, macs, macs_after)
        )
    if not rows:
        return ""
    head = ("layer", "type", "full model", "final", "parameters", "final", "share", "MACs", "final")
    return (
        "<h2>The final network, layer by layer</h2><p>Shapes of the weights in the full model and in the final "
        f"network.</p>{table(head, rows, 'the final network beside the full model')}"
    )


def _shapes(shapes: Iterable[Iterable[int]]) -> str:
    return ", ".join("×".join(map(str, shape)) for shape in shapes)


def _frozen(run: RunRecord) -> str:
    rows = [(f.get("name"), f.get("size"), f.get("reason")) for f in run.template.get("frozen") or []]
    if not rows:
        return ""
    shown = table(("part", "channels", "reason"), rows, "what could not grow")
    return f"<h2>What could not grow, and why</h2>{shown}"


def _repeat(run: RunRecord) -> str:
    if "method" not in run.config:  # a loop of the user's own, which no command repeats
        return ""
    command = run.summary.get("command") or f"apical train --resume {shlex.quote(str(run.folder))}"
    heading = "Repeat it" if run.summary else "Go on with it"
    return f'<h2>{heading}</h2><pre tabindex="0">{escape(str(command))}</pre>'


def _settings(run: RunRecord) -> str:
    versions = run.summary.get("versions") or run.config.get("versions") or {}
    made = ", ".join(f"{name} {version}" for name, version in versions.items())
    shown = folded("all settings", table(("setting", "value"), run.settings(), "settings"))
    return f"<h2>Settings{' and versions' if made else ''}</h2><p>{escape(made)}</p>{shown}"


COLUMNS = 8  # epochs that the table shows


def bits_section(run: RunRecord) -> str:
    """A row for each quantised layer; empty if no bits were grown."""
    names = list(dict.fromkeys(name for record in run.history for name in record.get("bits") or {}))
    if not names:
        return ""
    told = {name: [(record.get("bits") or {}).get(name) for record in run.history] for name in names}
    most = max(bits for values in told.values() for bits in values if bits is not None)
    drawn = {name: [round(bits or 0) for bits in values] for name, values in told.items()}
    chosen = evenly(range(len(run.history)), COLUMNS)
    rows = [(name, *("" if told[name][i] is None else f"{told[name][i]:g}" for i in chosen)) for name in names]
    head = ("weight", *(f"epoch {i + 1}" for i in chosen))
    strip = heat_strip(drawn, dict.fromkeys(names, round(most)))
    numbers = folded("the bits as a table", table(head, rows, "bits by epoch"))
    return (
        f"<h2>Bits by epoch</h2><p>A row for each quantised weight, from the input down; full colour is {most:g} bits, "
        "empty is not quantised yet. Between whole numbers a plane is fading in or out.</p>"
        f"<div class='scroll' tabindex='0'>{strip}</div>{numbers}"
    )


_MOST_BYTES = 4 * 2**20  # of one picture: the page is one file
_PNG = b"\x89PNG\r\n\x1a\n"


def picture_rows(run: Path) -> str:
    """The pictures that ``pictures/pictures.json`` in a run folder lists; empty text without the file.

    The file has ``title``, ``note``, ``legend`` (``name`` and ``colour``) and ``rows``; a row has ``name``, ``note``,
    ``files`` (a PNG beside the file by column) and ``alt`` (what is to be seen, in words, by column).
    """
    path = run / "pictures" / "pictures.json"
    if not path.exists():
        return ""
    try:
        content = json.loads(read_text(path))
        rows = "".join(_row(row, path.parent) for row in content["rows"])
        legend = "".join(_key(key) for key in content["legend"])
        title, note = escape(str(content["title"])), escape(str(content["note"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} cannot be shown: {type(error).__name__}: {error}") from error
    return f'<h2>{title}</h2><p>{note}</p><ul class="legend">{legend}</ul>{rows}'


def _row(row: Mapping[str, Any], folder: Path) -> str:
    images = "".join(
        f'<div><img src="{_data_uri(folder, str(name))}" alt="{escape(str(row["alt"][column]), quote=True)}">'
        f"<i>{escape(str(column))}</i></div>"
        for column, name in row["files"].items()
    )
    caption = f"{escape(str(row['name']))} <span>{escape(str(row['note']))}</span>"
    return f'<figure class="trio"><figcaption>{caption}</figcaption>{images}</figure>'


def _key(key: Mapping[str, Any]) -> str:
    colour = str(key["colour"])
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
        raise ValueError(f"the colour {colour!r} is not like #12ab34")
    # SVG, since background colours are not printed.
    return (
        f'<li><svg viewBox="0 0 14 14" aria-hidden="true"><rect width="14" height="14" rx="3" fill="{colour}" '
        f'stroke="#808080"/></svg>{escape(str(key["name"]))}</li>'
    )


def _data_uri(folder: Path, name: str) -> str:
    path = folder / name
    if Path(name).name != name or regular(path).stat().st_size > _MOST_BYTES:
        raise ValueError(f"{name!r} is no file beside it of at most {_MOST_BYTES >> 20} MiB")
    content = path.read_bytes()
    if not content.startswith(_PNG):
        raise ValueError(f"{name!r} is no PNG")
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
