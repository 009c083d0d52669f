"""Options as frozen dataclasses: changed by name, checked by type, every problem said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from math import isfinite
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from apical._checks import fits, in_words, nearest, shown
from apical.errors import ConfigError

Config = TypeVar("Config")


def changed(config: Config, options: Mapping[str, Any]) -> Config:
    """A config with single options changed."""
    known = [f.name for f in fields(config)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            hint = nearest(option, known, f"; options are {', '.join(known)}")
            raise ConfigError(f"Grower has no option {option!r}{hint}")
    return replace(config, **options)  # type: ignore[type-var]


def check_options(config: Any, wrong_values: Callable[[], Iterator[str]]) -> None:
    """Refuse a config with values of the wrong type or, where all types are right, out of range."""
    hints = get_type_hints(type(config))
    problems = [p for f in fields(config) for p in _wrong_type(f.name, hints[f.name], getattr(config, f.name))]
    problems = problems or list(wrong_values())
    if problems:
        raise ConfigError("growth options: " + "; ".join(problems))


def _wrong_type(name: str, hint: Any, value: Any) -> Iterator[str]:
    told = tuple(value) if isinstance(value, list) else value
    if not fits(told, hint) or (isinstance(value, float) and not isfinite(value)):
        near = nearest(value, get_args(hint)) if get_origin(hint) is Literal and isinstance(value, str) else ""
        yield f"{name} must be {in_words(hint)}, got {shown(value)}{near}"


def wrong_times(config: Any) -> Iterator[str]:
    """What is wrong with the options that both ways of growing have."""
    if config.growth_end != "auto" and not 0 < config.growth_end <= 1:
        yield f"growth_end must be in (0, 1], got {config.growth_end!r}"
    for name in ("interval", "divisor", "min_units"):
        value = getattr(config, name)
        if value != "auto" and value < 1:
            yield f"{name} must be a whole number of at least 1, got {value!r}"
    if config.seed < 0:
        yield f"seed must not be negative, got {config.seed!r}"


class HasDivisor:
    """A config with a divisor, which may be still to be measured."""

    divisor: int | Literal["auto"]

    @property
    def step(self) -> int:
        """The divisor as a number.

        Raises:
            ConfigError: it is still to be measured.
        """
        if isinstance(self.divisor, int):
            return self.divisor
        raise ConfigError(
            f"divisor={self.divisor!r} has not been measured here; give a number, or the one that another run of this "
            "model measured on this device (`divisor` in its summary.json)"
        )
