"""Tables and pages as HTML text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from apical._atomic import atomic_file, make_folder
from apical.errors import DataError, why_not_written
from apical.reporting._style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(title: str, body: str, script: str = "", style: str = "") -> str:
    """A whole document. Browsers are told to fetch nothing for it."""
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>apical: {escape(title)}</title><style>{STYLE}{style}</style></head><body><main>{body}</main>{code}"
        "</body></html>\n"
    )


def write_page(path: Path, text: str) -> Path:
    """Write a file whole or not at all, in a folder that is made if need be."""
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder, expected a file. Name another file.")
    try:
        make_folder(path.parent)
        with atomic_file(path) as aside:
            aside.write_text(text, encoding="utf-8", errors="replace")  # JSON may hold half a character: "\\ud800"
    except OSError as error:
        raise DataError(f"cannot write {path}: {why_not_written(path, error)}. Name another file.") from error
    return path


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], label: str) -> str:
    """A table that scrolls within the page; whole numbers and shares stand to the right."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(_cell(value) for value in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label, quote=True)}"><table><thead><tr>'
        f"{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def folded(summary: str, content: str) -> str:
    """Content that opens on demand."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def _cell(value: Any) -> str:
    shown = f"{value:,}" if isinstance(value, int) else text(value)
    right = isinstance(value, (int, float)) or shown.endswith(" %")
    return f'<td class="num">{escape(shown)}</td>' if right else f"<td>{escape(shown)}</td>"


def text(value: Any) -> str:
    """A value as text; nothing for None."""
    return "" if value is None else str(value)
