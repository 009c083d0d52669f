"""What tracing found in a network."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor, nn

import apical
from apical.structure import Frozen, Structure


@dataclass(frozen=True)
class CheckReport:
    """What tracing found in one model.

    ``removable_fraction`` is the share of MACs that is gone when every group keeps one unit and every block is
    skipped.
    """

    name: str
    groups: int
    blocks: int
    removable_fraction: float
    frozen: tuple[Frozen, ...]
    trace_seconds: float


def make_report(name: str, structure: Structure, trace_seconds: float) -> CheckReport:
    """Summarise a structure."""
    full = structure.macs()
    least = structure.macs({group.name: [0] for group in structure.groups}, [b.name for b in structure.blocks])
    fraction = 1 - least / full if full else 0.0
    return CheckReport(name, len(structure.groups), len(structure.blocks), fraction, structure.frozen, trace_seconds)


def timed_trace(
    model: nn.Module, inputs: tuple[Tensor, ...], state_outputs: tuple[int | str, ...] = ()
) -> tuple[Structure, float]:
    """Trace a model; seconds on the wall clock."""
    start = time.perf_counter()
    structure = apical.trace(model, inputs, state_outputs=state_outputs)
    return structure, time.perf_counter() - start


def mix_flags_(model: nn.Module) -> None:
    """Training and frozen parts side by side, with a hook: the state that careless analysis destroys."""
    model.train()
    children = list(model.children())
    if children:
        children[0].eval()
    next(iter(model.parameters())).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
