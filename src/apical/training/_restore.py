"""Taking up what a checkpoint holds, after a look at whether it fits: it may have been changed since it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.errors import CheckpointError
from apical.training._checkpoint import is_expanded
from apical.training._tally import Partial

_NUMBERS = frozenset(
    [
        "epoch",
        "lr",
        "train_loss",
        "samples",
        "steps",
        "macs",
        "macs_fraction",
        "num_params",
        "params_fraction",
        "latency_ms",
        "latency_fraction",
        "train_macs",
        "blocks",
        "step_seconds",
        "data_seconds",
        "eval_seconds",
        "restructure_seconds",
        "compilations",
        "compile_seconds",
    ]
)
_NEEDED = ("epoch", "samples")


LARGEST = torch.finfo(torch.float32).max  # a step cannot compute with a larger setting, or with one that is no number


def load_weights_(model: nn.Module, state: Any, whose: str) -> None:
    """`model.load_state_dict`, which also refuses tensors of another dtype instead of converting them."""
    own = model.state_dict()
    if not isinstance(state, Mapping):
        raise CheckpointError(f"the weights of {whose} are a {type(state).__name__}, expected tensors by name")
    for name, tensor in own.items():
        found = state.get(name)
        if not isinstance(tensor, Tensor):
            continue
        if not isinstance(found, Tensor) or found.shape != tensor.shape or found.dtype != tensor.dtype:
            what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else repr(found)[:40]
            raise CheckpointError(f"{name} of {whose} is {what}, expected {tensor.dtype} {tuple(tensor.shape)}")
    for buffer in model.buffers():
        if is_expanded(buffer):  # nothing can be written into it
            buffer.data = buffer.contiguous()
    model.load_state_dict(dict(state))


def load_optimizer_(optimizer: Optimizer, state: Any) -> None:
    """`optimizer.load_state_dict`, which also refuses settings and histories that the next step would stumble over."""
    kinds = [{name: type(value) for name, value in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for number, (group, known) in enumerate(zip(optimizer.param_groups, kinds, strict=True)):
        for name, kind in known.items():
            value = group.get(name)
            if not _alike(value, kind):
                raise CheckpointError(
                    f"{name} of the optimizer's group {number} is {value!r}, expected a {kind.__name__}"
                )
        if not _alike(group.get("initial_lr", 0.0), float):
            raise CheckpointError(f"initial_lr of the optimizer's group {number} is {group['initial_lr']!r}")
    names = {name for history in optimizer.state.values() for name in history}
    tensors = {name for name in names if any(isinstance(h.get(name), Tensor) for h in optimizer.state.values())}
    for parameter, history in optimizer.state.items():
        if set(history) != names:
            raise CheckpointError(
                f"the optimizer's histories differ: one has {sorted(history)}, another {sorted(names)}"
            )
        for name, value in history.items():
            if isinstance(value, Tensor) and value.shape not in (parameter.shape, torch.Size([])):
                shape = tuple(value.shape)
                raise CheckpointError(f"{name} of the optimizer has shape {shape}, expected {tuple(parameter.shape)}")
            if isinstance(value, Tensor) and not value.is_floating_point():
                raise CheckpointError(f"{name} of the optimizer holds {value.dtype}, expected floating-point numbers")
            if not (isinstance(value, Tensor) if name in tensors else value is None):
                raise CheckpointError(f"{name} of the optimizer is {value!r}, expected a tensor")


def _alike(value: Any, kind: type) -> bool:
    if kind is list:  # the parameters
        return isinstance(value, list)
    if kind is tuple:  # betas
        return isinstance(value, (tuple, list)) and len(value) == 2 and all(_alike(item, float) for item in value)
    if kind in (int, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST
    return isinstance(value, kind)


def history_of(records: Any, epochs: int) -> list[dict[str, Any]]:
    """The records of the epochs that are done."""
    if not isinstance(records, Sequence) or not all(isinstance(record, Mapping) for record in records):
        raise CheckpointError(f"the history is {type(records).__name__}, expected a list of records")
    if len(records) != epochs:
        raise CheckpointError(f"the history has {len(records)} records of {epochs} epochs")
    for number, record in enumerate(records, 1):
        for name in {*_NUMBERS & set(record), *_NEEDED}:
            value = record.get(name)
            if not (value is None and name not in _NEEDED) and not _alike(value, float):
                raise CheckpointError(f"{name} of epoch {number} in the history is {value!r}, expected a number")
        if record["epoch"] != number:
            raise CheckpointError(f"record {number} of the history is that of epoch {record['epoch']}")
        if any(not isinstance(name, str) for name in record):
            raise CheckpointError(f"record {number} of the history has names that are no text")
    return [dict(record) for record in records]


def partial_of(found: Any, steps: int) -> Partial | None:
    """The epoch that was running, if the checkpoint lies within one."""
    if found is None:
        return None
    begun = Partial(**found)
    sums = begun.sums
    seconds = (begun.step_seconds, begun.restructure_seconds, begun.compile_seconds)
    counted = (begun.steps, begun.compilations, *(sums[name] for name in ("loss", "weight", "samples", "seen")))
    counts = sums["counts"]
    numbers = all(_alike(number, float) for number in (*counted, *seconds))
    if not numbers or not (counts is None or isinstance(counts, Tensor)):
        raise CheckpointError("what the running epoch summed up to is no sum of an epoch")
    if not 0 < begun.steps <= steps:
        raise CheckpointError(f"{begun.steps} steps of the running epoch are done; this run has {steps}")
    return begun
