"""Kinds of problems by name: how their data is prepared, and how a model is built for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apical._checks import nearest
from apical.errors import ConfigError
from apical.recipes._model import ModelConfig
from apical.training import Loaders, Task, TrainingConfig

Facts = Mapping[str, Any]
"""What a model must know about its data, as JSON holds it: number of classes, shape of an image, size of a
vocabulary. Kept in config.json under `input`, so that a run's model is rebuilt without its data."""


@dataclass(frozen=True)
class Described:
    """What is told of data that is not at hand, so that a run can be planned without it; None where nothing is."""

    images: int | None = None  # training examples of an epoch: images, or windows of a text
    classes: int | None = None  # their number, or the size of a vocabulary
    shape: tuple[int, ...] | None = None  # of an image, channels first


def last_name(path: Any) -> str:
    """By what public data sets are known: the last part of a path."""
    return str(path).rstrip("/").rsplit("/", 1)[-1]


def image_example(facts: Facts, device: torch.device) -> tuple[Tensor, ...]:
    """The arguments of a call with one image  # (1, channels, height, width)"""
    return (torch.zeros(1, *facts["image_shape"], device=device),)


def not_known(path: Any, known: Mapping[str, Any], give: str) -> ConfigError:
    """The error of data that is neither known nor described."""
    return ConfigError(f"not enough is known of the data {path!r} (known: {', '.join(known)}); give {give}")


@dataclass(frozen=True)
class Prepared:
    """Data that is ready to be trained on.

    Attributes:
        loaders: training, evaluation and test batches.
        task: loss and metrics.
        facts: what a model must know about the data.
        notes: what the summary says about the data.
        files: text files that the run folder keeps, by name: what is needed to use the network, such as a vocabulary.
        illustrate: writes pictures of what the final model does into the run folder, for the report.
        remarks: what people should know of the data before training starts.
    """

    loaders: Loaders
    task: Task
    facts: Facts
    notes: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    illustrate: Callable[[nn.Module, Path], None] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Serving:
    """A call of a finished model as other runtimes make it.

    Attributes:
        args: positional arguments: tensors, and nests of tensors for a recurrent state.
        batch_dim: dimension of every tensor that may have any size.
        input_names: of every tensor of the arguments, where files name them; None for plain numbers.
        output_names: of every tensor that the call returns.
    """

    args: tuple[Any, ...]
    batch_dim: int = 0
    input_names: tuple[str, ...] | None = None
    output_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TaskKind:
    """A kind of problem.

    Attributes:
        data: the dataclass of its data settings; it has a `path`.
        prepare: reads or opens the data of such settings.
        foreseen: what is known of such data without it: training examples of an epoch, and facts.
        template: the full-size model for facts, from torch's global random state, checked against them.
        example: the arguments of one call, for tracing; MACs are counted for this call and are those of one of the
            `samples` of a `BatchResult`.
        serving: the call of a finished model that is exported; None for the example with a free first dimension.
        batch_dim: dimension of the example's tensors along which further samples of a batch lie.
        for_inference: the model without what only training needs, for export; the argument is not changed.
    """

    data: type
    prepare: Callable[[Any, TrainingConfig], Prepared]
    foreseen: Callable[[Any, TrainingConfig, Described], tuple[int, Facts]]
    template: Callable[[ModelConfig, Facts], nn.Module]
    example: Callable[[Facts, torch.device], tuple[Tensor, ...]]
    serving: Callable[[nn.Module, Facts], Serving] | None = None
    for_inference: Callable[[nn.Module], nn.Module] = lambda model: model
    batch_dim: int = 0


_KINDS: dict[str, TaskKind] = {}


def register_task(name: str, kind: TaskKind) -> None:
    """Let ``task=NAME`` in a `RunConfig` mean a kind of problem.

    Raises:
        ConfigError: the name is taken.
    """
    if name in _KINDS:
        raise ConfigError(f"there is a task {name!r} already")
    _KINDS[name] = kind


def task_kind(name: str) -> TaskKind:
    """The kind of problem of this name."""
    if name not in _KINDS:
        raise ConfigError(f"task: there is no {name!r}{nearest(name, _KINDS, '.')} The tasks are {', '.join(_KINDS)}.")
    return _KINDS[name]
