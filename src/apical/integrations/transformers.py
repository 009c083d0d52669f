"""A callback for Hugging Face's Trainer, and folders for grown models of transformers."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

try:
    import transformers
    from transformers import (
        AutoConfig,
        PreTrainedModel,
        TrainerCallback,
        TrainerControl,
        TrainerState,
        TrainingArguments,
    )
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}. Install it with: pip install 'apical[integrations]'", name=error.name
    ) from error

from apical.budget import Budget
from apical.errors import ConfigError, LoadError, SaveError
from apical.export import load, save
from apical.growth import Grower
from apical.structure import Call, ExampleInputs

COMPACT = "compact"  # the folder in the folder that holds the smaller weights
WHOLE = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def save_pretrained(model: Any, save_directory: str | Path, **_: Any) -> None:
    """Write a grown transformers model in a form that `from_pretrained` below reads.

    No config of a family says that one layer has three heads and the next five, or that a layer is missing. A model's
    own ``save_pretrained`` would write the config of the full-size model beside the smaller weights, and what is
    missing would be drawn anew when they are loaded. So this writes the full-size config and, under ``compact/``, what
    `apical.save` writes; transformers' own ``from_pretrained`` finds no weights beside the config and says so.

    Args:
        model: the model, grown or not.
        save_directory: the folder; what it held of another model is replaced.

    Raises:
        SaveError: the model is no transformers model, or the folder holds weights that such a model's own
            ``save_pretrained`` wrote.

    Example: see examples/transformers_llama.py.
    """
    if not isinstance(model, PreTrainedModel):
        raise SaveError(f"save_pretrained takes a transformers model, got {type(model).__name__}: use apical.save")
    folder = Path(save_directory)
    weights = [name for name in WHOLE if (folder / name).exists()]
    if weights:
        raise SaveError(f"{folder} holds the {weights[0]} of another model, which would be taken for this one's: "
                        "choose another folder")  # fmt: skip
    save(model, folder / COMPACT)
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def from_pretrained(save_directory: str | Path, model_class: type[Any] | None = None) -> Any:
    """Read a model that `save_pretrained` above wrote: built at full size, then made as small as it was saved.

    Args:
        save_directory: the folder.
        model_class: the model's class, if it is none of transformers' own.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        LoadError: there is no such folder, or its model does not fit the class.
    """
    folder = Path(save_directory)
    if not (folder / "config.json").is_file() or not (folder / COMPACT).is_dir():
        raise LoadError(f"{folder} has no config.json with a folder {COMPACT} beside it, which this module's "
                        "save_pretrained writes; for others use from_pretrained of the model's class")  # fmt: skip
    config = AutoConfig.from_pretrained(folder)
    names = list(config.architectures or ())
    model_class = model_class or getattr(transformers, names[0] if names else "", None)
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise LoadError(f"{folder} holds a {names or 'model'}, which transformers does not have: pass model_class")
    return load(model_class(config), folder / COMPACT).eval()


class GrowthCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Grows the model while `Trainer.train` trains it.

    The model shrinks to its seed when training begins and is restructured at the end of every epoch. The learning-rate
    scheduler, gradient accumulation and clipping are the Trainer's own. From then on the model's ``save_pretrained``,
    which the Trainer calls for checkpoints, writes what `from_pretrained` of this module reads.

    Args:
        example_inputs: arguments of one call of the model, on the CPU; MACs are priced at this call.
        budget: what the final network may cost.
        options: further arguments of `apical.Grower`, such as ``divisor=8``.

    Attributes:
        grower: the Grower, from the beginning of training on.

    Raises:
        ConfigError: when training begins: the number of epochs is not whole, training is resumed (the Trainer loads
            weights into the full-size model, which they do not fit), or the Trainer wraps the model.

    Example: see examples/transformers_callback.py.
    """

    def __init__(self, example_inputs: ExampleInputs, budget: Budget | str, **options: Any) -> None:
        self._inputs = Call.of(example_inputs)
        self._budget = budget
        self._options = options
        self.grower: Grower | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the Grower."""
        epochs = args.num_train_epochs
        problems = {
            f"num_train_epochs={epochs}, expected a whole number": epochs == int(epochs) and epochs >= 1,
            f"max_steps={args.max_steps}, expected -1: growth counts epochs": args.max_steps <= 0,
            f"training is resumed at step {state.global_step}, which this Trainer cannot": not state.global_step,
            f"{args.world_size} processes and {args.n_gpu} GPUs, expected one": args.world_size == 1
            and args.n_gpu <= 1,
        }
        broken = [rule for rule, holds in problems.items() if not holds]
        if broken:
            raise ConfigError("GrowthCallback: " + "; ".join(broken))
        model: nn.Module = kwargs["model"]
        optimizer = getattr(kwargs["optimizer"], "optimizer", kwargs["optimizer"])  # Accelerate wraps it
        device = next(model.parameters()).device
        inputs = self._inputs.to(device)
        self.grower = Grower(model, optimizer, inputs, self._budget, int(epochs), **self._options)
        if isinstance(model, PreTrainedModel):
            vars(model)["save_pretrained"] = MethodType(save_pretrained, model)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restructures; the record is in ``grower.history``."""
        assert self.grower is not None
        self.grower.end_epoch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the model final."""
        if self.grower is not None:
            self.grower.finish()
