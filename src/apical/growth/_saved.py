"""Whether a saved state is this Grower's, and what is said of one that is not, or that was changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from apical.budget import Budget
from apical.errors import CheckpointError
from apical.growth._config import GrowthConfig
from apical.growth._scs import ScsConfig
from apical.structure import Structure

ENTRIES = ("keep", "skip", "components", "store", "generator", "epoch", "step", "spent", "latency", "changes",
           "history", "bits")  # fmt: skip


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


def check_identity(own: Mapping[str, Any], state: Any, of_method: Sequence[str]) -> None:
    """Raise unless the state was saved by a Grower of the same model, budget and options."""
    if not isinstance(state, Mapping) or not isinstance(state.get("identity"), Mapping):
        raise CheckpointError("this is no state of a Grower: expected what `Grower.state_dict` returned")
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
    missing = [e for e in (*ENTRIES, *of_method) if e not in state]
    if missing:
        raise CheckpointError(f"the saved growth state is incomplete: {', '.join(missing)} is missing")


def refuse_early_optimizer_state(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Stop if the state of an optimizer belongs to another network than the present one: it was loaded too early."""
    names = {id(p): name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for entry, value in state.items() if id(parameter) in names else ():
                if isinstance(value, Tensor) and value.dim() == parameter.dim() and value.shape != parameter.shape:
                    raise CheckpointError(
                        f"the state of {type(optimizer).__name__} was loaded before the Grower's: its {entry!r} of "
                        f"{names[id(parameter)]} has the shape {tuple(value.shape)}, the parameter is still "
                        f"{tuple(parameter.shape)}, as in the seed. Build model, optimizer and Grower anew, and load "
                        "the Grower's state first, then those of the model and the optimizer."
                    )


def _shown(groups: Any) -> str:
    items = [f"{k} ({v})" for k, v in groups.items()] if isinstance(groups, Mapping) else [repr(groups)]
    return ", ".join(items[:5]) + (" …" if len(items) > 5 else "")
