"""Channels under LayerNorm and RMSNorm: frozen by default, resized on demand; what that changes is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.errors import TraceError
from apical.growth._growing_model import prepare_births_
from apical.models import GPT
from apical.structure import Structure
from structure.contract import generic_, outputs, relative_error
from structure.expectations import reasons_of, traced
from structure.nets import Net, RmsNorm


class Masked(nn.Module):
    """What a norm computes once channels are gone: its statistics count only those that are left."""

    def __init__(self, norm: nn.Module, kept: list[int]) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        left = x[..., self.kept]
        center = left.mean(-1, keepdim=True) if isinstance(self.norm, nn.LayerNorm) else torch.zeros(())
        eps = 1e-6 if isinstance(self.norm, RmsNorm) else self.norm.eps
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        scaled = (x - center) * torch.rsqrt((left - center).square().mean(-1, keepdim=True) + eps)
        bias = getattr(self.norm, "bias", None)
        return scaled * self.norm.weight + (0 if bias is None else bias)


def stack(norm: Callable[[int], nn.Module], post: bool = False) -> nn.Module:
    """Two residual branches on a stream of 8 channels."""

    def branch() -> nn.Module:
        mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        if post:
            return Net(lambda n, x: n.norm(x + n.mlp(x)), norm=norm(8), mlp=mlp)
        return Net(lambda n, x: x + n.mlp(n.norm(x)), norm=norm(8), mlp=mlp)

    return nn.Sequential(nn.Linear(4, 8), branch(), branch(), norm(8), nn.Linear(8, 3))


def encoder() -> nn.Module:
    """Torch's own layers, whose attention says the width of the embedding."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 3))


def mixer() -> nn.Module:
    """Tokens and channels mixed in turn."""
    return Net(
        lambda n, x: n.head(n.norm(n.tokens(n.norm1(n.stem(x)).transpose(1, 2)).transpose(1, 2) + n.stem(x)).mean(1)),
        stem=nn.Linear(4, 8), norm1=nn.LayerNorm(8), tokens=nn.Linear(5, 5), norm=nn.LayerNorm(8), head=nn.Linear(8, 3),
    )  # fmt: skip


