"""`print(structure)`: a readable table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apical.structure._types import Structure


def structure_table(structure: Structure, max_rows: int = 200) -> str:
    """Groups, blocks, frozen parts and totals as aligned text."""
    smallest = {g.name: 1 for g in structure.groups}
    skip = [b.name for b in structure.blocks]
    macs, params = structure.macs(), structure.num_params()
    least = structure.macs(smallest, skip)
    lines = [
        f"{len(structure.groups)} channel groups, {len(structure.blocks)} skippable blocks; "
        f"{macs:,} MACs, {params:,} parameters; down to {least:,} MACs ({_percent(least, macs)})",
        "",
    ]
    rows = [
        (g.name, g.role, str(g.size), _percent(macs - structure.macs({g.name: 1}), macs), _sites(g.gate_site))
        for g in structure.groups[:max_rows]
    ]
    lines += _aligned(("group", "role", "size", "MACs", "gate site"), rows)
    if len(structure.groups) > max_rows:
        lines.append(f"… and {len(structure.groups) - max_rows} more groups")
    if structure.blocks:
        blocks = [(b.name, _percent(macs - structure.macs(skip=[b.name]), macs), ", ".join(b.gate_site))
                  for b in structure.blocks]  # fmt: skip
        lines += ["", *_aligned(("block", "MACs", "gate site"), blocks)]
    if structure.frozen:
        lines += ["", *_aligned(("frozen", "size", "why"), [(f.name, str(f.size), f.reason) for f in structure.frozen])]
    lines += ["", *structure.notes] if structure.notes else []
    return "\n".join(lines)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _sites(slices: tuple[object, ...]) -> str:
    names = Counter(getattr(s, "tensor", "") for s in slices)
    shown = list(names)[:3]
    return ", ".join(shown) + (f" +{len(names) - 3}" if len(names) > 3 else "")


def _aligned(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]
