"""Why the network became what it is: what each part was worth for its cost while it grew."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from math import exp

from apical.reporting._read import RunRecord
from apical.reporting._tables import folded, table

COLUMNS = 6  # epochs that are shown


def worth_section(run: RunRecord) -> str:
    """A table of each group's and block's worth for its cost, by epoch; empty if the run did not record any."""
    told = [(i, r["worth"]) for i, r in enumerate(run.history) if isinstance(r.get("worth"), dict) and r["worth"]]
    told = [(i, worth) for k, (i, worth) in enumerate(told) if not k or worth != told[k - 1][1]]  # while it changed
    if not told:
        return ""
    chosen = [told[round(k * (len(told) - 1) / max(1, COLUMNS - 1))] for k in range(COLUMNS)]
    epochs = dict(chosen)  # no epoch twice
    last = run.history[-1]
    names = list(dict.fromkeys(name for _, worth in told for name in worth))
    skipped = set(last.get("skipped") or ())
    rows = [
        (name, _fate(run, name, skipped), *(_factor(worth.get(name)) for worth in epochs.values())) for name in names
    ]
    head = ("part", "at the end", *(f"epoch {i + 1}" for i in epochs))
    gone = ", ".join(sorted(skipped))
    said = (
        "For each part: what the loss would rise by without it, divided by what it costs, against the average of all "
        "widths. Above 1 a part grows, unless it is whole; below 1 it shrinks or leaves, unless the budget could then "
        "not be used up."
    )
    left = f"<p>Worth too little for their cost, and left out: {escape(gone)}.</p>" if gone else ""
    shown = folded("worth by epoch", table(head, rows, "worth for its cost, against the average"))
    return f"<h2>Why it grew so</h2><p>{said}</p>{left}{_moves(run)}{shown}"


def _moves(run: RunRecord) -> str:
    """When each block left or came back, why, and what the widths of the others became then."""
    widths, rows, last = run.widths(), [], run.history[0]
    was = set(last.get("skipped") or ()) - set(last.get("blocks_left") or ())  # as the seed was
    for i, record in enumerate(run.history):
        is_ = set(record.get("skipped") or ())
        worth = {**(last.get("blocks_left") or {}), **(record.get("blocks_left") or {})}
        stayed = {
            name: (values[i - 1], values[i]) for name, values in widths.items() if i and values[i - 1] and values[i]
        }
        units = " → ".join(f"{sum(column):,}" for column in zip(*stayed.values(), strict=True))
        most = _most_changed(stayed)
        rows += [(i + 1, name, "left", _factor(worth.get(name)), units, most) for name in sorted(is_ - was)]
        rows += [(i + 1, name, "came back", "", units, most) for name in sorted(was - is_)]
        was, last = is_, record
    if not rows:
        return ""
    head = ("epoch", "block", "change", "worth then", "units elsewhere", "most changed")
    said = (
        "In every epoch the network costs what is scheduled. So what a block cost is free for the widths when it "
        "leaves, and is taken from them when it comes back; where many are whole and cannot grow, the others change "
        "all the more:"
    )
    return f"<p>{said}</p>{table(head, rows, 'when blocks left and came back')}"


def _most_changed(widths: Mapping[str, tuple[int, int]]) -> str:
    """The group whose width changed by the largest factor, of those with (before, after)."""
    if not widths:
        return ""
    name = max(widths, key=lambda group: max(widths[group]) / min(widths[group]))
    before, after = widths[name]
    return f"{name}: {before:,} → {after:,}" if before != after else ""


def _fate(run: RunRecord, name: str, skipped: set[str]) -> str:
    """The final share of a group's full width, or whether a block is there."""
    if any(name == block or name.startswith(f"{block}.") for block in skipped):
        return "left out"
    full, now = (run.template.get("widths") or {}).get(name), run.history[-1]["widths"].get(name)
    return f"{now} of {full}" if full and now is not None else "present"


def _factor(value: object) -> str:
    if not isinstance(value, (int, float)):
        return ""
    factor = exp(max(-9.0, min(9.0, value)))
    return "under 0.01" if factor < 0.01 else f"{factor:.2f}" if factor < 10 else f"{factor:,.0f}"
