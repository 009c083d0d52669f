"""A Grower as a prompt and a notebook show it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from apical.structure import Structure

ROWS = 60  # groups that are drawn


def in_words(structure: Structure, record: Mapping[str, Any] | None, epoch: int, epochs: int, budget: str) -> str:
    """A line: how far it is, and what the network costs."""
    parts = [f"epoch {epoch} of {epochs}", f"budget {budget}"]
    if record is not None:
        there = f"{record['macs_fraction']:.1%} of the MACs, {record['params_fraction']:.1%} of the parameters"
        parts += [there, f"{len(record['widths'])} of {len(structure.groups)} channel groups"]
        parts += [f"{record['blocks']} of {len(structure.blocks)} blocks"] if structure.blocks else []
    return "; ".join(parts)


def as_html(words: str, structure: Structure, widths: Mapping[str, int] | None) -> str:
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
