"""The files of a run that belong to the loop: config.json, history.jsonl, summary.json (checkpoints: `_checkpoint`)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from apical.errors import CheckpointError
from apical.training._checkpoint import CURRENT, PREVIOUS, TORN, atomic_file, flush_to_disk, has_checkpoint


class RunFolder:
    """A folder of one run, made if need be. Every file is written whole or not at all.

    Raises:
        CheckpointError: the folder cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"cannot make the run folder {path}: {error}. Choose another one, or make its parent writable."
            ) from error
        for name in (CURRENT, "config.json", "history.jsonl", "summary.json"):
            for aside in path.glob(f".{name}.*.tmp"):  # a killed process was writing it
                aside.unlink(missing_ok=True)

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return has_checkpoint(self.path) or (self.path / "summary.json").exists()

    def clear(self) -> None:
        """Removes what an earlier run left, as far as the loop wrote it."""
        for name in (CURRENT, PREVIOUS, TORN, "history.jsonl", "summary.json", "config.json"):
            (self.path / name).unlink(missing_ok=True)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a mapping as readable JSON."""
        self._write(name, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Writes `history.jsonl`, a line per epoch."""
        self._write("history.jsonl", "".join(json.dumps(plain(r), allow_nan=False) + "\n" for r in records))

    def _write(self, name: str, text: str) -> None:
        path = self.path / name
        try:
            with atomic_file(path) as aside:
                aside.write_text(text, encoding="utf-8")
                flush_to_disk(aside)
        except OSError as error:
            raise CheckpointError(
                f"cannot write {path}: {error}. Free space or make the folder writable, then resume the run."
            ) from error


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are not finite become null, tuples lists, single tensors numbers.

    Example:
        >>> plain({"widths": (1, 2), "loss": float("nan"), "where": Path("a")})
        {'widths': [1, 2], 'loss': None, 'where': 'a'}
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (str, int)):
        return str(value) if isinstance(value, str) else int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value, key=str)]
    return plain(value.item()) if hasattr(value, "item") else str(value)
