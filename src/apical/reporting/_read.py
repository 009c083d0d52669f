"""What a run folder says about its run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apical._checks import flattened
from apical._reading import read_text
from apical.errors import ApicalError, DataError

_ACCURACY = {
    "name": "accuracy", "heading": "acc %", "pattern": "{:.2f}", "scale": 100.0, "unit": " %", "higher_is_better": True
}  # fmt: skip


def metric_label(metric: Mapping[str, Any]) -> str:
    """A metric's name for people, in the spelling of its heading if that begins with it: mIoU for miou."""
    name, heading = str(metric["name"]), str(metric["heading"])
    return heading[: len(name)] if heading.lower().startswith(name.lower()) else name


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not.

    Attributes:
        folder: the run folder.
        config: config.json.
        history: a record per epoch.
        summary: summary.json; empty while the run has not finished.
        started: template.json, what is known of the full model from the start.
    """

    folder: Path
    config: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    started: Mapping[str, Any] = field(default_factory=dict)

    @property
    def template(self) -> Mapping[str, Any]:
        """The full model: `macs`, `num_params`, `widths`, `roles`, `blocks`, `frozen`; empty if nothing was traced."""
        found = self.summary.get("template") or self.started
        return found if isinstance(found, Mapping) else {}

    @property
    def epochs(self) -> int:
        """How many epochs the run is to last; 0 if its config does not say."""
        planned = (self.config.get("training") or {}).get("epochs")
        return planned if isinstance(planned, int) else 0

    @property
    def evaluated_on(self) -> str:
        """The data that each epoch is judged on: "test" where the run holds out none of its training data."""
        data = self.config.get("data")
        return "test" if isinstance(data, Mapping) and data.get("validation_fraction") == 0 else "held-out"

    def series(self, name: str, scale: float = 1.0) -> list[tuple[float, float]]:
        """(epoch, value) of a column of the history, epochs without it left out."""
        found = []
        for number, record in enumerate(self.history, 1):
            value = record.get(name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found.append((float(number), scale * value))
        return found

    @property
    def metric(self) -> Mapping[str, Any]:
        """What the run is judged by, the first of its metrics."""
        return self.metrics[0]

    @property
    def metrics(self) -> list[Mapping[str, Any]]:
        """Of each metric its name, heading, pattern, scale, unit, higher_is_better."""
        found = self.config.get("metrics")
        told = found if isinstance(found, Sequence) and found else [{}]
        return [{**_ACCURACY, **one} if isinstance(one, Mapping) else _ACCURACY for one in told]

    @property
    def metric_label(self) -> str:
        """The name, for people, of what the run is judged by."""
        return metric_label(self.metric)

    def judged(self, value: float) -> str:
        """A value of what the run is judged by, as pages write it."""
        return f"{self.metric['pattern'].format(self.metric['scale'] * value)}{self.metric['unit']}"

    def settings(self) -> list[tuple[str, str]]:
        """The config line by line, as (dotted name, JSON)."""
        told = {name: value for name, value in self.config.items() if name not in ("versions", "input")}
        return [(name, json.dumps(value, ensure_ascii=False)) for name, value in flattened(told)]

    def widths(self) -> dict[str, list[int]]:
        """Width of every group in every epoch, in the template's order; 0 where it was absent with its block."""
        told = [record.get("widths") or {} for record in self.history]
        names = dict.fromkeys([*(self.template.get("widths") or {}), *(name for widths in told for name in widths)])
        return {name: [int(widths.get(name, 0)) for widths in told] for name in names} if any(told) else {}


def read_run(folder: str | Path) -> RunRecord:
    """Read config.json and, where they are there, history.jsonl, summary.json and template.json.

    Raises:
        DataError: the folder does not hold a run, or a file is damaged.
    """
    path = Path(folder)
    try:
        found = (path / "config.json").is_file()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise DataError(f"{path} cannot be read: {error.strerror}; expected a run folder") from error
    if not found:
        raise DataError(f"{path} is not a run folder: it has no config.json; expected what `apical train` wrote")
    config = _json(path / "config.json")
    summary, started = (_json(path / n) if (path / n).exists() else {} for n in ("summary.json", "template.json"))
    history = []
    if (path / "history.jsonl").exists():
        lines = _text(path / "history.jsonl").splitlines()
        history = [_parse(line, path / "history.jsonl", number) for number, line in enumerate(lines, 1) if line.strip()]
    return RunRecord(path, config, history, summary, started)


@contextmanager
def showing(*runs: RunRecord) -> Iterator[None]:
    """What goes wrong with the numbers of runs is said as such: changed files can be wrong in many ways."""
    try:
        yield
    except ApicalError:
        raise
    except Exception as error:
        folders = ", ".join(str(run.folder) for run in runs)
        raise DataError(
            f"{folders} cannot be shown: a value in config.json, history.jsonl, summary.json or template.json is not "
            f"what apical writes ({type(error).__name__}: {error}). It was changed; copy the run folder anew."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    return _parse(_text(path), path, 1)


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _parse(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {line}: not JSON: {error}. The file was cut or changed; copy the run folder anew."
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}, line {line}: expected an object, got {type(content).__name__}")
    return content
