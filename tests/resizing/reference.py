"""A slow, obviously right account of what a resize must do: full-size arrays, and lists of kept positions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical import DormantStore, Structure

Keep = Mapping[str, Sequence[int]]
Positions = tuple[list[int], ...]  # the kept positions along every dimension


def kept_positions(structure: Structure, name: str, keep: Keep) -> Positions:
    """For each dimension of a tensor what stays of it."""
    kept = [list(range(n)) for n in structure.tensors[name].shape]
    for group in structure.groups:
        gone = set(range(group.size)) - set(keep.get(group.name, range(group.size)))
        for part in group.members:
            if part.tensor == name:
                lost = {position for u in gone for position in part.positions[u]}
                kept[part.dim] = [p for p in kept[part.dim] if p not in lost]
    return tuple(kept)


def take(full: Tensor, positions: Positions) -> Tensor:
    """The kept part of a full-size tensor."""
    return torch.from_numpy(full.numpy()[np.ix_(*positions)].copy()) if positions else full.clone()


def put(full: Tensor, positions: Positions, part: Tensor) -> None:
    """Write the kept part of a full-size tensor."""
    if positions:
        full.numpy()[np.ix_(*positions)] = part.detach().numpy()
    else:
        full.copy_(part.detach())


def inside(name: str, blocks: Iterable[str]) -> bool:
    """Whether a tensor belongs to one of the blocks."""
    return any(name.startswith(block + ".") for block in blocks)


def alive(structure: Structure, skip: Iterable[str]) -> dict[str, str]:
    """For every tensor that some present module holds the first name under which it does."""
    found = {}
    for name, spec in structure.tensors.items():
        names = [n for n in (name, *spec.aliases) if not inside(n, skip)]
        if names:
            found[name] = names[0]
    return found


@dataclass
class Reference:
    """Full-size copies of a model's tensors and of its optimizer's state, kept up to date by `pull`.

    It knows nothing of gathering, stores or modules: `expected` simply picks positions.
    """

    structure: Structure
    values: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, dict[str, Any]] = field(default_factory=dict)  # by parameter, full size or a number
    order: list[list[str]] = field(default_factory=list)  # parameter names of each parameter group at the start
    keep: dict[str, Sequence[int]] = field(default_factory=dict)
    skip: tuple[str, ...] = ()

    @staticmethod
    def of(structure: Structure, model: nn.Module, optimizer: Optimizer | None = None) -> Reference:
        """Start from a full-size model."""
        names = {id(p): n for n, p in model.named_parameters()}
        order = [[names[id(p)] for p in g["params"]] for g in optimizer.param_groups] if optimizer else []
        live = model.state_dict(keep_vars=True)
        return Reference(structure, {n: live[n].detach().clone() for n in structure.tensors}, order=order)

    def pull(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Note what training changed in the present part."""
        live = model.state_dict(keep_vars=True)
        for name, now in alive(self.structure, self.skip).items():
            full, positions = self.values[name], kept_positions(self.structure, name, self.keep)
            put(full, positions, live[now])
            for entry, value in (optimizer.state.get(live[now], {}) if optimizer else {}).items():
                held = self.state.setdefault(name, {})
                if isinstance(value, Tensor) and value.shape == live[now].shape:
                    put(held.setdefault(entry, torch.zeros(full.shape, dtype=value.dtype)), positions, value)
                else:
                    held[entry] = copy.deepcopy(value)

    def choose(self, keep: Keep, skip: Sequence[str] = ()) -> None:
        """From now on this is present."""
        self.keep, self.skip = dict(keep), tuple(skip)

    def assert_matches(self, model: nn.Module, optimizer: Optimizer | None = None) -> None:
        """The live model and optimizer are, bit for bit, the present part."""
        live = model.state_dict(keep_vars=True)
        present = alive(self.structure, self.skip)
        every = {n for name, spec in self.structure.tensors.items() for n in (name, *spec.aliases)}
        assert set(live) == {n for n in every if not inside(n, self.skip)}
        for name, now in present.items():
            positions = kept_positions(self.structure, name, self.keep)
            expected = take(self.values[name], positions)
            assert live[now].shape == expected.shape, name
            assert torch.equal(live[now], expected), f"values of {name}"
            for alias in self.structure.tensors[name].aliases:
                assert inside(alias, self.skip) or live[alias] is live[now], f"{alias} is no longer shared"
            if optimizer is not None:
                self._assert_state(name, positions, optimizer.state.get(live[now], {}))
        if optimizer is not None:
            names = {id(live[now]): name for name, now in present.items()}
            found = [[names.get(id(p), "dead") for p in g["params"]] for g in optimizer.param_groups]
            assert found == [[n for n in group if n in present] for group in self.order]
            held = {names.get(id(p), "dead") for p in optimizer.state}
            assert held <= set(present), "state of parameters that are gone"

    def _assert_state(self, name: str, positions: Positions, found: Mapping[str, Any]) -> None:
        expected = self.state.get(name, {})
        assert found.keys() == expected.keys(), name
        for entry, value in expected.items():
            if isinstance(value, Tensor) and value.shape == self.values[name].shape:
                value = take(value, positions)
            assert same(found[entry], value), f"{entry} of {name}"


