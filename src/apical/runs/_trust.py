"""Run folders that come from others: whose code their config names, and sizes that no machine holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from apical.errors import ConfigError
from apical.recipes import RunConfig
from apical.recipes._task_kind import task_kind

LARGEST_OPTION = 2**16  # no width, depth or class count of a known model comes near
LARGEST_INPUT = 2**25  # numbers in one example: 3 x 3,344 x 3,344 pixels
LIBRARIES = ("torchvision", "timm")


def names_foreign_code(config: RunConfig) -> bool:
    """Whether the model is built by a callable that is neither apical's, torchvision's nor timm's."""
    library, sign, _ = config.model.name.partition(":")
    return bool(sign) and library not in LIBRARIES


def require_trusted(config: RunConfig, trust_code: bool, where: str) -> None:
    """Refuse to call what a run folder's config names, unless somebody says that it may be called.

    ``package.module:callable`` can be anything that is installed; a config from elsewhere could name
    ``subprocess:run``. Models of apical, torchvision and timm are built without asking.

    Example:
        >>> from apical.recipes import get_recipe
        >>> require_trusted(get_recipe("digits"), False, "runs/digits")
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
