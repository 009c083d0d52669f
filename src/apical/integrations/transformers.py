"""A callback for Hugging Face's Trainer."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from apical.budget import Budget
from apical.errors import ConfigError
from apical.growth import Grower
from apical.structure import Call, ExampleInputs


class GrowthCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Grows the model while `Trainer.train` trains it.

    The model shrinks to its seed when training begins and is restructured at the end of every epoch. The learning-rate
    scheduler, gradient accumulation and clipping are the Trainer's own.

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
        """Makes the Grower."""
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

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restructures; the record is in ``grower.history``."""
        assert self.grower is not None
        self.grower.end_epoch()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Makes the model final."""
        if self.grower is not None:
            self.grower.finish()
