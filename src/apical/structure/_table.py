"""`print(structure)`: a readable table; the same as HTML for notebooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apical.structure._types import Structure

Row = tuple[str, ...]
_GROUPS = ("group", "role", "size", "MACs", "gate site")
_BLOCKS = ("block", "MACs", "gate site")
_FROZEN = ("frozen", "size", "why")


def structure_table(structure: Structure, max_rows: int = 200) -> str:
    """Groups, blocks, frozen parts and totals as aligned text."""
    lines = [_headline(structure), "", *_aligned(_GROUPS, _group_rows(structure, max_rows))]
    if len(structure.groups) > max_rows:
        lines.append(f"… and {len(structure.groups) - max_rows} more groups")
    if structure.blocks:
        lines += ["", *_aligned(_BLOCKS, _block_rows(structure))]
    if structure.frozen:
        lines += ["", *_aligned(_FROZEN, _frozen_rows(structure))]
    lines += ["", *structure.notes] if structure.notes else []
    return "\n".join(lines)


def structure_html(structure: Structure, max_rows: int = 200) -> str:
    """The same table for a notebook, in the notebook's own colours; each part can be folded away."""
    more = len(structure.groups) - max_rows
    parts = [f"<p>{escape(_headline(structure))}</p>"]
    parts.append(_folded("groups", len(structure.groups), _GROUPS, _group_rows(structure, max_rows)))
    parts += [f"<p>… and {more} more groups</p>"] if more > 0 else []
    parts.append(_folded("blocks", len(structure.blocks), _BLOCKS, _block_rows(structure)))
    parts.append(_folded("frozen", len(structure.frozen), _FROZEN, _frozen_rows(structure)))
    parts += [f"<p>{escape(note)}</p>" for note in structure.notes]
    return f"<div>{''.join(parts)}</div>"


def _headline(structure: Structure) -> str:
    macs, params = structure.macs(), structure.num_params()
    least = structure.macs({g.name: 1 for g in structure.groups}, [b.name for b in structure.blocks])
    return (
        f"{len(structure.groups)} channel groups, {len(structure.blocks)} skippable blocks; "
        f"{macs:,} MACs, {params:,} parameters; down to {least:,} MACs ({_percent(least, macs)})"
    )


def _group_rows(structure: Structure, max_rows: int) -> list[Row]:
    macs = structure.macs()
    return [
        (
            g.name,
            g.role if g.exact else f"{g.role} (not exact)",
            str(g.size),
            _percent(macs - structure.macs({g.name: 1}), macs),
            _sites(g.gate_site),
        )
        for g in structure.groups[:max_rows]
    ]


def _block_rows(structure: Structure) -> list[Row]:
    macs = structure.macs()
    return [
        (b.name, _percent(macs - structure.macs(skip=[b.name]), macs), ", ".join(b.gate_site)) for b in structure.blocks
    ]


def _frozen_rows(structure: Structure) -> list[Row]:
    return [(f.name, str(f.size), f.reason) for f in structure.frozen]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _sites(slices: tuple[object, ...]) -> str:
    names = Counter(getattr(s, "tensor", "") for s in slices)
    shown = list(names)[:3]
    return ", ".join(shown) + (f" +{len(names) - 3}" if len(names) > 3 else "")


def _aligned(head: Row, rows: Sequence[Row]) -> list[str]:
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]


def _folded(name: str, count: int, head: Row, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return (
        f'<details open=""><summary>{count} {name}</summary><div style="max-height: 24em; overflow: auto">'
        f"<table><thead><tr>{_cells('th', head)}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _cells(tag: str, row: Row) -> str:
    return "".join(f'<{tag} style="text-align: left; vertical-align: top">{escape(cell)}</{tag}>' for cell in row)