def over_all() -> nn.Module:
    """Group norm with one group."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.ReLU(), nn.Conv2d(8, 4, 3))


X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm, "rms": nn.RMSNorm, "written out": RmsNorm
}  # fmt: skip
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    **{f"{name}, pre": (lambda norm=norm: stack(norm), X) for name, norm in NORMS.items()},
    **{f"{name}, post": (lambda norm=norm: stack(norm, post=True), X) for name, norm in NORMS.items()},
    "encoder": (encoder, X),
    "mixer": (mixer, X),
    "one group": (over_all, torch.randn(2, 3, 8, 8)),
    "gpt": (lambda: GPT(20, 8, 12, 2, 3), torch.arange(12).view(2, 6)),
}


@pytest.mark.parametrize("name", NETS)
def test_everything_else_is_exact_beside_them(name: str) -> None:
    build, x = NETS[name]
    model = build()
    structure = traced(model, (x,), streams="resize")
    inexact = [g for g in structure.groups if not g.exact]
    assert len(inexact) == 1
    assert inexact[0].size in (8, 12)
    assert Structure.from_dict(structure.to_dict()) == structure
    assert "not exact" in str(structure)


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_what_is_left_is_normalised_without_what_is_gone(norm: Callable[[int], nn.Module], post: bool) -> None:
    model = generic_(stack(norm, post))
    structure = apical.trace(model, (X.double(),), streams="resize")
    (group,) = (g for g in structure.groups if not g.exact)
    kept = [0, 2, 3, 7]
    small, masked = copy.deepcopy(model), copy.deepcopy(model)
    apical.resize_(small, structure, {group.name: kept})
    with torch.no_grad():
        for part in group.gate_site:
            gone = torch.ones(8, dtype=torch.bool)
            gone[kept] = False
            masked.get_parameter(part.tensor).index_fill_(part.dim, gone.nonzero().reshape(-1), 0)
    for path, module in list(masked.named_modules()):
        if isinstance(module, (nn.LayerNorm, nn.RMSNorm, RmsNorm)):
            parent = masked.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], Masked(module, kept))
    assert relative_error(outputs(small, (X.double(),)), outputs(masked, (X.double(),))) < 1e-10
    assert relative_error(outputs(small, (X.double(),)), outputs(model, (X.double(),))) > 1e-3


def test_they_stay_by_default_and_where_a_norm_has_no_weight() -> None:
    plain = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = apical.trace(plain, X)
    assert "statistics change" in reasons_of(structure)["0"]
    assert [(g.name, g.exact) for g in structure.groups] == [("2", True)]
    bare = copy.deepcopy(plain)
    bare[1] = nn.LayerNorm(8, elementwise_affine=False)
    assert "normalized_shape" in reasons_of(traced(bare, (X,), streams="resize"))["0"]
    with pytest.raises(TraceError, match="'keep' or 'resize'"):
        apical.trace(plain, X, streams="grow")  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", ["50% macs", "25% macs"])
def test_the_embedding_grows_with_everything_else(budget: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(20, (8, 8))
    model = GPT(20, 8, 24, 2, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    grower = apical.Grower(model, optimizer, tokens[:, :-1], budget, epochs=10, streams="resize")
    losses, widths = [], [model.token_embedding.embedding_dim]
    for _ in range(10):
        for _ in range(4):
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        grower.end_epoch()
        widths.append(model.token_embedding.embedding_dim)
    grower.finish()
    width = widths[-1]
    assert widths[0] <= 8
    assert len(set(widths)) > 2
    assert {m.normalized_shape for m in model.modules() if isinstance(m, nn.LayerNorm)} == {(width,)}
    share = grower.history[-1]["macs"] / grower.structure.macs()
    assert share == pytest.approx(float(budget.split("%")[0]) / 100, abs=0.01)
    assert losses[-1] < losses[0] - 0.5
    loaded = apical.load(GPT(20, 8, 24, 2, 4), apical.save(model, tmp_path))
    assert torch.equal(loaded.eval()(tokens), model.eval()(tokens))


def test_half_and_a_quarter_of_the_macs_are_within_reach_of_widths_alone() -> None:
    structure = apical.trace(GPT(20, 8, 32, 2, 4), torch.zeros(1, 8, dtype=torch.long), streams="resize")
    for part in (2, 4):
        keep = {g.name: range(g.size // part) for g in structure.groups}
        assert structure.macs(keep) / structure.macs() < 1 / part
    model = GPT(20, 8, 32, 2, 4)
    apical.resize_(model, structure, keep)
    assert model(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 20)
    assert model.token_embedding.weight.shape == (20, 8)


def test_a_birth_changes_the_function_a_little_and_only_through_the_statistics() -> None:
    torch.manual_seed(0)
    model = GPT(20, 8, 32, 2, 4).double().eval()
    tokens = torch.randint(20, (4, 8))
    structure = apical.trace(model, tokens, streams="resize")
    (group,) = (g for g in structure.groups if not g.exact)

    def jump(preserving: bool, born: int) -> float:
        twin, store = copy.deepcopy(model), apical.DormantStore()
        apical.resize_(twin, structure, {group.name: range(24)}, store=store)
        before = outputs(twin, (tokens,))
        newborn = {group.name: range(24, 24 + born)}
        prepare_births_(store, structure, newborn, newborn, (), preserving)
        apical.resize_(twin, structure, {group.name: range(24 + born)}, store=store)
        return relative_error(outputs(twin, (tokens,)), before)

    assert 1e-6 < jump(True, 1) < 0.5 * jump(False, 1)
    assert 1e-6 < jump(True, 8) < 0.5 * jump(False, 8)


def test_the_embedding_is_trained_after_its_birth() -> None:
    torch.manual_seed(0)
    model = GPT(20, 8, 16, 1, 2, tied=False)
    tokens = torch.randint(20, (4, 8))
    structure = apical.trace(model, tokens, streams="resize")
    (group,) = (g for g in structure.groups if not g.exact)
    store = apical.DormantStore()
    apical.resize_(model, structure, {group.name: range(12)}, store=store)
    newborn = {group.name: range(12, 16)}
    prepare_births_(store, structure, newborn, newborn, (), True)
    apical.resize_(model, structure, {}, store=store)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved: dict[str, Any] = {}
    for _ in range(2):  # what reads the newborns moves first, then what writes them
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
        moved = {n: (p - before[n]).abs() for n, p in model.named_parameters()}
    assert bool((moved["token_embedding.weight"][tokens.unique(), 12:].sum(0) > 0).all())
    assert bool((moved["head.weight"][:, 12:].sum(0) > 0).all())
