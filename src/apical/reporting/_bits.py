"""The precision of each layer by epoch."""

from __future__ import annotations

from apical.reporting._read import RunRecord
from apical.reporting._svg import evenly, heat_strip
from apical.reporting._tables import folded, table

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
