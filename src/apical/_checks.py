"""Options as frozen dataclasses: made from plain containers, checked by type and by rule, all problems said at once."""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from apical.errors import ApicalError, CheckpointError, ConfigError

T = TypeVar("T")
LARGEST = 2**63 - 1  # what torch, files and clocks can count to


def check(where: str, rules: Mapping[str, bool]) -> None:
    """Refuse what breaks a rule; all broken rules are named."""
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ConfigError(f"{where}: " + "; ".join(broken))


@contextmanager
def changed_since(what: str, mend: str) -> Iterator[None]:
    """Whatever goes wrong with a saved state is said as such: a changed one can be wrong in many ways.

    Args:
        what: the state, in words.
        mend: what to do, and what state that leaves which it was loaded into.
    """
    try:
        yield
    except ApicalError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{what} does not fit ({type(error).__name__}: {error}): it was changed since it was saved, or written by "
            f"another version. {mend}."
        ) from error


def build(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a mapping as JSON holds it: lists become tuples, mappings dataclasses where the field is one."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: expected a mapping of {list(get_type_hints(kind))}, got {values!r}")
    hints = {f.name: get_type_hints(kind)[f.name] for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    problems = [f"unknown key {name!r}{nearest(str(name), hints)}" for name in values if name not in hints]
    needed = [
        f.name
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.init and f.default is f.default_factory is dataclasses.MISSING
    ]
    problems += [f"{name} is missing; expected {in_words(hints[name])}" for name in needed if name not in values]
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name in hints:
            hint = hints[name]
            if isinstance(hint, type) and dataclasses.is_dataclass(hint) and not isinstance(value, hint):
                made[name] = build(hint, value, name)
                continue
            made[name] = tuple(value) if get_origin(hint) is tuple and isinstance(value, list) else value
            if not fits(made[name], hint):
                size = f", expected at most {LARGEST}" if isinstance(value, int) and abs(value) > LARGEST else ""
                problems.append(f"{name}: expected {in_words(hint)}, got {shown(value)}{size}")
    if problems:
        raise ConfigError(f"{where}: " + "; ".join(problems))
    return kind(**made)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field; whole numbers of more than 64 bits fit none.

    Example:
        >>> fits(1, float), fits(True, int), fits((1, 2), tuple[int, ...]), fits(None, int | None)
        (True, False, True, True)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, arguments[0]) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if isinstance(value, int) and hint in (int, float) and not -LARGEST <= value <= LARGEST:
        return False
    return isinstance(value, (int, float) if hint is float else origin or hint)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings under dotted names.

    Example:
        >>> dict(flattened({"a": 1, "b": {"c": [1, 2], "d": {}}}))
        {'a': 1, 'b.c': [1, 2], 'b.d': {}}
    """
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def shown(value: Any) -> str:
    """What was got, for an error: a short value as it is written, of anything longer, such as a model, its type.

    Example:
        >>> shown("1%"), shown([0] * 99)
        ("'1%'", 'a list')
    """
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    kind = type(value).__name__
    return text if len(text) <= 60 and "\n" not in text else f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def as_path(value: Any, what: str, error: type[ApicalError]) -> Path:
    """The path that an argument names.

    Raises:
        ApicalError: (of the class ``error``) it is neither a text nor a path.

    Example:
        >>> as_path(3, "folder", ConfigError)
        Traceback (most recent call last):
        apical.errors.ConfigError: folder must be a path, such as 'runs/a', got 3
    """
    if not isinstance(value, (str, PathLike)) or not isinstance(fspath(value), str):
        raise error(f"{what} must be a path, such as 'runs/a', got {shown(value)}")
    return Path(value)


def in_words(hint: Any) -> str:
    """A type, for people.

    Example:
        >>> in_words(tuple[int, ...]), in_words(float | None), in_words(Literal["sgd", "adamw"])
        ('whole numbers with commas between', 'a number or none', "'sgd' or 'adamw'")
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(argument) for argument in arguments)
    if origin is tuple:
        plural = {int: "whole numbers", float: "numbers", str: "names"}.get(arguments[0], "values")
        return f"{plural} with commas between"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return words.get(hint, str(getattr(origin or hint, "__name__", hint)).lower())


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """`"; did you mean 'x'?"` for the known name that looks most like it, or `otherwise` if none does.

    Example:
        >>> nearest("epoch", ["epochs", "seed"])
        "; did you mean 'epochs'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else otherwise


def in_per_cent(part: float, whole: float, digits: int = 1) -> str:
    """A share as people read it: what is there, but would be rounded to nothing, is not told as nothing.

    Example:
        >>> in_per_cent(1, 8), in_per_cent(0, 8), in_per_cent(1, 10_000), in_per_cent(1, 8, 0), in_per_cent(0, 0)
        ('12.5 %', '0.0 %', '< 0.1 %', '12 %', '-')
    """
    if not whole:
        return "-"
    least = 10.0**-digits
    share = 100 * part / whole
    return f"< {least:.{digits}f} %" if 0 < share < least / 2 else f"{share:.{digits}f} %"
