"""Options as frozen dataclasses: changed by name, checked by type, every problem said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from math import isfinite
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from apical.errors import ConfigError

Config = TypeVar("Config")


def changed(config: Config, options: Mapping[str, Any]) -> Config:
    """A config with single options changed.

    Raises:
        ConfigError: an option does not exist or cannot have this value.
    """
    known = [f.name for f in fields(config)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; options are {', '.join(known)}"
            raise ConfigError(f"Grower has no option {option!r}{hint}")
    return replace(config, **options)  # type: ignore[type-var]


def check_options(config: Any, wrong_values: Callable[[], Iterator[str]]) -> None:
    """Refuse a config with values of the wrong type or, where all types are right, out of range.

    Raises:
        ConfigError: it names all of them.
    """
    hints = get_type_hints(type(config))
    problems = [p for f in fields(config) for p in _wrong_type(f.name, hints[f.name], getattr(config, f.name))]
    problems = problems or list(wrong_values())
    if problems:
        raise ConfigError("growth options: " + "; ".join(problems))


def wrong_times(config: Any) -> Iterator[str]:
    """What is wrong with the options that both ways of growing have."""
    for name, value in (("growth_end", config.growth_end), ("freeze_at", config.freeze)):
        if not 0 < value <= 1:
            yield f"{name} must be in (0, 1], got {value!r}"
    if config.freeze < config.growth_end:
        yield f"freeze_at ({config.freeze_at}) lies before growth_end ({config.growth_end})"
    for name in ("interval", "divisor", "min_units"):
        value = getattr(config, name)
        if value != "auto" and value < 1:
            yield f"{name} must be a whole number of at least 1, got {value!r}"
    if config.seed < 0:
        yield f"seed must not be negative, got {config.seed!r}"


def numeric_divisor(divisor: Any) -> int:
    """The divisor as a number.

    Raises:
        ConfigError: it is still to be measured.
    """
    if isinstance(divisor, int):
        return divisor
    raise ConfigError(
        f"divisor={divisor!r} has not been measured here; give a number, or the one that another run of this model "
        "measured on this device (`divisor` in its summary.json)"
    )


def _wrong_type(name: str, hint: Any, value: Any) -> Iterator[str]:
    if value is None and type(None) in get_args(hint):
        return
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            yield f"{name} must be one of {', '.join(map(repr, get_args(hint)))}, got {value!r}"
    elif name == "ignore":
        if not isinstance(value, (tuple, list)) or any(not isinstance(v, str) for v in value):
            yield f"ignore must be a tuple of module paths, got {value!r}"
    elif hint is bool:
        if not isinstance(value, bool):
            yield f"{name} must be True or False, got {value!r}"
    elif hint == int | Literal["auto"]:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool)):
            yield f"{name} must be a whole number or 'auto', got {value!r}"
    elif hint is int:
        if not isinstance(value, int) or isinstance(value, bool):
            yield f"{name} must be a whole number, got {value!r}"
    elif not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
        yield f"{name} must be a finite number, got {value!r}"
