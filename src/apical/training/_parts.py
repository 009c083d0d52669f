"""What the processes keep of a model that they divide among them: each writes its own part, beside the checkpoint.

A checkpoint names the folder of its parts. A new one is written for each, before the checkpoint that names it, and
those of the last two are kept; so whenever a process dies, at least one checkpoint is whole, with its parts.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from apical.errors import CheckpointError
from apical.training._processes import Processes, gathered

_NAME = re.compile(r"parts-(\d{1,9})")


@dataclass(frozen=True)
class PartsIO:
    """How a divided model is saved together with its optimizer and its method; all processes call it.

    Attributes:
        save: writes (folder, method, optimizer); the folder is new.
        load: puts method, its model and optimizer back to what a folder holds.
        damage: says what of a folder is not as it was written, None if nothing; one process calls it.
    """

    save: Callable[[Path, Any, Optimizer], None]
    load: Callable[[Path, Any, Optimizer], None]
    damage: Callable[[Path], str | None] = lambda _: None


class Parts:
    """The folders of parts in a run folder."""

    def __init__(self, run: Path, team: Processes, io: PartsIO) -> None:
        self._run = run
        self._team = team
        self._io = io
        self._last: str | None = None  # of the checkpoint before

    def save(self, method: Any, optimizer: Optimizer) -> str:
        """Write a new folder of parts, and return its name."""
        numbers = [int(found[1]) for path in self._run.iterdir() if (found := _NAME.fullmatch(path.name))]
        name = f"parts-{gathered([max(numbers, default=0) + 1])[0][0]}"  # the first process decides
        self._io.save(self._run / name, method, optimizer)
        return name

    def load(self, name: Any, method: Any, optimizer: Optimizer) -> None:
        """Go back to the parts that a checkpoint names."""
        self._io.load(self._folder(name), method, optimizer)
        self._last = name

    def damage(self, state: Mapping[str, Any]) -> str | None:
        """What is wrong with the parts that the state of a checkpoint names; None if they are whole."""
        try:
            folder = self._folder(state.get("parts"))
        except CheckpointError as error:
            return str(error)
        problem = self._io.damage(folder)
        return None if problem is None else f"of its parts in {folder.name}, {problem}"

    def _folder(self, name: Any) -> Path:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise CheckpointError(f"the checkpoint says that its parts are in {name!r:.40}, expected parts-N")
        return self._run / name

    def keep(self, name: str) -> None:
        """A checkpoint that names these parts was written: remove all but those and the ones before."""
        if self._team.first:
            remove_parts(self._run, {name, self._last})
        self._last = name


def remove_parts(run: Path, kept: Collection[str | None] = ()) -> None:
    """Remove the folders of parts of a run, but for some."""
    for path in run.iterdir():
        if _NAME.fullmatch(path.name) and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)
