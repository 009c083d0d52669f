"""What a Grower refuses or warns of: faults of a loop that no error of torch would tell, and foreign states."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from apical.budget import Budget
from apical.errors import ApicalError, CheckpointError, TrainingError
from apical.growth._config import GrowthConfig
from apical.growth._scs import ScsConfig
from apical.resizing import are_finite
from apical.structure import Structure

ENTRIES = ("keep", "skip", "components", "store", "generator", "epoch", "step", "spent", "latency", "changes",
           "history")  # fmt: skip
CALLER = 3  # of the Grower's method: whose line the warning shows
TRAINED = 20  # batches that a batch norm has counted: fewer may have been tried out on a new model


def warn_of_untrained(names: Sequence[str]) -> None:
    """Warn of parameters that want a gradient and that no optimizer holds."""
    if names:
        warnings.warn(
            f"{len(names)} parameters have requires_grad=True, but no optimizer that the Grower was given holds them: "
            f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}. They will not be trained, even if another "
            "optimizer holds them, because the Grower replaces parameters. Pass all optimizers, optimizer=[a, b], or "
            "call requires_grad_(False) on what is to stay as it is.",
            stacklevel=CALLER,
        )


def warn_of_replaced(names: Sequence[str]) -> None:
    """Warn of parameters that have come to want a gradient since the Grower was made, and that no optimizer holds."""
    if names:
        warnings.warn(
            f"no optimizer of the Grower holds {len(names)} parameters that it held or that wanted no gradient before: "
            f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}. They are not trained. If a layer was replaced or "
            "unfrozen, add its parameters: optimizer.param_groups[0]['params'].extend(layer.parameters()).",
            stacklevel=CALLER,
        )


def warn_of_trained(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Warn if a model that seems to have been trained is about to lose most of what it has learned."""
    counted = any(
        isinstance(m, nn.modules.batchnorm._NormBase)
        and m.num_batches_tracked is not None
        and int(m.num_batches_tracked) >= TRAINED
        for m in model.modules()
    )
    # Adagrad has a state from the start, whose steps are still 0
    stepped = any(float(state.get("step", 1)) > 0 for o in optimizers for state in o.state.values())
    if counted or stepped:
        why = "its batch norms have counted batches" if counted else "its optimizer has a state"
        warnings.warn(
            f"this model seems to have been trained ({why}), and growth starts from a small seed of it, with units "
            'that are chosen by chance. To keep the strongest, pass seed_style="pretrained".',
            stacklevel=CALLER,
        )


