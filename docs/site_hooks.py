"""The site's navigation follows the files, and pages that would fetch something are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FETCHED = re.compile(
    r'<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//|<link\b[^>]*\brel="stylesheet"[^>]*"https?:'
)


def on_config(config: Any) -> Any:
    """Expand the navigation."""
    config["nav"] = _entries(config["nav"], Path(config["docs_dir"]))
    return config


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse pages that would fetch something from elsewhere when they are read."""
    found = FETCHED.search(output)
    if found:
        raise ValueError(f"{page.file.src_uri} would fetch something when it is read: {found[0]}…")
    return output


def _entries(nav: list[Any], docs: Path) -> list[Any]:
    made: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            ((title, content),) = entry.items()
            inner = _entries(content if isinstance(content, list) else [content], docs)
            made += [{title: inner}] if inner else []
        elif entry.endswith("/*"):
            folder = docs / entry[:-2]
            pages = sorted(folder.glob("*.md"), key=lambda page: (page.stem not in ("README", "index"), page.stem))
            made += [name for name in (page.relative_to(docs).as_posix() for page in pages) if name not in made]
        elif (docs / entry).is_file():
            made.append(entry)
    return made
