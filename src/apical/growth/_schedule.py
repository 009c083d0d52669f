"""Numbers in the place of what a config leaves open, and what the network may cost at each point of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from apical._checks import LARGEST, shown
from apical.budget import Budget
from apical.errors import ConfigError
from apical.structure import Structure
from apical.timing import DIVISORS, DivisorChoice
from apical.timing._divisor import divisor_for

RESTRUCTURINGS = 16  # that growth should have at least
SHORTEST = 8  # steps of an interval that is chosen here: fewer measure little
EARLIEST, LATEST = 0.25, 0.4  # end of growth that is chosen here

Config = TypeVar("Config", bound=Any)


@dataclass(frozen=True)
class Schedule:
    """When the network changes, and what it may cost then. Times count in the unit of the interval.

    Example:
        >>> schedule = Schedule(growth_end=0.5, interval=1, length=4)
        >>> [round(schedule.load(done, seed_load=0.2), 2) for done in (0, 1, 2, 4)]
        [0.2, 0.6, 1.0, 1.0]
        >>> schedule.load(1, seed_load=2.0)
        1.5
        >>> [schedule.is_last(done) for done in (1, 2)]
        [False, True]
    """

    growth_end: float  # when the cost reaches the budget and restructuring ends, as a fraction of training
    interval: int  # from one restructuring to the next
    length: int  # of training

    @staticmethod
    def of(config: Any, length: int) -> Schedule:
        """What a config says of either way of growing; its interval is a number (`with_times`)."""
        return Schedule(config.growth_end, config.interval, length)

    @property
    def at_once(self) -> bool:
        """Whether there is no time to restructure, so that training starts with the final network."""
        return self.interval >= self.length

    def due(self, done: int) -> bool:
        """Whether a restructuring falls after ``done``."""
        return done % self.interval == 0 and done < self.length

    def is_last(self, done: int) -> bool:
        """Whether the restructuring after ``done`` is the last, which meets the budget.

        It is the first at or after ``growth_end``, or the last that fits into training.
        """
        return done / self.length >= self.growth_end or done + self.interval >= self.length

    def load(self, done: int, seed_load: float) -> float:
        """Scheduled cost after ``done``, as a fraction of the budget.

        Goes linearly from the seed's cost to 1: up from a small seed, down from one that costs more than the budget.
        """
        grown = min(1.0, done / self.length / self.growth_end)
        return 1.0 if self.is_last(done) else seed_load + (1 - seed_load) * grown


def with_times(config: Config, epochs: Any, steps_per_epoch: Any) -> tuple[Config, int]:
    """The config with numbers for its interval and the end of growth, and the length of training in its unit.

    Args:
        config: with ``interval``, ``interval_unit``, ``growth_end``.
        epochs: of the whole training.
        steps_per_epoch: None if the loop does not say when a step ends.

    Example:
        >>> from apical.growth import GrowthConfig
        >>> config, length = with_times(GrowthConfig(), epochs=10, steps_per_epoch=200)
        >>> config.interval, config.interval_unit, length
        (31, 'steps', 2000)
        >>> with_times(GrowthConfig(), epochs=50, steps_per_epoch=None)[0].growth_end
        0.32
    """
    unit = config.interval_unit
    if unit == "auto":
        unit = "epochs" if steps_per_epoch is None else "steps"
    wanted = {"epochs": epochs} | ({"steps_per_epoch": steps_per_epoch} if unit == "steps" else {})
    length = 1
    for name, value in wanted.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            hint = ' (interval_unit="steps" needs it)' if name == "steps_per_epoch" else ""
            raise ConfigError(f"{name} must be a whole number of at least 1, got {shown(value)}{hint}")
        length *= value
        if length > LARGEST:
            raise ConfigError(f"{name} makes the training too long, expected at most {LARGEST} {unit} in all")
    interval, end = config.interval, config.growth_end
    chosen = interval == "auto"
    if chosen:
        interval = 1 if unit == "epochs" else min(steps_per_epoch, SHORTEST)
    # early, since what is trained while the network is small counts little at the end of a long training
    if end == "auto":
        end = min(LATEST, max(EARLIEST, RESTRUCTURINGS * interval / length))
    if chosen and unit == "steps":
        interval = min(steps_per_epoch, max(SHORTEST, round(end * length) // RESTRUCTURINGS))
    return replace(config, interval=interval, interval_unit=unit, growth_end=end), length


def choose_divisor(
    model: nn.Module, structure: Structure, example_inputs: tuple[Any, ...], budget: Budget, config: Config
) -> tuple[Config, DivisorChoice | None]:
    """The config with a number for its divisor, and what was measured if it was to be measured.

    Of several processes the first one measures, for all.

    Args:
        model: the template.
        structure: of it.
        example_inputs: arguments of one call, whose batch is measured.
        budget: near whose widths it is measured.
        config: returned as it is if its divisor is a number.
    """
    if config.divisor != "auto":
        return config, None
    choice = divisor_for(model, structure, example_inputs, budget)
    return replace(config, divisor=choice.divisor), choice


def adopted_divisor(config: Config, state: Any) -> Config:
    """The config with the divisor that a saved growth state measured, if it names one that can be measured."""
    identity = state.get("identity") if isinstance(state, Mapping) else None
    saved = identity.get("divisor") if isinstance(identity, Mapping) else None
    if isinstance(saved, int) and not isinstance(saved, bool) and saved in DIVISORS:
        return replace(config, divisor=saved)
    return config
