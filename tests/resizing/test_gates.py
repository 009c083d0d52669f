"""Gates of LSTM and GRU as structure: they leave exactly, are priced exactly, and come back as they were."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import apical
from apical.errors import ResizeError
from apical.export import export_onnx, export_pt2
from apical.models import LSTMLanguageModel, split_gates_
from apical.resizing._gates import zero_gates_
from apical.structure import ChannelGroup, Structure
from apical.structure._absent_gates import without_absent
from apical.structure._without import without
from marks import quick

VOCABULARY, EMBEDDING, UNITS = 11, 4, (6, 5)
KINDS = {"lstm": "ifgo", "gru": "rzn"}
both = pytest.mark.parametrize("kind", KINDS)
TOKENS = torch.arange(14).view(7, 2) % VOCABULARY


def built(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = LSTMLanguageModel(VOCABULARY, EMBEDDING, UNITS, cell=kind, gates=True, init_range=1.0)  # type: ignore[arg-type]
    return model.double()


@pytest.fixture(scope="module", params=KINDS)
def traced(request: pytest.FixtureRequest) -> tuple[str, Structure]:
    return request.param, apical.trace(built(request.param), TOKENS)


def some_of(structure: Structure, seed: int) -> dict[str, list[int]]:
    """Any units of every group, some of the present and of the absent units' gates."""
    draw = random.Random(seed)
    keep = {g.name: sorted(draw.sample(range(g.size), draw.randint(min(2, g.size), g.size))) for g in structure.groups}
    for group in structure.groups:
        if group.needs is not None:
            keep[group.name] = sorted({*keep[group.name], draw.choice(keep[group.needs.group])})
    return keep


def some_of_needed(structure: Structure, seed: int) -> dict[str, list[int]]:
    """Any units of every group, and with each choice of gates a unit that one of them needs."""
    draw = random.Random(seed)
    keep = {g.name: sorted(draw.sample(range(g.size), draw.randint(min(2, g.size), g.size))) for g in structure.groups}
    for group in structure.groups:
        if group.needs is not None:
            needed = group.needs.units[draw.choice(keep[group.name])]
            keep[group.needs.group] = sorted({*keep[group.needs.group], needed})
    return keep


def nested(structure: Structure, keep: dict[str, list[int]]) -> dict[str, list[int]]:
    """The slow way to say what stays: a gate needs its hidden unit."""
    needed = {g.name: g.needs.units if g.needs else range(g.size) for g in structure.groups}
    return {name: [u for u in keep[name] if units[u] in keep[name.partition(":")[0]]] for name, units in needed.items()}


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(TOKENS)[0]
    return logits


