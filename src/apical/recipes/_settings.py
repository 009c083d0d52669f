"""`key=value` settings from a command line, applied to a config with its types."""

from __future__ import annotations

import dataclasses
import json
import shlex
import types
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from apical._checks import fits, in_words, nearest
from apical.errors import ConfigError
from apical.recipes._config import RunConfig, get_recipe

_FIXED = frozenset({"recipe", "task", "model.options", "method_options"})
_EPOCHS = "training.epochs"
_FREE = {"model": "model.options", "method": "method_options"}  # settings whose names the model or method decides


def setting_types(config: RunConfig) -> dict[str, Any]:
    """The type of every setting of a config by its dotted name."""
    return {name: hint for name, hint in _types(config, "") if name not in _FIXED}


def _types(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(type(config))
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), prefix + item.name
        if dataclasses.is_dataclass(value):
            yield from _types(value, name + ".")
        else:
            yield name, hints[item.name]


def apply_settings(config: RunConfig, settings: Sequence[str]) -> RunConfig:
    """Change a config by ``key=value`` texts.

    A key is a dotted name (``training.optimizer.lr``) or its end, where only one setting ends so (``lr``). Two are
    more than the field that they name: ``epochs`` also moves warm-up and milestones in proportion, ``seed`` sets the
    seeds of training and growth. ``model.ANYTHING`` is a keyword argument of the model, ``method.ANYTHING`` an option
    of the method.

    Args:
        config: is not changed.
        settings: later ones win.

    Raises:
        ConfigError: a text is no ``key=value``, the key is unknown or stands for several settings, or the value has
            another type or is not allowed.

    Example:
        >>> from apical.recipes import get_recipe
        >>> changed = apply_settings(get_recipe("digits"), ["lr=0.02", "model.width=8"])
        >>> changed.training.optimizer.lr, changed.model.options["width"]
        (0.02, 8)
    """
    pairs = [_split(text) for text in settings]
    types = setting_types(config)
    resolved = [(_resolve(key, types), value) for key, value in pairs]
    for name, text in resolved:  # first, so that an explicit warm-up is not scaled
        if name == _EPOCHS:
            config = config.with_epochs(_positive(name, text))
        elif name == "seed":
            config = config.with_seed(_value(name, text, int))
    content = config.to_mapping()
    for name, text in resolved:
        if name not in (_EPOCHS, "seed"):
            *parents, leaf = name.split(".")
            place = content
            for parent in parents:
                place = place[parent]
            place[leaf] = _value(name, text, types[name]) if name in types else parse_freely(text)
    return RunConfig.from_mapping(content)


def reproducing_command(config: RunConfig, out: str | Path) -> str:
    """The command that repeats a run: its recipe, and whatever differs from it and does not follow from its length.

    Example:
        >>> from apical.recipes import get_recipe
        >>> reproducing_command(apply_settings(get_recipe("digits"), ["lr=0.02"]), "runs/a")
        'apical train digits --set training.optimizer.lr=0.02 --out runs/a'
    """
    try:
        recipe = get_recipe(config.recipe)
        # another length moves warm-up and the like, as it will when the command is typed
        base = {**as_texts(recipe.with_epochs(config.training.epochs)), _EPOCHS: as_texts(recipe)[_EPOCHS]}
    except ConfigError:  # a config that was made by hand
        base = {}
    changed = [f"--set {shlex.quote(f'{k}={v}')}" for k, v in as_texts(config).items() if base.get(k) != v]
    return " ".join(["apical train", config.recipe, *changed, "--out", shlex.quote(str(out))])


def split_options(settings: Sequence[str], owners: Container[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """``key=value`` texts of all runs, and the options of single methods among them (``METHOD.OPTION=value``).

    Example:
        >>> split_options(["lr=0.05", "slimming.penalty=1e-3"], owners=("grown", "slimming"))
        (['lr=0.05'], {'slimming': {'penalty': 0.001}})
    """
    shared: list[str] = []
    options: dict[str, dict[str, Any]] = {}
    for text in settings:
        key, _, value = text.partition("=")
        owner, dot, option = key.strip().partition(".")
        if dot and owner in owners:
            options.setdefault(owner, {})[option] = parse_freely(value.strip())
        else:
            shared.append(text)
    return shared, options


def as_texts(config: RunConfig) -> dict[str, str]:
    """Every setting as the text that `--set` takes."""
    content, found = config.to_mapping(), {}
    for name in setting_types(config):
        value: Any = content
        for part in name.split("."):
            value = value[part]
        found[name] = _as_text(value)
    found |= {f"model.{name}": as_free_text(value) for name, value in content["model"]["options"].items()}
    options = content["method_options"]
    if "run" in options:  # a network that is repeated follows from its run
        options = {k: v for k, v in options.items() if not isinstance(v, (Mapping, list, tuple))}
    return found | {f"method.{name}": as_free_text(value) for name, value in options.items()}


def as_free_text(value: Any) -> str:
    """The text that `parse_freely` reads as this value, of the same type: JSON, where the plain one is another.

    Example:
        >>> [as_free_text(value) for value in (None, 0.1, "gelu", [200], ["a"], "7")]
        ['none', '0.1', 'gelu', '[200]', '["a"]', '"7"']
    """
    text = _as_text(value) if value is None or isinstance(value, bool) else str(value)
    # as texts: 1, 1.0 and True are equal, and nan is not equal to itself
    return text if repr(parse_freely(text.strip())) == repr(value) else json.dumps(value, default=str)


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_as_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _split(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"--set {text}: expected key=value, for example lr=0.05")
    return key.strip(), value.strip()


def _resolve(key: str, types: dict[str, Any]) -> str:
    if key in types or key == "seed":
        return key
    owner, dot, option = key.partition(".")
    if dot and owner in _FREE and "." not in option:
        return f"{_FREE[owner]}.{option}"
    found = [name for name in types if name.endswith("." + key)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"--set {key}=...: several settings are called so: {', '.join(found)}; write one in full")
    leaves = {name.rpartition(".")[2]: name for name in types}
    hint = nearest(key, [*types, *leaves])
    raise ConfigError(f"--set {key}=...: there is no such setting{hint or '; the settings are ' + ', '.join(types)}")


def _value(name: str, text: str, hint: Any) -> Any:
    try:
        return parse(text, hint)
    except ValueError:
        raise ConfigError(f"--set {name}={text}: expected {in_words(hint)}, got {text!r}") from None


def _positive(name: str, text: str) -> int:
    value: int = _value(name, text, int)
    if value < 1:
        raise ConfigError(f"--set {name}={text}: expected at least 1, got {value}")
    return value


def parse(text: str, hint: Any) -> Any:
    """The value that a text stands for in a field of this type.

    Whole numbers, numbers, ``true``/``false``, ``none``, one of the choices, or several values with commas between.

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
    if hint not in (int, float, str):
        return _refuse(text)
    value = hint(text)
    return value if fits(value, hint) else _refuse(text)


_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_freely(text: str) -> Any:
    """A value of a field whose type nobody knows: the narrowest of none, bool, int, float, list of numbers and str.

    Lists, mappings and quoted texts may be JSON.

    Example:
        >>> [parse_freely(text) for text in ("none", "true", "1", "1e-3", "gelu", "200,100", "200,")]
        [None, True, 1, 0.001, 'gelu', [200, 100], [200]]
        >>> [parse_freely(text) for text in ("[200]", '["a", "b"]', '"7"')]
        [[200], ['a', 'b'], '7']
    """
    if text.startswith(("[", "{", '"')):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
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
