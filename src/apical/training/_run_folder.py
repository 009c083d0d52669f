"""The files of a run that belong to the loop: config.json, history.jsonl, summary.json (checkpoints: `_checkpoint`)."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from apical._atomic import asides_in, atomic_file, make_folder, take_lock
from apical._reading import is_regular, read_object
from apical.errors import ApicalError, CheckpointError, why_not_written
from apical.training._checkpoint import CURRENT, PREVIOUS, TORN, has_checkpoint, saved_identity
from apical.training._parts import remove_parts

FILES = (
    *(CURRENT, PREVIOUS, TORN, "history.jsonl", "summary.json", "config.json"),
    *("template.json", "architecture.json", "model.safetensors", "report.html"),  # by those who call the loop
    *("metrics.csv", "trackers.json"),  # by loggers
)
FOLDERS = ("pictures", "tensorboard")
LOCK_PATIENCE_S = 6.0  # a killed run's reading processes notice within five seconds that it is gone


class RunFolder:
    """A folder of one run, made if need be. Every file is written whole or not at all.

    While entered, the folder is locked: a second run that wants to write there is refused. The lock is the system's own
    (flock on the folder), so it goes with the process, however that ends. Where a system has none, nothing is locked.

    Args:
        path: the folder.
        writes: whether this process is the one that writes; for others, everything here does nothing.

    Raises:
        CheckpointError: the folder cannot be made or written, or another run is writing there.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        self._lock: int | None = None

    def __enter__(self) -> RunFolder:
        if self._writes:
            self._make()
            self._lock = _locked(self.path)
            self._sweep()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _make(self) -> None:
        path = self.path
        try:
            make_folder(path)
        except OSError as error:
            raise CheckpointError(
                f"cannot make the run folder {path}: {why_not_written(path, error)}. Choose another one, or make its "
                "parent writable."
            ) from error

    def _sweep(self) -> None:
        with writing(self.path):
            left = asides_in(self.path)
        for aside in left:  # a killed process was writing it: the loop, or who writes the report, pictures and the like
            remove_file(aside)

    def holds_run(self) -> bool:
        """Whether a run was started here."""
        return has_checkpoint(self.path) or is_regular(self.path / "summary.json") or has_epochs(self.path)

    def refuse_run(self) -> None:
        """Refuse a folder that holds a run, which a new one would replace unasked."""
        if self._writes and self.holds_run():
            raise CheckpointError(
                f"{self.path} already holds a run. Resume it (resume=True), choose another folder, or remove it "
                "(overwrite=True)."
            )

    def clear(self) -> None:
        """Remove what an earlier run left, if there is one, when a new one starts and not before."""
        if self._writes and self.holds_run():
            for name in FILES:
                remove_file(self.path / name)
            for name in FOLDERS:
                remove_folder(self.path / name)
            remove_parts(self.path)

    def has_config(self) -> bool:
        """Whether config.json is there and can be read."""
        try:
            return bool(_config(self.path))
        except CheckpointError:
            return False

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a mapping as readable JSON."""
        self._write(name, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")

    def write_history(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write `history.jsonl`, a line per epoch."""
        self._write("history.jsonl", "".join(json.dumps(plain(r), allow_nan=False) + "\n" for r in records))

    def _write(self, name: str, text: str) -> None:
        if self._writes:
            write_text(self.path / name, text)


def has_epochs(folder: Path) -> bool:
    """Whether the history of a run folder has an epoch."""
    try:
        return (folder / "history.jsonl").stat().st_size > 0
    except (OSError, ValueError):
        return False


def refuse_lost(folder: Path) -> None:
    """Refuse to resume a run that has no checkpoint any more; one that was killed before its first starts anew.

    Raises:
        CheckpointError: there is nothing to go on from, and a result or epochs that starting anew would overwrite.
    """
    if has_checkpoint(folder):
        return
    anew = "To train it anew, remove it first (--overwrite; in Python overwrite=True)."
    if is_regular(folder / "summary.json"):
        raise CheckpointError(
            f"the run in {folder} had finished, and its checkpoints are gone: nothing is left to train, and what is "
            f"there stays as it is. {anew}"
        )
    if has_epochs(folder):
        raise CheckpointError(
            f"the run in {folder} cannot go on: epochs are in its history.jsonl, but {CURRENT} and {PREVIOUS} are "
            f"gone. Bring one of them back. {anew}"
        )
    if not is_regular(folder / "config.json"):
        raise CheckpointError(
            f"nothing to resume in {folder}: it has neither {CURRENT} nor config.json. Give the folder of an earlier "
            "run, or start a new one."
        )


def begun_with(folders: Iterable[Path], section: str, name: str) -> Iterator[Any]:
    """What the run folders that were begun say of a setting, one after the other: in config.json, in the checkpoint."""
    for folder in folders:
        for content in (_config, saved_identity):
            try:
                yield content(folder)[section][name]
            except (CheckpointError, KeyError, TypeError):
                continue


def _config(folder: Path) -> Mapping[str, Any]:
    return read_object(folder / "config.json", CheckpointError)


def write_text(path: Path, text: str) -> None:
    """Write a text file of a run, whole or not at all.

    Raises:
        CheckpointError: it cannot be written.
    """
    with writing(path), atomic_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def remove_file(path: Path) -> None:
    """Remove a file of a run, if it is there.

    Raises:
        CheckpointError: it cannot be removed, for example because it is a folder.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"cannot remove {path}: {why_not_written(path, error)}. Remove it by hand, or choose another folder."
        ) from error


def remove_folder(path: Path) -> None:
    """Remove a folder of a run with all that is in it, if it is there.

    Raises:
        CheckpointError: it cannot be removed.
    """
    if path.is_symlink() or not path.is_dir():
        remove_file(path)
        return
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise CheckpointError(f"cannot remove {path}: {error}. Remove it by hand, or choose another folder.") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While entered, what the system says against writing a run's file or folder is said as a `CheckpointError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, ApicalError):
            raise
        raise CheckpointError(
            f"cannot write {path}: {error}. Free space or make the folder writable, then resume the run."
        ) from error


def _locked(path: Path) -> int | None:
    """An open file that holds the folder's lock; None where folders cannot be locked (Windows, some network drives)."""
    if os.name == "nt":  # which opens no folders
        return None
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
    try:
        if take_lock(descriptor, LOCK_PATIENCE_S):
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        raise CheckpointError(
            f"another process is training in {path}. Wait until it has ended, or choose another folder."
        ) from None
    os.close(descriptor)
    return None


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
