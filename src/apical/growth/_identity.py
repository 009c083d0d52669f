"""What a saved growth state belongs to, so that a foreign one is refused before anything changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from apical.budget import Budget
from apical.errors import CheckpointError
from apical.growth._config import GrowthConfig
from apical.growth._scs import ScsConfig
from apical.structure import Structure

ENTRIES = ("keep", "skip", "components", "store", "generator", "epoch", "step", "spent", "frozen", "target_load",
           "seed_load", "latency", "changes", "history")  # fmt: skip
OF_METHOD = {"GrowthConfig": ("widths", "multipliers", "relative"), "ScsConfig": ("beta",)}  # besides


def identity(
    structure: Structure, budget: Budget, epochs: int, steps_per_epoch: int | None, config: GrowthConfig | ScsConfig
) -> dict[str, Any]:
    """Everything that must be equal between the Grower that saved a state and the one that loads it."""
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return {
        "method": type(config).__name__,
        "groups": {g.name: g.size for g in structure.groups},
        "blocks": [b.name for b in structure.blocks],
        "budget": str(budget),
        "epochs": epochs,
        "steps_per_epoch": steps_per_epoch,
        **options,
    }


def check_identity(own: Mapping[str, Any], state: Any) -> None:
    """Raise unless the state was saved by a Grower of the same model, budget and options.

    Raises:
        CheckpointError: saying what differs.
    """
    if not isinstance(state, Mapping) or not isinstance(state.get("identity"), Mapping):
        raise CheckpointError("this is no state of a Grower: expected what `Grower.state_dict` returned")
    missing = [e for e in (*ENTRIES, *OF_METHOD.get(state["identity"].get("method"), ())) if e not in state]
    if missing:
        raise CheckpointError(f"the saved growth state is incomplete: {', '.join(missing)} is missing")
    saved = state["identity"]
    if saved.get("groups") != own["groups"] or saved.get("blocks") != own["blocks"]:
        raise CheckpointError(
            "the saved growth state belongs to another model: its channel groups are "
            f"{_shown(saved.get('groups'))}, those of this model {_shown(own['groups'])}"
        )
    other = [f"{k} was {saved.get(k)!r} and is {v!r}" for k, v in own.items() if saved.get(k) != v]
    if other:
        raise CheckpointError(
            f"the saved growth state belongs to a run with other options: {'; '.join(other)}. Make the Grower with "
            "those it was saved with."
        )


def _shown(groups: Any) -> str:
    items = [f"{k} ({v})" for k, v in groups.items()] if isinstance(groups, Mapping) else [repr(groups)]
    return ", ".join(items[:5]) + (" …" if len(items) > 5 else "")
