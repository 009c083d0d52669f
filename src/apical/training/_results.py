"""What a run is given and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from apical.training._protocols import GrowthMethod, Loader


@dataclass(frozen=True)
class Loaders:
    """The data of a run.

    Attributes:
        train: batches of (inputs, targets) to learn from.
        evaluation: batches to evaluate on after each epoch: a split of the training set when decisions hang on it.
        test: batches that are read once, at the end; None reads `evaluation` again.
    """

    train: Loader
    evaluation: Loader
    test: Loader | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves.

    Attributes:
        model: the final, compact model (with the averaged weights, if the run averaged them).
        method: the growth method after `finish()`.
        history: a record per epoch, as in history.jsonl.
        summary: as in summary.json.
        folder: the run folder.
    """

    model: nn.Module
    method: GrowthMethod
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    folder: Path
