"""What is written down about every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any, TypedDict

from apical._checks import shown
from apical.budget import LatencyTable
from apical.errors import ConfigError
from apical.reporting import RunRecord
from apical.resizing._selection import Selection
from apical.structure import Structure


class Changes(TypedDict):
    """What restructuring changed since the last record."""

    born: int
    returned: int
    died: int
    blocks_left: dict[str, float | None]
    restructure_seconds: float


class Predicted(TypedDict, total=False):
    """What the measured table of a latency budget says of the network; without such a budget there is nothing."""

    latency_ms: float
    latency_fraction: float  # of what it says of the full model


class EpochRecord(Changes, Predicted):
    """One epoch: the network that it trained (at its end), and what was restructured in it or after it.

    ``widths`` has the groups that are there, not those inside the blocks that are ``skipped``. ``mean_macs`` is the
    mean over the epoch's steps, where `Grower.end_step` was told of them. ``worth`` says why the network became what it
    is: what a unit of each group, and each block, was worth for its cost at the last restructuring, as the logarithm
    of its ratio to the mean of the widths; above 0 it grows, below 0 it shrinks. ``blocks_left`` has the worth of each
    block that left when it did, None where the method judges otherwise. What a block cost is the widths' to use, so
    that many of them may jump as it leaves.
    ``metrics`` is what `Grower.end_epoch` was told. ``bits`` are those of quantised weights by name.
    """

    epoch: int
    macs: int
    mean_macs: float
    macs_fraction: float
    num_params: int
    params_fraction: float
    widths: dict[str, int]
    blocks: int
    skipped: list[str]
    worth: dict[str, float]
    metrics: dict[str, float]
    bits: dict[str, float]
    scheduled_load: float
    next_load: float


def no_changes() -> Changes:
    """Nothing changed yet."""
    return Changes(born=0, returned=0, died=0, blocks_left={}, restructure_seconds=0.0)


def add_changes(a: Changes, b: Changes) -> Changes:
    """Both, one after the other."""
    return Changes(
        born=a["born"] + b["born"],
        returned=a["returned"] + b["returned"],
        died=a["died"] + b["died"],
        blocks_left=a["blocks_left"] | b["blocks_left"],
        restructure_seconds=a["restructure_seconds"] + b["restructure_seconds"],
    )


def epoch_record(
    structure: Structure, present: Selection, epoch: int, load: float, latency: LatencyTable | None = None
) -> EpochRecord:
    """The record of an epoch that trained the present network, which is scheduled to cost ``load`` of the budget."""
    macs = structure.macs(present.keep, present.skip)
    params = structure.num_params(present.keep, present.skip)
    return EpochRecord(
        epoch=epoch,
        macs=macs,
        mean_macs=float(macs),
        macs_fraction=macs / max(1, structure.macs()),
        num_params=params,
        params_fraction=params / max(1, structure.num_params()),
        widths=structure.widths(present.keep, present.skip),
        blocks=len(structure.blocks) - len(present.skip),
        skipped=sorted(present.skip),
        worth={},
        metrics={},
        bits={},
        scheduled_load=load,
        next_load=load,
        **no_changes(),
        **_predicted(latency, present),
    )


def _predicted(latency: LatencyTable | None, present: Selection) -> Predicted:
    if latency is None:
        return Predicted()
    ms = latency.predict_ms(present.keep, present.skip)
    return Predicted(latency_ms=ms, latency_fraction=ms / latency.predict_ms())


def checked_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Numbers by name, as plain floats."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ConfigError(f'metrics must be finite numbers by name, such as {{"accuracy": 0.93}}, got {shown(metrics)}')
    found = {}
    for name, value in (metrics or {}).items():
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            number = float("nan")
        if not isinstance(name, str) or not isfinite(number):
            raise ConfigError(f"metrics must be finite numbers by name, such as accuracy=0.93, got {name!r}: {value!r}")
        found[name] = number
    return found


def template_record(structure: Structure) -> dict[str, Any]:
    """Costs, widths, blocks and frozen parts of the full model, as a run's folder has them."""
    return {
        "macs": structure.macs(),
        "num_params": structure.num_params(),
        "widths": {group.name: group.size for group in structure.groups},
        "roles": {group.name: group.role for group in structure.groups},
        "blocks": [block.name for block in structure.blocks],
        "frozen": [asdict(item) for item in structure.frozen],
    }


