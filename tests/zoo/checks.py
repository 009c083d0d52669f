"""The contract that every network of the zoo meets: what is removed equals what is zeroed, and comes back bitwise."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import apical
from apical.structure import Frozen, Structure
from structure.contract import counted_macs, relative_error, zeroed

from .randomise import Keep, random_keep, random_skip

RELATIVE_TOLERANCE = 1e-10


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
class Subject:
    """A traced, randomised model in eval mode, its structure, and one call of it."""

    model: nn.Module
    structure: Structure
    inputs: tuple[Tensor, ...]
    state_outputs: tuple[int | str, ...] = ()

    @cached_property
    def full_outputs(self) -> list[Tensor]:
        """What the model itself returns."""
        return self.outputs(self.model)

    @cached_property
    def trained(self) -> frozenset[str]:
        """Names of the parameters that a training step of the model reaches."""
        gradients = _gradients(copy.deepcopy(self.model), self.inputs)
        return frozenset(name for name, gradient in gradients.items() if gradient is not None)

    @torch.no_grad()
    def outputs(self, model: nn.Module) -> list[Tensor]:
        """All tensors in the output of a version of the model but carried states, in a fixed order."""
        return compared(run(model, self.inputs), self.state_outputs)


def run(model: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """One call; what the model warns about while running is its author's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return model(*inputs)


