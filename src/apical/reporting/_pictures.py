"""Pictures that a run stored, as rows of the page."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from apical._reading import read_text, regular
from apical.errors import DataError

_MOST_BYTES = 4 * 2**20  # of one picture: the page is one file
_PNG = b"\x89PNG\r\n\x1a\n"


def picture_rows(run: Path) -> str:
    """The pictures that ``pictures/pictures.json`` in a run folder lists, inside the page.

    The file has ``title``, ``note``, ``legend`` (``name`` and ``colour``) and ``rows``; a row has ``name``, ``note``,
    ``files`` (a PNG beside the file by column) and ``alt`` (what is to be seen, in words, by column).

    Returns:
        A section; empty text if the run stored no pictures.
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
