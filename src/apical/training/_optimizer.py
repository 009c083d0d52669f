"""The optimizer, the learning rate as a pure function of the step, and runs too short for either to learn."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from apical.errors import ConfigError
from apical.training._config import OptimizerConfig, ScheduleConfig, TrainingConfig

POLY_POWER = 0.9


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer of all parameters that require gradients.

    With `decay_vectors=False`, one-dimensional parameters form a second group without weight decay.

    Example:
        >>> optimizer = build_optimizer(nn.Linear(2, 3), OptimizerConfig(decay_vectors=False))
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.0001), (1, 0.0)]
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ConfigError(
            f"build_optimizer: {type(model).__name__} has no parameter with requires_grad=True; nothing can be learned"
        )
    decayed = [p for p in params if config.decay_vectors or p.ndim > 1]
    kept = [p for p in params if not config.decay_vectors and p.ndim <= 1]
    groups = [
        {"params": members, "weight_decay": decay}
        for members, decay in ((decayed, config.weight_decay), (kept, 0.0))
        if members
    ]
    if config.name == "adamw":
        return AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def lr_factor(epoch: float, epochs: float, config: ScheduleConfig) -> float:
    """Learning rate as a factor of its peak, in [0, 1].

        warm-up   e / w                                       for e < w, w = warmup_epochs
        cosine    (1 + cos(π (e − w) / (E − w))) / 2
        poly      (1 − (e − w) / (E − w))^0.9                 (Chen et al. 2017, arXiv:1706.05587)
        step      γ^(number of milestones ≤ e)
        decay     γ^(⌊e − c⌋ + 1) for e ≥ c, else 1,  c = constant_epochs

    Args:
        epoch: e, epochs so far; fractions within an epoch.
        epochs: E, epochs in all.
        config: the schedule.

    Example:
        >>> [round(lr_factor(e, 10, ScheduleConfig(warmup_epochs=2)), 3) for e in (0, 1, 2, 6, 10)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
        >>> [lr_factor(e, 10, ScheduleConfig(name="step", milestones=(5, 8), gamma=0.5)) for e in (0, 5, 9)]
        [1.0, 0.5, 0.25]
        >>> zaremba = ScheduleConfig("decay", constant_epochs=4, gamma=0.5)  # arXiv:1409.2329, the small network
        >>> [lr_factor(e, 13, zaremba) for e in (0, 3.9, 4, 5, 6.5)]
        [1.0, 1.0, 0.5, 0.25, 0.125]
        >>> [round(lr_factor(e, 10, ScheduleConfig(name="poly")), 3) for e in (0, 5, 10)]
        [1.0, 0.536, 0.0]
    """
    warmup = config.warmup_epochs
    if epoch < warmup:
        return epoch / warmup
    if config.name == "step":
        return config.gamma ** sum(milestone <= epoch for milestone in config.milestones)
    if config.name == "decay":
        started = math.floor(epoch - config.constant_epochs) + 1
        return float(config.gamma ** max(0, started))
    if config.name == "constant":
        return 1.0
    done = min(1.0, (epoch - warmup) / (epochs - warmup))
    return (1 - done) ** POLY_POWER if config.name == "poly" else (1 + math.cos(math.pi * done)) / 2


def set_lr_(optimizer: Optimizer, factor: float) -> float:
    """Set every group's learning rate to its peak times `factor`, and return that of the first group.

    The peak is the group's `initial_lr`, as torch's schedulers call it, taken from `lr` when first seen. So the
    schedule has no state of its own: it survives restructuring and resuming as the optimizer does.

    Example:
        >>> set_lr_(build_optimizer(nn.Linear(2, 3), OptimizerConfig(lr=0.5)), 0.1)
        0.05
    """
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
    return float(optimizer.param_groups[0]["lr"])


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
    largest = max(
        (lr_factor(i / steps_per_epoch, config.epochs, config.schedule) for i in range(min(steps, FEW_STEPS))),
        default=0.0,
    )
    if largest == 0:
        found.append("its learning rate is 0 at every step: nothing is learned. Set warmup_epochs=0.")
    elif warmup >= LONG_WARMUP * config.epochs:
        found.append(
            f"the learning rate still rises for {warmup:g} of {config.epochs} epochs (warmup_epochs). Shorten the "
            "warm-up, or train longer."
        )
    return found
