"""What a Grower refuses or warns of: faults of a user's loop that no error of torch would tell."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from apical._memory_format import has_channels_last, safe_channels, unsafe_in_channels_last
from apical.budget._rounding import rounding_step
from apical.errors import ConfigError, TrainingError
from apical.resizing._shards import are_finite
from apical.structure import Structure

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


class WeightsToLoad:
    """The weights of a model as they are when a Grower's state was loaded: theirs is to be loaded after it.

    Args:
        model: resized to the state, with values that are not the state's.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._written = self._writes()

    def _writes(self) -> list[tuple[int, int, int]]:
        return [(id(p), p._version, p.data_ptr()) for p in self._model.parameters()]

    def warn(self) -> None:
        """Warn if nothing was loaded into any of them."""
        if self._writes() == self._written:
            warnings.warn(
                "a Grower's state was loaded, and the model's weights were not loaded after it: this step trains those "
                "that the model happened to have. Load the Grower's state first, then those of model and optimizer.",
                stacklevel=5,  # the line that calls the optimizer's step
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
            'that are chosen by chance. To keep the strongest, pass seed_style="pretrained", and seed_fraction=1 to '
            "start with as many as the budget allows.",
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


def refuse_inference(model: object) -> None:
    """Stop where the model was made under ``torch.inference_mode()``: no gradient ever reaches such weights."""
    tensors = model.named_parameters() if isinstance(model, nn.Module) else ()
    made = next((name for name, p in tensors if p.is_inference()), None)
    if made is not None:
        raise ConfigError(
            f"{made} was made under torch.inference_mode(), so that it cannot be trained: build the model outside of it"
        )


def refuse_without_values(model: nn.Module) -> None:
    """Stop where the model was moved to the meta device after the Grower was made."""
    meta = next((name for name, p in model.named_parameters() if p.is_meta), None)
    if meta is not None:
        raise TrainingError(
            f"{meta} is on the meta device, where weights have no values; the Grower was made with a model that had "
            "some. Leave the model on its device, and load the last checkpoint."
        )


def refuse_lost_weights(model: nn.Module) -> None:
    """Stop where weights are no longer numbers: no gradient would ever count again, and growth would go on blindly."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    finite = are_finite(list(trained.values()))
    lost = [name for name, counts in zip(trained, finite, strict=True) if not counts]
    if lost:
        raise TrainingError(
            f"{len(lost)} parameters are not finite any more ({', '.join(lost[:3])}{' …' if len(lost) > 3 else ''}), "
            "so that nothing can be measured on this network. Look for a loss that is not finite, and go on from the "
            "last checkpoint with a lower learning rate."
        )


def warn_of_channels_last(model: nn.Module, structure: Structure, divisor: int) -> None:
    """Warn of layers that may damage memory in channels-last order on this processor once they are narrow."""
    if not has_channels_last(model):
        return
    safe, read = safe_channels(), {m.tensor: g.size for g in structure.groups for m in g.members if m.dim == 1}
    # a small group changes by single units, whatever the divisor
    least = {name: rounding_step(read.get(f"{name}.weight", 0), divisor) for name in unsafe_in_channels_last(model)}
    names = [name for name, step in least.items() if step < safe]
    if names:
        warnings.warn(
            f"the model is in channels-last order and has 1x1 convolutions with a stride ({', '.join(names[:5])}): "
            f"with fewer than {safe} input channels, torch's backward pass of them damages memory on this "
            "processor. Leave out model.to(memory_format=torch.channels_last).",
            stacklevel=4,
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