def test_each_kind_of_gate_is_a_group_beside_the_hidden_units(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    letters = KINDS[kind]
    layers = {f"layers.{i}{gate}": n for i, n in enumerate(UNITS) for gate in ("", *(f":{x}" for x in letters))}
    assert {g.name: g.size for g in structure.groups} == {"embedding": EMBEDDING, **layers}
    last = structure.group(f"layers.1:{letters[-1]}")
    assert last.needs is not None
    assert (last.needs.group, last.needs.units) == ("layers.1", tuple(range(5)))
    rows = tuple((5 * (len(letters) - 1) + u,) for u in range(5))
    sites = {(p.tensor, p.dim, p.positions) for p in last.gate_site}
    assert sites == {(f"layers.1.weight_{w}_l0", 0, rows) for w in ("ih", "hh")}
    assert Structure.from_dict(structure.to_dict()) == structure


@pytest.mark.parametrize("seed", range(5))
def test_removal_is_a_gate_of_zero_and_costs_what_is_said(traced: tuple[str, Structure], seed: int) -> None:
    kind, structure = traced
    keep = some_of(structure, seed)
    small, masked = built(kind), built(kind)
    report = apical.resize_(small, structure, keep)
    zero_gates_(masked, structure, keep)
    torch.testing.assert_close(outputs(small), outputs(masked), rtol=1e-12, atol=1e-12)
    assert report.sizes == {name: len(kept) for name, kept in nested(structure, keep).items()}
    for asked in (keep, report.sizes):
        assert structure.num_params(asked) == sum(p.numel() for p in small.parameters())


def test_multiply_adds_are_those_that_torch_counts(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    model, (first, second) = built(kind), KINDS[kind][:2]
    keep = {"layers.0": [0, 2, 3, 5], f"layers.0:{first}": range(1, 4), f"layers.1:{second}": range(1, 3)}
    apical.resize_(model, structure, keep)
    with FlopCounterMode(display=False) as counter:  # which misses torch's fused layers on the CPU
        outputs(model)
    assert 2 * structure.macs(keep) == counter.get_total_flops()


def test_zeroed_weights_of_a_gate_are_its_absence(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    model, small, letter = built(kind), built(kind), KINDS[kind][1]
    with torch.no_grad():
        for unit in (1, 4):
            model.layers[0].weight_ih_l0[6 + unit] = 0
            model.layers[0].weight_hh_l0[6 + unit] = 0
    apical.resize_(small, structure, {f"layers.0:{letter}": [0, 2, 3, 5]})
    torch.testing.assert_close(outputs(small), outputs(model), rtol=1e-12, atol=1e-12)


def test_hidden_units_take_their_gates_along(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    model = built(kind)
    report = apical.resize_(model, structure, {"layers.0": [1, 4]})
    assert model.layers[0].gate_counts() == dict.fromkeys(KINDS[kind], 2)
    assert structure.macs({"layers.0": 2}) == structure.macs({"layers.0": [1, 4]}) == structure.macs(report.sizes)


@both
@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.Adam])
def test_what_left_comes_back_to_the_bit_with_its_moments(kind: str, optimizer_type: Any) -> None:
    model = built(kind)
    structure = apical.trace(model, TOKENS)
    options = {"momentum": 0.9} if optimizer_type is torch.optim.SGD else {}
    optimizer, store = optimizer_type(model.parameters(), lr=0.01, **options), apical.DormantStore()
    for _ in range(2):
        optimizer.zero_grad()
        model(TOKENS)[0].square().mean().backward()
        optimizer.step()
    before, moments = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    for seed in (1, 2):
        apical.resize_(model, structure, some_of(structure, seed), optimizer=optimizer, store=store)
    apical.resize_(model, structure, {}, optimizer=optimizer, store=store)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for i, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(moments[i][n])) for n, v in entries.items())


