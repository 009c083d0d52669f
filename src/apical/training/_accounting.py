"""What training cost, in multiply-adds and seconds, summed over the history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

STEP_MACS_FACTOR = 3
"""A training step is counted as three forward passes: one forward, two of the same size backward."""


def epoch_train_macs(macs: float | None, samples: int) -> float | None:
    """Multiply-adds of training on `samples` examples with a network of `macs` per forward pass of one example.

        train_macs = 3 · macs · samples

    Example:
        >>> epoch_train_macs(1e6, 50_000)
        150000000000.0
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
