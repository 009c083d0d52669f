"""seconds.md from seconds.json.

python -m benchmarks.seconds.report FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.seconds.check import verdicts
from benchmarks.seconds.findings import read


def cell(value: Any, pattern: str) -> str:
    """A cell as text; spreads as the median with the quartiles in brackets.

    Example:
        >>> cell({"median": 1.0, "low": 0.5, "high": 2.0, "samples": 9}, ".1f"), cell(None, ""), cell(3, ".1f")
        ('1.0 (0.5–2.0)', '–', '3.0')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value.replace("|", "\\|")
    if isinstance(value, Mapping):
        middle, low, high = (format(value[name], pattern) for name in ("median", "low", "high"))
        return middle if value["samples"] == 1 else f"{middle} ({low}–{high})"
    return format(value, pattern)


def render(content: Mapping[str, Any]) -> str:
    """The whole page."""
    return "\n".join(_lines(content)).rstrip() + "\n"


def _lines(content: Mapping[str, Any]) -> Iterator[str]:
    machine = content["machine"]
    yield "# Seconds"
    yield ""
    if content["quick"]:
        yield "**A quick run, to see that every case runs. Its numbers mean nothing.**"
        yield ""
    told = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    yield f"{machine['device']}, {machine['threads']} threads of {machine['cores']} cores, {told}."
    yield f"{content['started']}. Command: `{content['command']}`."
    yield "Medians, quartiles in brackets; ratios are taken within one round."
    yield ""
    yield "## Targets"
    yield ""
    yield "| case | what | measured | target | |"
    yield "|---|---|---|---|---|"
    for verdict in verdicts(content):
        yield f"| {verdict.case} | {verdict.name} | {verdict.measured} | {verdict.target} | {verdict.words} |"
    yield ""
    for name, case in content["cases"].items():
        yield from _case(name, case)


def _case(name: str, case: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {case['title']}"
    yield ""
    load = "" if case.get("load") is None else f"; load average before it {case['load']:.1f}"
    yield f"Case `{name}`, {case['seconds']:.0f} s{load}."
    yield ""
    for what, reason in case["errors"].items():
        yield f"- **failed**: {what}: {reason}"
    for what, reason in case["skipped"].items():
        yield f"- skipped: {what}: {reason}"
    if case["errors"] or case["skipped"]:
        yield ""
    for table in case["tables"]:
        yield from _table(table)


def _table(table: Mapping[str, Any]) -> Iterator[str]:
    if table["detail"]:
        yield f"<details><summary>{table['title']}</summary>"
    else:
        yield f"**{table['title']}**"
    yield ""
    yield "| " + " | ".join(name for name, _ in table["columns"]) + " |"
    yield "|" + "---|" * len(table["columns"])
    for row in table["rows"]:
        cells = (cell(value, pattern) for value, (_, pattern) in zip(row, table["columns"], strict=True))
        yield "| " + " | ".join(cells) + " |"
    yield ""
    if table["note"]:
        yield table["note"]
        yield ""
    if table["detail"]:
        yield "</details>"
        yield ""


def write(folder: Path) -> Path:
    """Write seconds.md beside seconds.json."""
    path = folder / "seconds.md"
    path.write_text(render(read(folder)), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    print(f"wrote {write(parser.parse_args().folder)}")


if __name__ == "__main__":
    main()