def warn_of_another_optimizer(model: nn.Module, optimizers: Sequence[Optimizer], steps: int) -> bool:
    """Warn if there are gradients, so that something was trained, and none of the optimizers has stepped.

    Where gradients are not finite, a gradient scaler may have skipped all steps.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None] if steps == 0 else []
    found = bool(gradients) and all(are_finite(gradients))
    if found:
        names = ", ".join(type(o).__name__ for o in optimizers)
        warnings.warn(
            f"the model has gradients, but the Grower's optimizer ({names}) has not stepped in this epoch. An "
            "optimizer that was made after the Grower, or that it was not given, holds parameters that the Grower "
            "has replaced, and trains nothing. Make it before the Grower, from model.parameters(), and pass it.",
            stacklevel=CALLER,
        )
    return found


def warn_of_copies(model: nn.Module, known: Iterable[nn.Module], begun: bool) -> None:
    """Warn of a moving average of the model that will not be resized with it: its next update would fail.

    Args:
        model: the model as it is now.
        known: modules that are no such copy, or are resized too.
        begun: whether training has begun. Before, a copy counts only in a wrapper that is called an average; after it,
            any whose weights were written since they were copied.
    """
    known = list(known)
    if _copies(model, known, begun):
        gc.collect()  # tracing leaves copies in cycles, which nobody holds
        if _copies(model, known, begun):
            warnings.warn(
                f"there is a copy of this {type(model).__name__} that the Grower does not know. If it is a moving "
                "average (EMA), its next update will fail, because the model changes its shapes and the copy does "
                "not. Pass copies=[ema] to the Grower, or call grower.add_copy(ema) for one that was made later.",
                stacklevel=CALLER,
            )


def _copies(model: nn.Module, known: Iterable[nn.Module], begun: bool) -> list[nn.Module]:
    """What may be a moving average, of all objects of the process."""
    shapes, own, passed = _shapes(model), {id(p) for p in model.parameters()}, {id(m) for m in known}
    # an object refers to its class; one that is being made has no contents yet
    alike = [m for m in gc.get_referrers(type(model)) if type(m) is type(model) and "_modules" in vars(m)]
    # what shares weights with the model, as wrappers of it do, follows it
    copies = [m for m in alike if id(m) not in passed and own.isdisjoint(map(id, m.parameters()))]
    copies = [m for m in copies if _shapes(m) == shapes]
    if begun or not copies:
        return [m for m in copies if all(p._version for p in m.parameters())]
    modules = [found for found in gc.get_objects() if issubclass(type(found), nn.Module) and "_modules" in vars(found)]
    averages = [m for m in modules if any(word in type(m).__name__.lower() for word in ("average", "ema"))]
    averaged = {id(child) for m in averages for child in m.children()}
    return [m for m in copies if id(m) in averaged]


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def refuse_lost_weights(model: nn.Module) -> None:
    """Stop where weights are no longer numbers: no gradient would ever count again, and growth would go on blindly.

    Raises:
        TrainingError: naming them.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    finite = are_finite(list(trained.values()))
    lost = [name for name, counts in zip(trained, finite, strict=True) if not counts]
    if lost:
        raise TrainingError(
            f"{len(lost)} parameters are not finite any more ({', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}), "
            "so that nothing can be measured on this network. Look for a loss that is not finite, and go on from the "
            "last checkpoint with a lower learning rate."
        )


def warn_of_more_epochs(epoch: int, epochs: int) -> None:
    """Warn, once, if more epochs ended than were said."""
    if epoch == epochs + 1:
        warnings.warn(
            f"end_epoch was called {epoch} times, but the Grower was made with epochs={epochs}. If it is called more "
            "than once an epoch, the network grew too fast: call it once. Longer training leaves the network as it is.",
            stacklevel=CALLER,
        )


def warn_of_unfinished(epoch: int, epochs: int, load: float, budget: str) -> None:
    """Warn if growth was ended before the network had its final size."""
    warnings.warn(
        f"finish() after {epoch} of {epochs} epochs, before the network has its final size: it costs {load:.1%} of "
        f"what the budget {budget} allows. To end earlier, give the Grower fewer epochs.",
        stacklevel=CALLER,
    )


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
    """Raise unless the state was saved by a Grower of the same model, budget and options.

    Args:
        own: of this Grower.
        state: that was saved.
        of_method: entries that the way of growing adds.

    Raises:
        CheckpointError: saying what differs.
    """
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
    """Stop if the state of an optimizer belongs to another network than the present one: it was loaded too early.

    Raises:
        CheckpointError: naming the optimizer, a parameter and both shapes.
    """
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


@contextmanager
def changed_since() -> Iterator[None]:
    """While entered, whatever goes wrong with a saved state is said as such: a changed one can be wrong in many ways.

    Raises:
        CheckpointError: something did.
    """
    try:
        yield
    except ApicalError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"the saved growth state does not fit ({type(error).__name__}: {error}): it was changed since it was "
            "saved, or written by another version. Build model, optimizer and Grower anew; these are half restored."
        ) from error


def _shown(groups: Any) -> str:
    items = [f"{k} ({v})" for k, v in groups.items()] if isinstance(groups, Mapping) else [repr(groups)]
    return ", ".join(items[:5]) + (" …" if len(items) > 5 else "")
