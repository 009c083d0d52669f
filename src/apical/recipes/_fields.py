"""Values of fields from text."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin


def parse(text: str, hint: Any) -> Any:
    """The value that a text stands for in a field of this type.

    Whole numbers, numbers, ``true``/``false``, ``none``, one of the choices, or several values with commas between.

    Raises:
        ValueError: it stands for none.

    Example:
        >>> parse("none", int | None), parse("3", int | None), parse("30,60", tuple[int, ...]), parse("no", bool)
        (None, 3, (30, 60), False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return parse_freely(text)
    if origin in (Union, types.UnionType):
        return _parse_union(text, arguments)
    if origin is tuple:
        inner = text.strip().removeprefix("(").removeprefix("[").removesuffix(")").removesuffix("]")
        return tuple(parse(item.strip(), arguments[0]) for item in inner.split(",") if item.strip())
    if hint is bool:
        return _BOOLS[text.strip().lower()] if text.strip().lower() in _BOOLS else _refuse(text)
    if hint is type(None):
        return None if text.strip().lower() in ("none", "null") else _refuse(text)
    if origin is Literal:
        return text if text in arguments else _refuse(text)
    return hint(text) if hint in (int, float, str) else _refuse(text)


_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_freely(text: str) -> Any:
    """A value of a field whose type nobody knows: the narrowest of none, bool, int, float, list of numbers and str.

    Example:
        >>> [parse_freely(text) for text in ("none", "true", "1", "1e-3", "gelu", "200,100", "200,")]
        [None, True, 1, 0.001, 'gelu', [200, 100], [200]]
    """
    lowered = text.strip().lower()
    if lowered in ("none", "null", "true", "false"):
        return {"true": True, "false": False}.get(lowered)
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    items = [parse_freely(item) for item in text.split(",") if item.strip()] if "," in text else []
    return items if items and all(type(item) in (int, float) for item in items) else text


def _parse_union(text: str, arguments: Iterable[Any]) -> Any:
    ordered = sorted(arguments, key=lambda hint: (hint is str, hint is not type(None)))
    for hint in ordered:
        try:
            return parse(text, hint)
        except ValueError:
            continue
    return _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)