def same(a: Any, b: Any) -> bool:
    """Equal, tensors bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def train_steps(
    model: nn.Module, optimizer: Optimizer | None, steps: int, shape: Sequence[int], seed: int
) -> Tensor | None:
    """Ordinary training steps on random inputs; returns the last loss, whose graph is still alive."""
    generator = torch.Generator().manual_seed(seed)
    loss = None
    for _ in range(steps):
        if optimizer is not None:
            optimizer.zero_grad()
        x = torch.randn(*shape, generator=generator)
        output = model(x)
        loss = (output - 1.0).square().mean()
        loss.backward()
        if optimizer is not None:
            optimizer.step()
    return loss


def snapshot(
    model: nn.Module, optimizers: Sequence[Optimizer] = (), store: DormantStore | None = None
) -> dict[str, Any]:
    """What a trace or failed resize leaves: identities, values, attributes, hooks, generator, optimizer, store."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    found: dict[str, Any] = {
        "tensor objects": [(n, id(t)) for n, t in tensors],
        "values": [(n, t.detach().clone()) for n, t in tensors if not t.is_meta],
        "gradients": [(n, None if t.grad is None else (id(t.grad), t.grad.clone())) for n, t in tensors],
        "flags": [(n, t.requires_grad) for n, t in tensors],
        "modules": [(n, id(m), m.training) for n, m in model.named_modules()],
        "attributes": [
            (n, k, v) for n, m in model.named_modules() for k, v in vars(m).items()
            if not k.startswith("_") and isinstance(v, (int, float, str, tuple))
        ],
        "names of attributes": [(n, sorted(vars(m))) for n, m in model.named_modules()],
        "hooks": [(n, k, list(v)) for n, m in model.named_modules() for k, v in vars(m).items() if "hooks" in k],
        "text": str(model),
        "random": torch.get_rng_state(),
    }  # fmt: skip
    for i, optimizer in enumerate(optimizers):
        found[f"optimizer {i}"] = [
            {k: [id(p) for p in v] if k == "params" else copy.deepcopy(v) for k, v in group.items()}
            for group in optimizer.param_groups
        ]
        found[f"state {i}"] = [
            (id(p), [(k, id(v), copy.deepcopy(v)) for k, v in entries.items()])
            for p, entries in optimizer.state.items()
        ]
    if store is not None:
        found["store"] = copy.deepcopy(store.state_dict())
        found["selection"] = copy.deepcopy(store.selection)
        found["parked"] = sorted((n, id(m)) for n, m in store.modules.items())
    return found


def assert_unchanged(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Two snapshots hold the same."""
    assert before.keys() == after.keys()
    for what, old in before.items():
        assert equal_trees(old, after[what]), f"{what} changed"


def equal_trees(a: Any, b: Any) -> bool:
    """Nested containers with the same leaves, tensors compared bit for bit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(equal_trees(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal_trees, a, b))
    return same(a, b)


def fresh_run(
    reference: Reference, template: nn.Module, resized: Callable[[nn.Module], None], make: Callable[..., Optimizer]
) -> tuple[nn.Module, Optimizer]:
    """A new model of the present shape and a new optimizer that start from the reference's sliced values and state.

    Args:
        reference: values and state at full size, and the choice.
        template: a model of full size; it is not changed.
        resized: shrinks a full-size model (only its shape counts: all values are set here).
        make: builds the optimizer from an iterable of named parameters' groups.
    """
    model = copy.deepcopy(template)
    resized(model)
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, now in alive(reference.structure, reference.skip).items():
            positions = kept_positions(reference.structure, name, reference.keep)
            state[now].copy_(take(reference.values[name], positions))
    present = [[n for n in g if not inside(n, reference.skip)] for g in reference.order]
    optimizer = make([[state[n] for n in group] for group in present])
    loaded = optimizer.state_dict()
    flat = [n for group in present for n in group]
    for i, name in enumerate(flat):
        entries = {}
        for entry, value in reference.state.get(name, {}).items():
            sized = isinstance(value, Tensor) and value.shape == reference.values[name].shape
            positions = kept_positions(reference.structure, name, reference.keep)
            entries[entry] = take(value, positions) if sized else copy.deepcopy(value)
        if entries:
            loaded["state"][i] = entries
    optimizer.load_state_dict(loaded)
    return model, optimizer
