"""What tracing found in a network, and that it left the network as it was."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import apical
from apical.structure import Frozen, Structure
from structure.contract import same_bits


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


@dataclass(frozen=True)
class Snapshot:
    """Everything about a model that tracing must leave as it was."""

    tensors: dict[str, Tensor]
    identities: dict[str, int]
    training: dict[str, bool]
    requires_grad: dict[str, bool]
    hooks: dict[str, int]
    text: str
    random_state: Tensor

    @staticmethod
    def of(model: nn.Module) -> Snapshot:
        """Record a model and the global random state."""
        state = model.state_dict(keep_vars=True)
        hook_tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
        return Snapshot(
            {name: tensor.detach().clone() for name, tensor in state.items()},
            {name: id(tensor) for name, tensor in state.items()},
            {name: module.training for name, module in model.named_modules()},
            {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            {name: sum(len(getattr(m, table)) for table in hook_tables) for name, m in model.named_modules()},
            str(model),
            torch.get_rng_state(),
        )


def check_untouched(before: Snapshot, model: nn.Module) -> None:
    """Nothing that a snapshot records has changed."""
    after = Snapshot.of(model)
    assert list(after.tensors) == list(before.tensors)
    changed = [name for name, tensor in before.tensors.items() if not same_bits(after.tensors[name], tensor)]
    assert not changed, f"tracing changed {changed}"
    assert after.identities == before.identities, "tracing replaced tensors"
    assert after.training == before.training, "tracing changed training flags"
    assert after.requires_grad == before.requires_grad, "tracing changed requires_grad"
    assert after.hooks == before.hooks, "tracing left or removed hooks"
    assert after.text == before.text, "tracing changed modules"
    assert torch.equal(after.random_state, before.random_state), "tracing drew from the global generator"
    assert all(parameter.grad is None for parameter in model.parameters()), "tracing left gradients"


def mix_flags_(model: nn.Module) -> None:
    """Training and frozen parts side by side, with a hook: the state that careless analysis destroys."""
    model.train()
    children = list(model.children())
    if children:
        children[0].eval()
    next(iter(model.parameters())).requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
