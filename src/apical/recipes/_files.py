"""A run's configuration as a file: JSON, or YAML with the extra of that name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from apical._atomic import make_folder
from apical._checks import fits
from apical._optional import import_optional
from apical._reading import read_text
from apical.errors import ConfigError
from apical.recipes._config import RunConfig, get_recipe, recipes
from apical.recipes._settings import parse
from apical.training._run_folder import plain

_OF_THE_RUN = frozenset({"input", "metrics", "versions"})  # what config.json of a run folder says besides
_YAML = (".yaml", ".yml")


def read_config_file(path: str | Path) -> RunConfig:
    """The configuration in a file: a run's config.json, what `write_config_file` wrote, or a part of it.

    What the file leaves out is taken from the recipe that it names.

    Args:
        path: ends in ``.json``, ``.yaml`` or ``.yml``.

    Raises:
        ConfigError: it cannot be read, names no recipe and is not complete, or a key or value is wrong.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "run.json"
        ...     _ = file.write_text('{"recipe": "digits", "training": {"epochs": 5}}')
        ...     config = read_config_file(file)
        >>> config.training.epochs, config.budget
        (5, '50% macs')
    """
    content = _read(Path(path))
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds no mapping of settings; expected for example 'recipe: digits'")
    content = {name: value for name, value in content.items() if name not in _OF_THE_RUN}
    recipe = content.get("recipe")
    if recipe is not None and not isinstance(recipe, str):
        raise ConfigError(f"{path}: recipe: expected the name of one, such as 'digits', got {recipe!r:.60}")
    try:
        if recipe not in recipes():
            return RunConfig.from_mapping(content)
        base = get_recipe(recipe)
        if _names_other_model(base, content):  # the recipe's arguments are those of its own model
            base = dataclasses.replace(base, model=dataclasses.replace(base.model, options={}))
        return RunConfig.from_mapping(_merged(base, content))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def write_config_file(config: RunConfig, path: str | Path) -> None:
    """Write a whole configuration, in the format that the file's ending names.

    Raises:
        ConfigError: the ending is not known, or the file cannot be written.
    """
    path, content = Path(path), plain(config.to_mapping())
    text = _yaml(path).safe_dump(content, sort_keys=False) if _is_yaml(path) else json.dumps(content, indent=2) + "\n"
    try:
        make_folder(path.parent)
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:  # of a name that no file has, too
        raise ConfigError(f"cannot write {path}: {error}. Name another file.") from error


def _merged(base: Any, content: Any) -> Any:
    """A dataclass as a mapping, with what the content says in place of its own; texts are read as ``--set`` does."""
    if not isinstance(content, Mapping):
        return content  # and `from_mapping` says what was expected
    hints, found = get_type_hints(type(base)), {f.name: getattr(base, f.name) for f in dataclasses.fields(base)}
    for name, value in content.items():
        if dataclasses.is_dataclass(found.get(name)):
            found[name] = _merged(found[name], value)
        else:
            found[name] = _read_text(value, hints[name]) if name in hints else value
    return {name: _merged(v, {}) if dataclasses.is_dataclass(v) else v for name, v in found.items()}


def _read_text(value: Any, hint: Any) -> Any:
    """YAML takes 1e-3 for a text."""
    if isinstance(value, str) and not fits(value, hint):
        try:
            return parse(value, hint)
        except ValueError:
            return value
    return value


def _names_other_model(base: RunConfig, content: Mapping[str, Any]) -> bool:
    model = content.get("model")
    return isinstance(model, Mapping) and model.get("name", base.model.name) != base.model.name


def _read(path: Path) -> Any:
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:  # of a name that no file has, too
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not _is_yaml(path):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path} is not JSON: {error}") from error
    yaml = _yaml(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of a day that no month has, too
        raise ConfigError(f"{path} is not YAML: {error}") from error


def _is_yaml(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in (*_YAML, ".json"):
        raise ConfigError(f"{path}: expected a name that ends in .json, .yaml or .yml")
    return suffix in _YAML


def _yaml(path: Path) -> Any:
    return import_optional("yaml", "PyYAML", "yaml", f"the YAML file {path}")
