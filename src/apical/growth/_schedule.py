"""What the network may cost at each point of training."""

from __future__ import annotations

from typing import Any

from apical.errors import ConfigError
from apical.growth._config import GrowthConfig


def scheduled_load(config: GrowthConfig, progress: float, seed_load: float) -> float:
    """Scheduled cost, as a fraction of the budget, after a fraction of training.

    Goes from the seed's cost to 1 at ``growth_end``, linearly or geometrically: up from a small seed, down from one
    that costs more than the budget.

    Example:
        >>> config = GrowthConfig(growth_end=0.5)
        >>> [round(scheduled_load(config, p, 0.2), 2) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.2, 0.6, 1.0, 1.0]
        >>> scheduled_load(config, 0.25, 2.0)
        1.5
    """
    done = min(1.0, progress / config.growth_end)
    if config.schedule == "geometric":
        return float(seed_load ** (1 - done))
    return seed_load + (1 - seed_load) * done


def is_last(config: GrowthConfig, done: int, total: int, interval: int) -> bool:
    """Whether the restructuring after ``done`` of ``total`` epochs (or steps) is the last one, which meets the budget.

    It is the first at or after ``freeze_at``, or the last that fits into training.

    Example:
        >>> [is_last(GrowthConfig(growth_end=1.0), done, 4, 1) for done in (1, 2, 3)]
        [False, False, True]
    """
    return done / total >= config.freeze or done + interval >= total


def training_length(config: GrowthConfig, epochs: Any, steps_per_epoch: Any) -> int:
    """Epochs or steps of the whole training, in the unit of the interval.

    Raises:
        ConfigError: a number that is needed is no whole number of at least 1.
    """
    wanted = {"epochs": epochs} | ({"steps_per_epoch": steps_per_epoch} if config.interval_unit == "steps" else {})
    length = 1
    for name, value in wanted.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            hint = ' (interval_unit="steps" needs it)' if name == "steps_per_epoch" else ""
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}{hint}")
        length *= value
    return length
