"""float16 under a GradScaler, compiled models, computed weights: what ordinary loops do beyond test_compatibility."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from apical import DormantStore, Grower, resize_, trace
from apical.growth._growing_model import prepare_births_
from growth.cases import begun, built, grown, loss_of, sgd, squares_of
from marks import slow

EPOCHS = 20


def test_fp16_autocast_under_a_scaler_that_overflows() -> None:
    """The first steps overflow and are skipped; none of them counts, the others do, and the budget is met."""
    model, optimizer, grower = begun("plain", epochs=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26)
    skipped = 0
    for epoch in range(4):
        for i in range(6):
            before, scale = squares_of(grower), scaler.get_scale()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loss = loss_of(model, "plain", 10 * epoch + i)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            was_skipped = scaler.get_scale() < scale
            skipped += was_skipped
            assert torch.equal(squares_of(grower), before) == was_skipped
        grower.end_epoch()
    assert 0 < skipped < 20
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert 0.49 <= grower.history[-1]["macs_fraction"] <= 0.501


class Counting:
    """A backend for torch.compile that runs the graph as it is, and counts."""

    def __init__(self) -> None:
        self.compiled = 0

    def __call__(self, graph: Any, inputs: list[Tensor]) -> Any:
        self.compiled += 1
        return graph.forward


@pytest.fixture
def backend() -> Any:
    torch.compiler.reset()
    yield Counting()
    torch.compiler.reset()


@pytest.mark.parametrize(("divisor", "interval"), [slow(1, 1), slow(8, 1), (8, 3)])
def test_a_compiled_model_is_compiled_once_for_each_network(backend: Counting, divisor: int, interval: int) -> None:
    """With the line of docs/guides/compatibility.md: no recompilation but for another network, and none is left out.

    Without it torch gives up after eight networks and runs the others, the last one too, uncompiled.
    """
    plain, model = built("plain"), built("plain")
    optimizers = sgd(plain), sgd(model)
    options = {"epochs": EPOCHS, "divisor": divisor, "interval": interval, "growth_end": 0.8}
    growers = grown("plain", plain, optimizers[0], **options), grown("plain", model, optimizers[1], **options)
    compiled = torch.compile(model, backend=backend)
    networks, counts = 1, []
    for epoch in range(EPOCHS):
        before = backend.compiled
        for net, optimizer in ((plain, optimizers[0]), (compiled, optimizers[1])):
            for i in range(2):
                optimizer.zero_grad()
                loss_of(net, "plain", 10 * epoch + i).backward()
                optimizer.step()
        counts.append(backend.compiled - before)
        shapes = [p.shape for p in model.parameters()]
        for grower in growers:
            grower.end_epoch()
        if shapes != [p.shape for p in model.parameters()]:
            torch.compiler.reset()
            networks += 1
    assert backend.compiled == networks
    assert counts[-1] == 0
    assert networks <= 1 + math.ceil(16 / interval)
    assert networks > (8 if divisor == 1 else 3)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))


def trained(grower: Grower, optimizer: torch.optim.Optimizer) -> None:
    """Four epochs of one step, and the end."""
    for epoch in range(4):
        optimizer.zero_grad()
        loss_of(grower.model, "mlp", epoch).backward()
        optimizer.step()
        grower.end_epoch()
    grower.finish()


def test_rows_of_an_orthogonal_weight_may_leave_and_the_others_stay_orthonormal() -> None:
    """The weight is a fixed base times a rotation, so that rows of the base are output channels; its inputs stay."""
    torch.manual_seed(0)
    parametrised = parametrizations.orthogonal(nn.Linear(24, 24))
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), parametrised, nn.ReLU(), nn.Linear(24, 4))
    optimizer = sgd(model)
    grower = Grower(model, optimizer, torch.zeros(8, 6), "80% macs", 4)
    assert [g.name for g in grower.structure.groups] == ["2.parametrizations.weight.0"]
    trained(grower, optimizer)
    weight = model[2].weight.detach()
    assert weight.shape[0] < weight.shape[1] == 24
    assert torch.allclose(weight @ weight.T, torch.eye(len(weight)), atol=1e-5)


def test_normed_weights_grow_and_newborn_units_leave_the_function_as_it_was() -> None:
    torch.manual_seed(0)
    norm = parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(6, 24)), nn.ReLU(), norm(nn.Linear(24, 24)), nn.ReLU(), nn.Linear(24, 4))
    twin, optimizer, x = copy.deepcopy(model), sgd(model), torch.randn(8, 6)
    grower = Grower(model, optimizer, x, "60% macs", 4)
    assert [g.size for g in grower.structure.groups] == [24, 24]
    trained(grower, optimizer)
    assert model[0].out_features + model[2].out_features < 48
    assert grower.history[-1]["macs_fraction"] <= 0.601
    assert bool(model(x).isfinite().all())

    structure, store = grower.structure, DormantStore()
    born = {g.name: range(8, 24) for g in structure.groups}
    resize_(twin, structure, {name: range(8) for name in born}, store=store)
    before = twin(x)
    prepare_births_(store, structure, born, born, (), preserving=True)
    resize_(twin, structure, {}, store=store)
    torch.testing.assert_close(twin(x), before)


class Caching(nn.Module):
    """A residual block that hands on what the next call is to go on with."""

    def __init__(self) -> None:
        super().__init__()
        self.rise, self.fall = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, cache: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = self.rise(x) if cache is None else self.rise(x) + 0 * cache
        return x + self.fall(h.relu()), h


class Stack(nn.Module):
    """Two of these."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Caching() for _ in range(2)), nn.Linear(6, 2)

    def forward(self, x: Tensor, caches: list[Any] | None = None, with_caches: bool = False) -> Any:
        kept = []
        for block, cache in zip(self.blocks, caches or [None, None], strict=True):
            x, cache = block(x, cache)
            kept.append(cache)
        return (self.head(x), kept) if with_caches else self.head(x)


def test_a_block_that_is_left_out_has_no_cache_and_a_frozen_one_comes_back_as_it_left() -> None:
    model, x = Stack(), torch.randn(3, 6)
    structure, store = trace(model, x), DormantStore()
    resize_(model, structure, {}, ["blocks.0"], store=store)
    outputs, caches = model(x, None, True)
    assert caches[0] is None
    assert torch.equal(model(x, caches), outputs)
    model.requires_grad_(False)
    resize_(model, structure, {}, (), store=store)
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False] * 6
