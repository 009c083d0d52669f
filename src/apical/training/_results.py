"""What a run is given and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from apical.training._accounting import epoch_train_macs
from apical.training._epoch import EpochStats, EvalStats
from apical.training._protocols import DescribedLoader, GrowthMethod, Loader
from apical.training._run_folder import plain
from apical.training._task import prefixed


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

    def contents(self) -> dict[str, Any]:
        """What each of them says that it holds; of training batches that say nothing, their number."""
        found: dict[str, Any] = {}
        for name, loader in (("train", self.train), ("evaluation", self.evaluation), ("test", self.test)):
            if isinstance(loader, DescribedLoader):
                found[name] = dict(loader.contents())
        return {"train": {"batches": len(self.train)}, **found}


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

    def __repr__(self) -> str:
        return f"<TrainingResult in {self.folder}: {', '.join(f'{name} {value}' for name, value in self._facts())}>"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in self._facts())
        return f"<div><p>{escape(str(self.folder))}</p><table>{rows}</table></div>"

    def _facts(self) -> list[tuple[str, str]]:
        """What the summary says first: the test metrics, and what the network and its training cost."""
        shown = [name for name in self.summary if name.startswith("test_")]
        shown += ["epochs", "macs_fraction", "params_fraction", "train_macs_fraction", "train_seconds"]
        found = [(name, self.summary.get(name)) for name in shown]
        return [(name, f"{value:.4g}" if isinstance(value, float) else str(value)) for name, value in found
                if value is not None]  # fmt: skip


def epoch_record(
    epoch: int,
    network: Mapping[str, Any],
    stats: EpochStats,
    evaluation: EvalStats | None,
    optimizer: Optimizer,
    restructure_seconds: float,
) -> dict[str, Any]:
    """A line of the history: the loop's own numbers, then those of the method, which may not replace them."""
    own = {
        "epoch": epoch,
        "lr": optimizer.param_groups[0]["lr"],
        "train_loss": stats.loss,
        **prefixed("train", stats.metrics),
        "samples": stats.samples,
        "steps": stats.steps,
        "step_seconds": stats.step_seconds,
        "data_seconds": stats.data_seconds,
        "eval_loss": None if evaluation is None else evaluation.loss,
        **(dict.fromkeys(f"eval_{name}" for name in stats.metrics) if evaluation is None else {}),
        **prefixed("eval", {} if evaluation is None else evaluation.metrics),
        "eval_seconds": 0.0 if evaluation is None else evaluation.seconds,
        "restructure_seconds": restructure_seconds,
        "train_macs": epoch_train_macs(network.get("mean_macs") or network.get("macs"), stats.samples),
    }
    record: dict[str, Any] = plain({**own, **{key: value for key, value in network.items() if key not in own}})
    return record