def test_gates_of_absent_units_alone_are_refused(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    model, name = built(kind), f"layers.0:{KINDS[kind][0]}"
    with pytest.raises(ResizeError, match=f"group '{name}': none of the units of 'layers.0' that it needs stays"):
        apical.resize_(model, structure, {"layers.0": [0], name: [1]})


def test_widths_never_exceed_what_they_need(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    letters = KINDS[kind]
    assert structure.attainable([4, 2, *[6] * len(letters), 5, *[3] * len(letters)]) == [
        4, 2, *[2] * len(letters), 5, *[3] * len(letters)]  # fmt: skip
    full = {g.name: g.size for g in structure.groups}
    assert structure.macs(full | {"layers.0": 2}) == structure.macs({"layers.0": [0, 3]})


def test_a_layer_whose_gates_are_refuted_keeps_its_units(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    name = f"layers.0:{KINDS[kind][2]}"
    frozen = without(structure, {(ChannelGroup, name): "why"})
    assert [g.name for g in frozen.groups if g.name in ("layers.0", name)] == []
    assert {f.name: f.reason for f in frozen.frozen if f.reason == "why"} == {"layers.0": "why", name: "why"}
    free = without(structure, {(ChannelGroup, "layers.0"): "why"})
    assert free.group(name).needs is None


@pytest.mark.parametrize("seed", range(2))
def test_a_network_without_some_gates_is_traced_anew(traced: tuple[str, Structure], seed: int) -> None:
    """Its structure has what is there, and all that a structure is for holds for it."""
    kind, first = traced
    model, keep = built(kind), nested(first, some_of(first, seed))
    apical.resize_(model, first, keep)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    structure = apical.trace(model, TOKENS)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "traced on a copy"
    assert {g.name: g.size for g in structure.groups} == {name: len(kept) for name, kept in keep.items()}
    assert structure.macs() == first.macs(keep)
    assert {n: spec.shape for n, spec in structure.tensors.items()} == {n: tuple(t.shape) for n, t in before.items()}
    chosen = nested(structure, some_of_needed(structure, seed + 10))
    masked, store = copy.deepcopy(model), apical.DormantStore()
    zero_gates_(masked, structure, chosen)
    apical.resize_(model, structure, chosen, store=store)
    torch.testing.assert_close(outputs(model), outputs(masked), rtol=1e-10, atol=1e-12)
    assert structure.num_params(chosen) == sum(p.numel() for p in model.parameters())
    apical.resize_(model, structure, {g.name: range(g.size) for g in structure.groups}, store=store)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_kind_of_gate_that_no_unit_has_is_no_group(traced: tuple[str, Structure]) -> None:
    kind, _ = traced
    model: Any = built(kind)
    layer, last = model.layers[0], len(KINDS[kind]) - 1
    there = layer.row_gates != last
    for name in ("weight_ih_l0", "weight_hh_l0"):
        setattr(layer, name, nn.Parameter(getattr(layer, name).detach()[there]))
    layer.row_units, layer.row_gates = layer.row_units[there], layer.row_gates[there]
    structure = apical.trace(model, TOKENS)
    names = [g.name for g in structure.groups if g.name.startswith("layers.0")]
    assert names == ["layers.0", *(f"layers.0:{gate}" for gate in KINDS[kind][:last])]
    apical.resize_(model, structure, {"layers.0": [0, 2], "layers.1": [1, 2, 3]})
    assert structure.num_params({"layers.0": 2, "layers.1": 3}) == sum(p.numel() for p in model.parameters())
    assert outputs(model).isfinite().all()


def test_rows_that_are_gone_from_a_frozen_gate_are_not_guessed(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    there = {row: row for row in range(UNITS[0] * len(KINDS[kind]) - 1)}  # all but the last gate's last
    rows = {f"layers.0.{name}": there for name in ("weight_ih_l0", "weight_hh_l0", "row_units", "row_gates")}
    name = f"layers.0:{KINDS[kind][-1]}"
    found = without_absent(structure, rows)
    assert found is not None
    assert found.group(name).size == UNITS[0] - 1
    assert without_absent(without(structure, {(ChannelGroup, name): "why"}), rows) is None


@both
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    model = built(kind)
    structure = apical.trace(model, TOKENS)
    apical.resize_(model, structure, some_of(structure, 3))
    apical.save(model, tmp_path)
    again = apical.load(built(kind), tmp_path)
    assert torch.equal(outputs(again), outputs(model))
    assert [layer.gate_counts() for layer in again.layers] == [layer.gate_counts() for layer in model.layers]


@pytest.mark.parametrize("kind", quick(KINDS, ["lstm"]))
def test_exported_with_some_gates(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, few = built(kind).float(), TOKENS[:3]  # exporters write every step out
    structure = apical.trace(model, few)
    apical.resize_(model, structure, some_of(structure, 4))
    assert export_onnx(model, few, tmp_path / "model.onnx", batch_dim=1).difference < 1e-5
    assert export_pt2(model, few, tmp_path / "model.pt2", batch_dim=1).difference < 1e-5


def test_a_state_follows_the_hidden_units(traced: tuple[str, Structure]) -> None:
    kind, structure = traced
    model, store = built(kind), apical.DormantStore()
    state = model(TOKENS)[1]
    keep = some_of(structure, 5)
    apical.resize_(model, structure, keep, store=store)
    moved = apical.resize_state(state, structure, {}, keep)
    assert model(TOKENS, moved)[0].shape == (7, 2, VOCABULARY)
    assert moved[0][0].shape[-1] == len(keep["layers.0"])


class Packing(nn.Module):
    """The state after the last step; of texts with lengths, that after each one's own last step."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = nn.LSTM(EMBEDDING, 6) if kind == "lstm" else nn.GRU(EMBEDDING, 6)
        self.head = nn.Linear(6, 3)
        split_gates_(self)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        given = x if lengths is None else nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        states = self.rnn(given)[1]
        logits: Tensor = self.head((states[0] if isinstance(states, tuple) else states)[0])
        return logits


@both
def test_a_model_that_packs_is_traced_without_lengths(kind: str) -> None:
    torch.manual_seed(0)
    model, lengths = Packing(kind).double(), [4, 7, 2]
    x = torch.randn(7, 3, EMBEDDING, dtype=torch.float64)
    structure = apical.trace(model, x)
    apical.resize_(model, structure, some_of(structure, 6))
    with torch.no_grad():
        alone = torch.cat([model(x[:n, k : k + 1]) for k, n in enumerate(lengths)])
        torch.testing.assert_close(model(x, torch.tensor(lengths)), alone, rtol=1e-12, atol=1e-12)