def compared(outputs: Any, state_outputs: Sequence[int | str]) -> list[Tensor]:
    """The tensors in a model's output without the carried states."""
    if isinstance(outputs, dict):
        outputs = [value for key, value in outputs.items() if key not in state_outputs]
    elif isinstance(outputs, tuple):
        outputs = [value for position, value in enumerate(outputs) if position not in state_outputs]
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def assert_bitwise_equal(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Same names in the same order, same dtypes and shapes, same bits."""
    assert list(got) == list(expected), f"{what}: names or their order changed"
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, f"{what}: {name} became {got[name].dtype}, was {tensor.dtype}"
        assert got[name].shape == tensor.shape, f"{what}: {name} has shape {got[name].shape}, had {tensor.shape}"
        assert torch.equal(got[name], tensor), f"{what}: values of {name} changed"


def resized(model: nn.Module, structure: Structure, keep: Keep, skip: Sequence[str]) -> nn.Module:
    """A physically smaller copy."""
    smaller = copy.deepcopy(model)
    apical.resize_(smaller, structure, keep, skip)
    return smaller


def check_removal(subject: Subject, keep: Keep, skip: Sequence[str]) -> nn.Module:
    """Removed equals zeroed at the gate sites, to 1e-10 in float64. Returns the smaller model.

    Where something was removed, the outputs must also differ from the full model's: a gate that does nothing, or a
    net that ignores its input, would pass everything else.
    """
    structure = subject.structure
    smaller = resized(subject.model, structure, keep, skip)
    expected = subject.outputs(zeroed(subject.model, structure, keep, skip))
    error = relative_error(subject.outputs(smaller), expected)
    assert error <= RELATIVE_TOLERANCE, f"removed and zeroed differ by {error:.3g} relative"
    if skip or any(len(keep[group.name]) < group.size for group in structure.groups):
        change = relative_error(subject.full_outputs, expected)
        assert change > 1e-6, "the removed parts had no influence on the outputs"
    return smaller


def check_regrowth(subject: Subject, choices: Sequence[tuple[Keep, Sequence[str], nn.Module]]) -> None:
    """From choice to choice with one store: each equals its fresh resize, and keep-all restores every bit."""
    model, structure = subject.model, subject.structure
    working, store = copy.deepcopy(model), apical.DormantStore()
    for keep, skip, smaller in choices:
        apical.resize_(working, structure, keep, skip, store=store)
        assert_bitwise_equal(working.state_dict(), smaller.state_dict(), "resize through the store")
    apical.resize_(working, structure, {}, (), store=store)
    assert_bitwise_equal(working.state_dict(), model.state_dict(), "regrowth")
    assert [n for n, _ in working.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert str(working) == str(model), "module attributes or structure differ after regrowth"
    assert {n: p.requires_grad for n, p in working.named_parameters()} == {
        n: p.requires_grad for n, p in model.named_parameters()
    }


def check_costs(subject: Subject, smaller: nn.Module, keep: Keep, skip: Sequence[str]) -> None:
    """Priced MACs and parameters equal what is counted on the resized model."""
    counted, priced = counted_macs(smaller, subject.inputs), subject.structure.macs(keep, skip)
    assert priced == counted, f"priced {priced} MACs, counted {counted}"
    held, priced = sum(p.numel() for p in smaller.parameters()), subject.structure.num_params(keep, skip)
    assert priced == held, f"priced {priced} parameters, counted {held}"


def check_attributes(model: nn.Module) -> None:
    """What standard modules say about their size is true, so that ``print(model)`` is."""
    problems = []
    for name, module in model.named_modules():
        for attribute, value in _true_sizes(module).items():
            stated = getattr(module, attribute)
            if stated != value:
                problems.append(f"{name}.{attribute} is {stated}, the weights say {value}")
    assert not problems, "; ".join(problems[:5])


def _true_sizes(module: nn.Module) -> dict[str, object]:
    if isinstance(module, nn.Linear):
        return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    if isinstance(module, nn.modules.conv._ConvNd):
        read, written = ("out", "in") if module.transposed else ("in", "out")
        return {
            f"{written}_channels": module.weight.shape[0],
            f"{read}_channels": module.weight.shape[1] * module.groups,
        }
    if isinstance(module, nn.modules.batchnorm._NormBase) and module.weight is not None:
        return {"num_features": module.weight.shape[0]}
    if isinstance(module, nn.GroupNorm) and module.weight is not None:
        return {"num_channels": module.weight.shape[0]}
    if isinstance(module, nn.LayerNorm) and module.weight is not None:
        return {"normalized_shape": tuple(module.weight.shape)}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": module.weight.shape[0], "embedding_dim": module.weight.shape[1]}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        hidden = module.weight_ih_l0.shape[0] // gates
        return {"input_size": module.weight_ih_l0.shape[1], "hidden_size": hidden}
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    return {}


def check_trainable(subject: Subject, smaller: nn.Module) -> None:
    """A training step runs on the smaller model, and its parameters receive gradients where the full model's do."""
    small = _gradients(copy.deepcopy(smaller), subject.inputs)
    missing = [name for name in small if small[name] is None and name in subject.trained]
    assert not missing, f"no gradient reaches {missing[:5]}"
    broken = [name for name, grad in small.items() if grad is not None and not bool(torch.isfinite(grad).all())]
    assert not broken, f"gradients of {broken[:5]} are not finite"


def _gradients(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        leaves = [x for x in tree_leaves(run(model.train(), inputs)) if isinstance(x, Tensor) and x.requires_grad]
    torch.stack([leaf.square().mean() for leaf in leaves]).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


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
    assert_bitwise_equal(after.tensors, before.tensors, "tracing")
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


def check_structure(model: nn.Module, structure: Structure) -> None:
    """The record is consistent: names exist, positions are in range and disjoint, reasons are given."""
    tensors = model.state_dict()
    taken: dict[tuple[str, int], set[int]] = {}
    for group in structure.groups:
        assert group.members, f"{group.name} has no members"
        assert group.gate_site, f"{group.name} has no gate site"
        for part in (*group.members, *group.gate_site):
            assert len(part.positions) == group.size, f"{group.name}: {part.tensor} does not list every unit"
            owned = [position for unit in part.positions for position in unit]
            assert all(0 <= p < tensors[part.tensor].shape[part.dim] for p in owned), f"{part.tensor} out of range"
        for part in group.members:
            owned = [position for unit in part.positions for position in unit]
            used = taken.setdefault((part.tensor, part.dim), set())
            assert len(owned) == len(set(owned)), f"{group.name}: {part.tensor} lists a position twice"
            assert not used & set(owned), f"{part.tensor} dim {part.dim} belongs to two groups"
            used.update(owned)
    paths = {name for name, _ in model.named_modules()}
    for block in structure.blocks:
        assert block.name in paths, f"block {block.name} is no module"
        assert block.gate_site, f"block {block.name} has no gate site"
        assert all(name in tensors for name in block.gate_site), f"gate site of {block.name} names no tensor"
    assert all(frozen.reason.strip() for frozen in structure.frozen), "something is frozen without a reason"


def check_contract(subject: Subject, seeds: Sequence[int]) -> None:
    """All checks of a subject, for one random choice over all groups and blocks per seed."""
    model, structure = subject.model, subject.structure
    check_structure(model, structure)
    check_costs(subject, model, {}, ())
    choices = []
    for seed in seeds:
        keep, skip = random_keep(structure, seed), random_skip(structure, seed)
        smaller = check_removal(subject, keep, skip)
        check_costs(subject, smaller, keep, skip)
        check_attributes(smaller)
        check_trainable(subject, smaller)
        choices.append((keep, skip, smaller))
    check_regrowth(subject, choices)