# of the final network, in a run's summary, as far as its record has them
LAST = ("macs", "macs_fraction", "num_params", "params_fraction", "latency_ms", "latency_fraction")


SHARES = ("acc", "iou", "f1", "precision", "recall")  # metrics in whose names these stand are shown in per cent


def run_record(structure: Structure, history: Sequence[EpochRecord], title: str, budget: str, epochs: int) -> RunRecord:
    """What a page shows of a training in a loop of the user's own; the first metric is what it is judged by."""
    config: dict[str, Any] = {"recipe": title, "budget": budget, "training": {"epochs": epochs}}
    for name in {name: None for record in history for name in record["metrics"]}:
        shares = any(part in name.lower() for part in SHARES) and all(
            0 <= record["metrics"].get(name, 0) <= 1 for record in history
        )
        style = {"pattern": "{:.2f}", "scale": 100.0, "unit": " %"} if shares else {"pattern": "{:.4g}", "scale": 1.0}
        config.setdefault("metrics", []).append({"name": name, "heading": name, "unit": "", **style})
    summary: dict[str, Any] = {}
    if len(history) >= epochs:
        last: Mapping[str, Any] = history[-1]
        spent = sum(record["mean_macs"] for record in history) / len(history)
        summary = {name: last[name] for name in LAST if name in last}
        summary |= {"train_macs_fraction": spent / structure.macs(), "train_macs_vs_final": spent / last["macs"]}
    told = [{**record, **{f"eval_{name}": value for name, value in record["metrics"].items()}} for record in history]
    return RunRecord(Path(title), config, told, summary, template_record(structure))


ROWS = 60  # groups that are drawn


def shown_in_words(structure: Structure, record: Mapping[str, Any] | None, epoch: int, epochs: int, budget: str) -> str:
    """A line: how far it is, and what the network costs."""
    parts = [f"epoch {epoch} of {epochs}", f"budget {budget}"]
    if record is not None:
        there = f"{record['macs_fraction']:.1%} of the MACs, {record['params_fraction']:.1%} of the parameters"
        timed = record.get("latency_fraction")
        there += "" if timed is None else f", {timed:.1%} of the latency"
        parts += [there, f"{len(record['widths'])} of {len(structure.groups)} channel groups"]
        parts += [f"{record['blocks']} of {len(structure.blocks)} blocks"] if structure.blocks else []
    return "; ".join(parts)


def shown_as_html(words: str, structure: Structure, widths: Mapping[str, int] | None) -> str:
    """The line, and a bar for each group: its outline is the full width, its filling what is there."""
    if widths is None:
        return f"<p>{escape(words)}</p>"
    rows = [_row(group.name, widths.get(group.name, 0), group.size) for group in structure.groups[:ROWS]]
    more = len(structure.groups) - len(rows)
    rest = f"<p>… and {more} more groups</p>" if more else ""
    return f"<div><p>{escape(words)}</p><table><tbody>{''.join(rows)}</tbody></table>{rest}</div>"


def _row(name: str, width: int, full: int) -> str:
    bar = (
        '<div style="width: 12em; height: .7em; border: 1px solid #8b949e; border-radius: 2px">'
        f'<div style="width: {100 * width / full:.1f}%; height: 100%; background: #1f6feb"></div></div>'
    )
    cells = (escape(name), f"{width} of {full}" if width else f"absent (of {full})", bar)
    return "<tr>" + "".join(f'<td style="text-align: left">{cell}</td>' for cell in cells) + "</tr>"
