"""What a run folder holds, read back: its configuration, its final model, and the call that is exported."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apical._reading import is_regular, read_object
from apical.errors import ConfigError, LoadError
from apical.export import load
from apical.recipes import RunConfig, Serving
from apical.recipes._task_kind import task_kind
from apical.training._checkpoint import has_checkpoint

# options that are gone, and what they were where nobody had set them
RETIRED: dict[tuple[str, ...], Any] = {("growth", "freeze_at"): None, ("training", "schedule", "by_cost"): False}


def read_config(folder: str | Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        ConfigError: it has no config.json, or one that cannot be read.
    """
    path = Path(folder) / "config.json"
    content = read_object(path, ConfigError, "a run folder that `apical train` wrote")
    for (*path_to, name), value in RETIRED.items():
        inner: Any = content
        for key in path_to:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and inner.get(name, ...) is value:
            del inner[name]
    names = {field.name for field in dataclasses.fields(RunConfig)}
    try:
        return RunConfig.from_mapping({name: value for name, value in content.items() if name in names})
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error}. If nobody changed it, another version of apical wrote it (it says which under "
            "'versions') and reads it, too."
        ) from error


def load_run(folder: str | Path, *, trust_code: bool = False) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """A finished run's final model in eval mode on the CPU, its full-size template, and the arguments of one call.

    Neither the data nor a pickle is read. For images the arguments are one tensor  # (1, channels, height, width).

    Args:
        folder: the run folder.
        trust_code: whether the callable that builds the model may be called if it is neither apical's, torchvision's
            nor timm's: the folder's config.json decides what it is.

    Raises:
        ConfigError: the folder is not that of a run, names code that is not trusted, or sizes that cannot be meant.
        LoadError: the run has not finished, or its files are damaged.
    """
    path = Path(folder)
    config = read_config(path)
    kind, facts = task_kind(config.task), _input_facts(path)
    require_trusted(config, trust_code, str(path / "config.json"))
    refuse_absurd(config, facts, str(path / "config.json"))
    with _fitting_facts(path, config):
        example = kind.example(facts, torch.device("cpu"))
        model, full_model = (kind.template(config.model, facts) for _ in range(2))
    try:
        return load(model, path).eval(), full_model, example
    except LoadError as error:
        if not is_regular(path / "summary.json"):
            raise LoadError(
                f"the run in {path} has not finished, and its network is written at the end ({error}). Go on with it: "
                f"{resume_command(config, path)}"
            ) from error
        if not has_checkpoint(path):
            raise
        anew = resume_command(config, path)
        raise LoadError(f"{str(error).rstrip('.')}. Its checkpoint writes it anew: {anew}") from error


def load_serving(folder: str | Path, *, trust_code: bool = False) -> tuple[nn.Module, nn.Module, Serving]:
    """A finished run's final model in eval mode on the CPU, its full-size template, and the call that is exported.

    Both models are without what only training needs, such as an auxiliary head. `trust_code` is that of `load_run`.

    Raises:
        ConfigError: the folder is not that of a run.
        LoadError: the run has not finished, or its files are damaged.
    """
    path = Path(folder)
    model, full_model, example = load_run(path, trust_code=trust_code)
    config = read_config(path)
    kind = task_kind(config.task)
    model, full_model = kind.for_inference(model), kind.for_inference(full_model)
    with _fitting_facts(path, config):
        call = Serving(example) if kind.serving is None else kind.serving(model, _input_facts(path))
    return model, full_model, call


def _input_facts(path: Path) -> dict[str, Any]:
    facts = read_object(path / "config.json", ConfigError, "a run folder").get("input")
    if not isinstance(facts, dict):
        raise ConfigError(f"{path / 'config.json'} does not say what the model's input is; expected it under 'input'")
    return facts


@contextmanager
def _fitting_facts(path: Path, config: RunConfig) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, RuntimeError, IndexError, ValueError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{path / 'config.json'}: 'input' does not describe the input of a {config.task} model: "
            f"{type(error).__name__}: {error}"
        ) from error


LARGEST_OPTION = 2**16  # no width, depth or class count of a known model comes near
LARGEST_INPUT = 2**25  # numbers in one example: 3 x 3,344 x 3,344 pixels
LIBRARIES = ("torchvision", "timm")


def names_foreign_code(config: RunConfig) -> bool:
    """Whether the model is built by a callable that is neither apical's, torchvision's nor timm's."""
    library, sign, _ = config.model.name.partition(":")
    return bool(sign) and library not in LIBRARIES


def resume_command(config: RunConfig, folder: str | Path) -> str:
    """The command that goes on with a run, as a shell reads it."""
    return f"apical train --resume {shlex.quote(str(folder))}{' --trust-code' if names_foreign_code(config) else ''}"


def require_trusted(config: RunConfig, trust_code: bool, where: str) -> None:
    """Refuse to call what a run folder's config names, unless somebody says that it may be called.

    ``package.module:callable`` can be anything that is installed; a config from elsewhere could name
    ``subprocess:run``. Models of apical, torchvision and timm are built without asking.
    """
    if names_foreign_code(config) and not trust_code:
        raise ConfigError(
            f"{where}: the model of this run is built by calling {config.model.name!r}, which is whatever its "
            "config.json says. If the run is yours, or you trust where it comes from, add --trust-code (in Python: "
            "trust_code=True)."
        )


def refuse_absurd(config: RunConfig, facts: Mapping[str, Any], where: str) -> None:
    """Refuse sizes in a config that cannot be meant, before memory is asked for."""
    for name, value in config.model.options.items():
        for number in _numbers(value):
            if abs(number) > LARGEST_OPTION:
                raise ConfigError(f"{where}: model.{name}={str(value)[:60]}, expected numbers up to {LARGEST_OPTION:,}")
    size = 1
    for number in (n for name, value in facts.items() if name.endswith("shape") for n in _numbers(value)):
        size *= max(1, abs(int(number))) if abs(number) < LARGEST_INPUT else LARGEST_INPUT + 1
    if size > LARGEST_INPUT:
        raise ConfigError(f"{where}: an input of more than {LARGEST_INPUT:,} numbers: {str(dict(facts))[:80]}")
    try:
        with torch.device("meta"):
            model = task_kind(config.task).template(config.model, facts)
    except ConfigError:
        raise
    except Exception:  # noqa: BLE001 - a model that cannot be built without memory is not judged here
        return
    needed = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if needed > _memory():
        raise ConfigError(
            f"{where}: the full-size model would need {needed / 2**30:,.0f} GiB, this machine has "
            f"{_memory() / 2**30:,.0f} GiB; the numbers in its config.json were changed"
        )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers(item)]
    if isinstance(value, Mapping):
        return _numbers(list(value.values()))
    return [value] if isinstance(value, (int, float)) else []


def _memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return 2**36
