"""Births where channels are read without a weight as well, or by the weight that writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.growth._growing_model import prepare_births_
from apical.structure import Structure
from structure.nets import Net

VECTORS = (torch.randn(16, 8, generator=torch.Generator().manual_seed(1)).double(),) * 2
INDICES = (torch.randint(10, (16, 3), generator=torch.Generator().manual_seed(1)),)


def tower() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10))


def towers(m: Net, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u = m.u(a)
    return u @ m.v(b).t(), m.classes(u)


def contrast(m: Net, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """InfoNCE, and a layer that reads one side of it."""
    u, v = F.normalize(m.u(a)), F.normalize(m.v(b))
    return F.cross_entropy(u @ v.t() / 0.2, torch.arange(len(u))), m.classes(u)


def squares(e: Tensor) -> Tensor:
    """The second-order term of a factorisation machine."""
    return (e.sum(1).square() - e.square().sum(1)).sum(1, keepdim=True)


def deep(m: Net, i: Tensor) -> Any:
    return squares(m.e(i)) + m.deep(m.e(i).flatten(1))


def dots(m: Net, i: Tensor) -> Any:
    u, v = m.u(i[:, 0]), m.v(i[:, 1])
    return m.top(torch.cat([u, v, (u * v).sum(1, keepdim=True)], 1))


def tied(m: Net, a: Tensor, b: Tensor) -> Tensor:
    return F.linear(F.relu(m.a(a)), m.a.weight.t(), m.d)


def tied_twice(m: Net, a: Tensor, b: Tensor) -> Tensor:
    h = F.relu(F.linear(F.relu(m.b(F.relu(m.a(a)))), m.b.weight.t(), m.c))
    return F.linear(h, m.a.weight.t(), m.d)


def zeros(n: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(n))


Case = tuple[Callable[[], Net], tuple[Tensor, ...]]
SILENT: dict[str, Case] = {
    "towers": (lambda: Net(towers, u=tower(), v=tower(), classes=nn.Linear(10, 3)), VECTORS),
    "contrast": (lambda: Net(contrast, u=tower(), v=tower(), classes=nn.Linear(10, 3)), VECTORS),
    "dots": (lambda: Net(dots, u=nn.Embedding(10, 6), v=nn.Embedding(10, 6), top=nn.Linear(13, 1)), INDICES),
    "deep": (lambda: Net(deep, e=nn.Embedding(10, 8), deep=nn.Sequential(nn.Linear(24, 6), nn.ReLU(), nn.Linear(6, 1))),
             INDICES),
    "tied sigmoid": (lambda: Net(lambda m, a, b: F.linear(torch.sigmoid(m.a(a)), m.a.weight.t()), a=nn.Linear(8, 12)),
                     VECTORS),
}  # fmt: skip
SMALL: dict[str, Case] = {
    "tied": (lambda: Net(tied, a=nn.Linear(8, 24), d=zeros(8)), VECTORS),
    "tied twice": (lambda: Net(tied_twice, a=nn.Linear(8, 24), b=nn.Linear(24, 12), c=zeros(24), d=zeros(8)), VECTORS),
    "tied tanh": (lambda: Net(lambda m, a, b: F.linear(torch.tanh(m.a(a)), m.a.weight.t()), a=nn.Linear(8, 12)),
                  VECTORS),
    "squares": (lambda: Net(lambda m, i: squares(m.e(i)), e=nn.Embedding(10, 8)), INDICES),
    "twins": (lambda: Net(lambda m, a, b: m.u(a) @ m.u(b.flip(0)).t(), u=tower()), VECTORS),
    "towers of ReLUs": (lambda: Net(towers, u=nn.Sequential(tower(), nn.ReLU()), v=nn.Sequential(tower(), nn.ReLU()),
                                    classes=nn.Linear(10, 3)), VECTORS),
    "fixed projection": (lambda: Net(lambda m, a, b: F.relu(m.a(a)) @ m.p, a=nn.Linear(8, 12), p=torch.randn(12, 3)),
                         VECTORS),
}  # fmt: skip


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    found: Any = model(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


@torch.no_grad()
def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def half_born(case: Case, preserving: bool = True) -> tuple[nn.Module, Structure, float]:
    """A model of which half of each group's units were just born, and by how much that changed what it computes."""
    torch.manual_seed(0)
    (make, inputs), store = case, apical.DormantStore()
    model = make().double()
    structure = apical.trace(model, inputs)
    apical.resize_(model, structure, {g.name: range(g.size // 2) for g in structure.groups}, store=store)
    before = [o.detach() for o in outputs(model, inputs)]
    born = {g.name: range(g.size // 2, g.size) for g in structure.groups}
    prepare_births_(store, structure, born, born, (), preserving)
    apical.resize_(model, structure, {}, store=store)
    return model, structure, relative_error(outputs(model, inputs), before)


def moved(model: nn.Module, structure: Structure, inputs: tuple[Tensor, ...]) -> dict[str, list[bool]]:
    """Whether each newborn has moved after three steps, in a parameter of its own."""
    was, optimizer = copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack([o.square().mean() for o in outputs(model, inputs)]).sum().backward()
        optimizer.step()
    found: dict[str, list[bool]] = {}
    for group in structure.groups:
        any_moved = torch.zeros(group.size // 2, dtype=torch.bool)
        for part in (p for p in group.members if structure.tensors[p.tensor].is_parameter):
            differs = (model.get_parameter(part.tensor) != was.get_parameter(part.tensor)).movedim(part.dim, 0)
            any_moved |= differs.reshape(len(differs), -1).any(1)[part.index[group.size // 2 :]].any(1)
        found[group.name] = any_moved.tolist()
    return found


@pytest.mark.parametrize("name", SILENT)
def test_a_birth_is_silent_where_channels_are_read_without_a_weight_too(name: str) -> None:
    model, structure, jump = half_born(SILENT[name])
    assert jump <= 1e-10
    assert all(group.silent for group in structure.groups)
    assert all(map(all, moved(model, structure, SILENT[name][1]).values()))


@pytest.mark.parametrize("name", SMALL)
def test_a_newborn_that_zeros_would_hold_for_ever_begins_small(name: str) -> None:
    """Nearly as many move as if they began with their weights as they are: a ReLU may be off for the whole batch."""
    model, structure, jump = half_born(SMALL[name])
    other, _, full_jump = half_born(SMALL[name], preserving=False)
    assert not all(group.silent for group in structure.groups)
    assert 0 < jump < 0.2 * full_jump
    small, full = (moved(m, structure, SMALL[name][1]) for m in (model, other))
    few, many = (sum(map(sum, found.values())) for found in (small, full))
    assert few >= 0.9 * many > 0
    assert Structure.from_dict(structure.to_dict()).groups == structure.groups


def test_no_unit_of_a_tied_autoencoder_stays_dead() -> None:
    torch.manual_seed(0)
    model = Net(tied, a=nn.Linear(8, 64), d=zeros(8))
    x = torch.randn(256, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    grower = apical.Grower(model, optimizer, (x[:1], x[:1]), "60% macs", epochs=4)
    for _ in range(4):
        for _ in range(10):
            optimizer.zero_grad()
            F.mse_loss(model(x, x), x).backward()
            optimizer.step()
        assert bool((model.get_parameter("a.weight") != 0).any(1).all())
        grower.end_epoch()
