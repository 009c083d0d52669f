"""``growth.divisor=auto`` in a recipe: measured before the run, on its device and batch, and kept in its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from apical.budget import Budget
from apical.errors import ConfigError
from apical.growth._schedule import choose_divisor
from apical.recipes import Prepared, RunConfig
from apical.recipes._task_kind import task_kind
from apical.resizing import trace
from apical.runs._methods import method_named
from apical.training import processes
from apical.training._config import resolve_device
from apical.training._learner import autocast, in_memory_format, put_in_safe_order_
from apical.training._run_folder import begun_with


def with_divisor(config: RunConfig, divisor: int) -> RunConfig:
    """The config with another divisor."""
    return dataclasses.replace(config, growth=dataclasses.replace(config.growth, divisor=divisor))


def to_be_measured(config: RunConfig) -> bool:
    """Whether a run goes by a divisor that is not known yet; methods that read none need none."""
    return config.growth.divisor == "auto" and "divisor" in method_named(config.method).reads


def settle_divisor(
    config: RunConfig, data: Prepared, model: nn.Module, earlier: Sequence[Path] = ()
) -> tuple[RunConfig, str]:
    """The config with a number in the place of ``auto``, and in words where it comes from (empty if none was needed).

    Measured are training steps of a process' share of the batch, on the run's device, in its memory format and under
    its autocast; a comparator rounds its widths by the same number. Of several processes the first one measures.

    Args:
        config: of the run.
        data: what the model must know of it is read.
        model: the full-size model; it moves to the run's device, as it does when the run starts.
        earlier: run folders whose divisor is taken instead of measuring, so that a resumed run goes on with its own.
    """
    if not to_be_measured(config):
        return config, ""
    known = next((n for n in begun_with(earlier, "growth", "divisor") if type(n) is int and n >= 1), None)
    if known is not None:
        return with_divisor(config, known), f"divisor {known}, as measured before"
    kind, device = task_kind(config.task), resolve_device(config.training.device)
    model.to(device)
    training = put_in_safe_order_(model, config.training)
    example = kind.example(data.facts, device)
    structure = trace(model, example)
    share = processes().share(config.training.batch_size)
    batch = tuple(in_memory_format(tensor.repeat_interleave(share, kind.batch_dim), training) for tensor in example)
    with autocast(config.training, device):
        growth, choice = choose_divisor(model, structure, batch, Budget(config.budget), config.growth)
    return dataclasses.replace(config, growth=growth), str(choice)


def require_divisor(config: RunConfig) -> None:
    """Refuse ``auto`` where nothing runs on the device that trains."""
    if config.growth.divisor == "auto":
        raise ConfigError(
            "a plan cannot choose growth.divisor=auto, which is measured where a run trains; give a number, such as "
            "the `divisor` in the summary.json of a run on that device"
        )
