"""What of a run's length makes it unlikely to learn anything, said before it starts."""

from __future__ import annotations

from apical.training._config import TrainingConfig
from apical.training._optimizer import lr_factor

FEW_STEPS = 30  # fewer do not train a network from scratch
LONG_WARMUP = 0.5  # share of a run


def doubts(config: TrainingConfig, steps_per_epoch: int) -> list[str]:
    """Sentences for people about a run that is too short to learn; none if it is not.

    Example:
        >>> doubts(TrainingConfig(epochs=1), steps_per_epoch=1)[0][:73]
        'this run makes 1 training step in all (epochs=1, batches of 128): a netwo'
    """
    steps, warmup = config.epochs * steps_per_epoch, config.schedule.warmup_epochs
    found = []
    if steps < FEW_STEPS:
        found.append(
            f"this run makes {steps} training step{'s' * (steps != 1)} in all (epochs={config.epochs}, batches of "
            f"{config.batch_size}): a network hardly learns in so few. Raise epochs, lower batch_size, or add data."
        )
    largest = max((_factor(config, step, steps_per_epoch) for step in range(min(steps, FEW_STEPS))), default=0.0)
    if largest == 0:
        found.append("its learning rate is 0 at every step: nothing is learned. Set warmup_epochs=0.")
    elif warmup >= LONG_WARMUP * config.epochs:
        found.append(
            f"the learning rate still rises for {warmup:g} of {config.epochs} epochs (warmup_epochs). Shorten the "
            "warm-up, or train longer."
        )
    return found


def _factor(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    return lr_factor(step / steps_per_epoch, config.epochs, config.schedule)
