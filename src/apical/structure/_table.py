"""Tables as aligned text, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    Attributes:
        name: what the rows are, in the plural.
        head: names of the columns.
        rows: those that are shown.
        total: how many there are.
    """

    name: str
    head: Row
    rows: Sequence[Row]
    total: int

    @property
    def rest(self) -> list[str]:
        """A line about rows that are not shown, if there are any."""
        more = self.total - len(self.rows)
        return [f"… and {more} more {self.name}"] if more > 0 else []


def as_text(headline: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """A headline, tables and notes as aligned text; of the tables but the first, those with rows."""
    lines = [headline]
    for i, table in enumerate(tables):
        if table.rows or i == 0:
            lines += ["", *_aligned(table.head, table.rows), *table.rest]
    lines += ["", *notes] if notes else []
    return "\n".join(lines)


def as_html(headline: str, tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The same for a notebook, in the notebook's own colours; each table can be folded away."""
    parts = [f"<p>{escape(headline)}</p>"]
    for table in tables:
        parts.append(_folded(table))
        parts += [f"<p>{line}</p>" for line in table.rest]
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    return f"<div>{''.join(parts)}</div>"


def _aligned(head: Row, rows: Sequence[Row]) -> list[str]:
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)]


def _folded(table: Table) -> str:
    if not table.rows:
        return ""
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in table.rows)
    return (
        f'<details open=""><summary>{table.total} {table.name}</summary><div style="max-height: 24em; overflow: auto">'
        f"<table><thead><tr>{_cells('th', table.head)}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _cells(tag: str, row: Row) -> str:
    return "".join(f'<{tag} style="text-align: left; vertical-align: top">{escape(cell)}</{tag}>' for cell in row)
