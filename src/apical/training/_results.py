"""What a run is given and what it leaves: its data, its records and sums, its summary."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from apical.training._processes import processes
from apical.training._protocols import DescribedLoader, GrowthMethod, Loader
from apical.training._run_folder import plain
from apical.training._tally import EpochStats, EvalStats
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
        return [
            (name, f"{value:.4g}" if isinstance(value, float) else str(value))
            for name, value in found
            if value is not None
        ]


def history_record(
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


def run_summary(
    history: Sequence[Mapping[str, Any]],
    test: EvalStats,
    held_out: bool,
    num_params: int,
    content: Mapping[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """What summary.json says of a finished run."""
    last = history[-1]
    valid = {name: last.get(f"eval_{name}") for name in test.metrics} if held_out else {}
    summary: dict[str, Any] = plain(
        {
            **prefixed("test", test.metrics),
            **prefixed("valid", valid),
            "test_loss": test.loss,
            "test_samples": test.samples,
            "macs": last.get("macs"),
            "macs_fraction": last.get("macs_fraction"),
            "num_params": num_params,
            "params_fraction": last.get("params_fraction"),
            **{name: last[name] for name in ("latency_ms", "latency_fraction") if name in last},
            **training_costs(history),
            "epochs": len(history),
            "seed": content["training"]["seed"],
            "method": content.get("method"),
            "recipe": content.get("recipe"),
            "device": describe_device(device),
            "processes": processes().count,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
    )
    return summary


STEP_MACS_FACTOR = 3
"""A training step is counted as three forward passes: one forward, two of the same size backward."""


def epoch_train_macs(macs: float | None, samples: int) -> float | None:
    """Multiply-adds of training on `samples` examples with a network of `macs` per forward pass of one example.

    train_macs = 3 · macs · samples
    """
    return None if macs is None else STEP_MACS_FACTOR * macs * samples


def training_costs(history: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Sums over the epochs of a run.

        train_macs_fraction  = Σ_e spent_e n_e / (macs_dense Σ_e n_e),  macs_dense = macs_e / macs_fraction_e
        train_macs_vs_final  = Σ_e spent_e n_e / (macs_final Σ_e n_e),  macs_final = macs of the last epoch

    with spent_e the `mean_macs` of an epoch in which the network changed, else its `macs`.

    Args:
        history: records with `samples`, the seconds of each part and, where the method knows them, `macs`,
            `macs_fraction` and `mean_macs`.

    Returns:
        `train_macs`, `train_macs_fraction`, `train_macs_vs_final` (None where MACs are unknown), `train_seconds`
        (steps and restructuring), `step_seconds`, `restructure_seconds`, `data_seconds`, `eval_seconds`; where steps
        were compiled also `compilations` and `compile_seconds` (which are part of `step_seconds`).

    Example:
        >>> epoch = {"samples": 10, "step_seconds": 1.0, "restructure_seconds": 0.5}
        >>> costs = training_costs([{**epoch, "macs": 2, "macs_fraction": 0.2}, {**epoch, "macs": 4}])
        >>> costs["train_macs_fraction"], costs["train_macs_vs_final"], costs["train_seconds"]
        (0.3, 0.75, 3.0)
    """

    def total(name: str) -> float:
        return float(sum(record.get(name) or 0.0 for record in history))

    costs: dict[str, float | None] = {
        "train_macs": None,
        "train_macs_fraction": None,
        "train_macs_vs_final": None,
        "train_seconds": total("step_seconds") + total("restructure_seconds"),
        **{name: total(name) for name in ("step_seconds", "restructure_seconds", "data_seconds", "eval_seconds")},
    }
    if any("compilations" in record for record in history):
        costs |= {name: total(name) for name in ("compilations", "compile_seconds")}
    if history and all(record.get("macs") for record in history):
        spent = float(sum((record.get("mean_macs") or record["macs"]) * record["samples"] for record in history))
        samples = sum(record["samples"] for record in history)
        costs["train_macs"] = STEP_MACS_FACTOR * spent
        costs["train_macs_vs_final"] = spent / (history[-1]["macs"] * samples)
        dense = [r["macs"] / r["macs_fraction"] for r in history if r.get("macs_fraction")]
        if dense:
            costs["train_macs_fraction"] = spent / (dense[0] * samples)
    return costs


def describe_device(device: torch.device) -> str:
    """The device in words, for tables."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{device.type} ({platform.processor() or platform.machine()})"


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        apical = version("apical")
    except PackageNotFoundError:
        apical = "unknown"
    return {"apical": apical, "torch": torch.__version__, "python": platform.python_version()}


def peak_memory_mib(device: torch.device) -> float | None:
    """The most memory that was in use so far, in MiB; None where the system does not say (Windows).

    On a CUDA device what torch allocated on it since the last call; elsewhere what the process held since it started
    (its peak resident set), data and libraries included.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 2**20
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
