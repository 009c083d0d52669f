"""What the network may cost at each point of training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, TypeVar

from apical.errors import ConfigError

RESTRUCTURINGS = 16  # that growth should have at least, where it can be restructured between steps
SHORTEST = 8  # steps of an interval that is chosen here: fewer measure little

Config = TypeVar("Config", bound=Any)


class Times(Protocol):
    """The options that say when: of either way of growing."""

    @property
    def growth_end(self) -> float: ...
    @property
    def freeze(self) -> float: ...


def scheduled_load(config: Times, progress: float, seed_load: float) -> float:
    """Scheduled cost, as a fraction of the budget, after a fraction of training.

    Goes linearly from the seed's cost to 1 at ``growth_end``: up from a small seed, down from one that costs more than
    the budget.

    Example:
        >>> from apical.growth import GrowthConfig
        >>> config = GrowthConfig(growth_end=0.5)
        >>> [round(scheduled_load(config, p, 0.2), 2) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.2, 0.6, 1.0, 1.0]
        >>> scheduled_load(config, 0.25, 2.0)
        1.5
    """
    done = min(1.0, progress / config.growth_end)
    return seed_load + (1 - seed_load) * done


def every(interval: int | str) -> int:
    """An interval as a number: that `with_interval` has found."""
    assert isinstance(interval, int)
    return interval


def is_last(config: Times, done: int, total: int, interval: int) -> bool:
    """Whether the restructuring after ``done`` of ``total`` epochs (or steps) is the last one, which meets the budget.

    It is the first at or after ``freeze_at``, or the last that fits into training.

    Example:
        >>> from apical.growth import GrowthConfig
        >>> [is_last(GrowthConfig(growth_end=1.0), done, 4, 1) for done in (1, 2, 3)]
        [False, False, True]
    """
    return done / total >= config.freeze or done + interval >= total


def with_interval(config: Config, epochs: Any, steps_per_epoch: Any) -> tuple[Config, int]:
    """The config with a number and a unit for its interval, and the length of the whole training in that unit.

    Args:
        config: with ``interval``, ``interval_unit``, ``freeze``.
        epochs: of the whole training.
        steps_per_epoch: None if the loop does not say when a step ends.

    Raises:
        ConfigError: a number that is needed is no whole number of at least 1.

    Example:
        >>> from apical.growth import GrowthConfig
        >>> config, length = with_interval(GrowthConfig(), epochs=10, steps_per_epoch=200)
        >>> config.interval, config.interval_unit, length
        (50, 'steps', 2000)
    """
    unit = config.interval_unit
    if unit == "auto":
        unit = "epochs" if steps_per_epoch is None else "steps"
    wanted = {"epochs": epochs} | ({"steps_per_epoch": steps_per_epoch} if unit == "steps" else {})
    length = 1
    for name, value in wanted.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            hint = ' (interval_unit="steps" needs it)' if name == "steps_per_epoch" else ""
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}{hint}")
        length *= value
    interval = config.interval
    if interval == "auto":
        often = max(SHORTEST, round(config.freeze * length) // RESTRUCTURINGS)
        interval = 1 if unit == "epochs" else min(steps_per_epoch, often)
    return replace(config, interval=interval, interval_unit=unit), length
