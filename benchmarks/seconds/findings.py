"""What a case finds: tables, targets, and what was left out or failed. Plain data, as seconds.json holds it."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from benchmarks.seconds.spread import Spread


@dataclass(frozen=True)
class Target:
    """A measured figure and its limit.

    Attributes:
        name: what is measured, in words.
        value: the median.
        limit: what it should keep to.
        sense: whether it should be at most or at least the limit.
        low: first quartile, if there are several samples.
        high: third quartile.
    """

    name: str
    value: float
    limit: float
    sense: Literal["at most", "at least"] = "at most"
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: over it.
        columns: heading and number format of each column.
        rows: cells: text, number, None, or a spread as a mapping.
        note: under it.
        detail: whether it is folded away in the report.
    """

    title: str
    columns: tuple[tuple[str, str], ...]
    rows: tuple[tuple[Any, ...], ...]
    note: str = ""
    detail: bool = False


@dataclass
class Findings:
    """What a case has found so far. What it adds stays, also if it fails later."""

    title: str
    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    load: float | None = None  # processes that ran on the machine, on average over the minute before

    def table(
        self, title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[Any]], note: str = "",
        detail: bool = False,
    ) -> None:  # fmt: skip
        """Add a table; spreads in its cells become mappings."""
        cells = tuple(tuple(asdict(cell) if isinstance(cell, Spread) else cell for cell in row) for row in rows)
        self.tables.append(Table(title, tuple(columns), cells, note, detail))

    def target(
        self, name: str, value: Spread | float, limit: float, sense: Literal["at most", "at least"] = "at most"
    ) -> None:
        """Add a target."""
        if isinstance(value, Spread):
            self.targets.append(Target(name, value.median, limit, sense, value.low, value.high))
        else:
            self.targets.append(Target(name, value, limit, sense))

    def part(self, name: str) -> Part:
        """A context in which failing is noted under this name and does not stop what follows."""
        return Part(self, name)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return asdict(self)


class Part:
    """Notes an exception in the findings and goes on; an interrupt is let through."""

    def __init__(self, found: Findings, name: str) -> None:
        self._found, self._name = found, name

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        if isinstance(error, NotAvailableError):
            self._found.skipped[self._name] = str(error)
            return True
        where = traceback.extract_tb(trace)[-1]
        text = f"{type(error).__name__}: {str(error).strip()[:600]} ({where.name}, line {where.lineno})"
        self._found.errors[self._name] = text
        return True


class NotAvailableError(Exception):
    """This part cannot be measured here, and why; it is skipped, not failed."""


def targets_of(case: Mapping[str, Any]) -> list[Target]:
    """The targets of a case as seconds.json holds it."""
    return [Target(**target) for target in case["targets"]]


def read(folder: Path) -> dict[str, Any]:
    """What a run of the suite found.

    Raises:
        SystemExit: the folder has no seconds.json that can be read; the message says what to do.
    """
    path = folder / "seconds.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"{path} cannot be read ({error}); run `python -m benchmarks.seconds --out {folder}`"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("cases"), dict):
        raise SystemExit(f"{path} has no 'cases'; expected a file that `python -m benchmarks.seconds` wrote")
    return content
