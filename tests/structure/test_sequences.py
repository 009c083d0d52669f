"""Linear layers, embeddings, attention and recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from marks import slow
from structure.expectations import OUTPUT, OVER_CHANNELS, Groups, expect, groups_of, members_of, reasons_of, traced
from structure.nets import Attention, CellLoop, ExplicitAttention, LanguageModel, Net, recurrent, tokens, vectors

S = nn.Sequential
Case = tuple[Callable[[], nn.Module], tuple[Any, ...], Groups, dict[str, str]]
SEQUENCE = vectors(2, 5, 3)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer on a stream that LayerNorm fixes."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, 3)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def attention_case(kind: type[Attention]) -> Case:
    """Width, heads and output of one attention layer between linear layers."""
    return (
        lambda: S(nn.Linear(3, 8), kind(8, 4, 3, out=7), nn.Linear(7, 2)), SEQUENCE,
        {"0": (8, "inner", "0.weight 0.bias"), "1.query": (4, "inner", "1.value.weight 1.value.bias"),
         "1.project": (7, "inner", "1.project.weight 1.project.bias")}, {"2": OUTPUT},
    )  # fmt: skip


CASES: dict[str, Case] = {
    "mlp": (
        lambda: S(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2)), vectors(2, 3),
        {"0": (8, "inner", "0.weight 0.bias"), "2": (6, "inner", "2.weight 2.bias")}, {"4": OUTPUT},
    ),
    "batch_norm_mlp": (
        lambda: S(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 2)), vectors(2, 3),
        {"0": (8, "inner", "1.weight 1.bias")}, {"3": OUTPUT},
    ),
    "layer_norm_mlp": (
        lambda: S(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2)), vectors(2, 3),
        {"2": (8, "inner", "2.weight 2.bias")}, {"0": OVER_CHANNELS, "4": OUTPUT},
    ),
    "rms_norm_mlp": (
        lambda: S(nn.Linear(3, 6), nn.RMSNorm(6), nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2)), vectors(2, 3),
        {"2": (8, "inner", "2.weight 2.bias")}, {"0": OVER_CHANNELS, "4": OUTPUT},
    ),
    "gated_mlp": (
        lambda: Net(lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)), gate=nn.Linear(4, 8), up=nn.Linear(4, 8),
                    down=nn.Linear(8, 3)), vectors(2, 5, 4),
        {"gate": (8, "inner", "gate.weight gate.bias")}, {"down": OUTPUT},
    ),
    "learned_positions": (
        lambda: Net(lambda m, x: m.fc(F.relu(m.a(x) + m.p)), a=nn.Linear(3, 6), p=nn.Parameter(torch.randn(1, 5, 6)),
                    fc=nn.Linear(6, 2)), SEQUENCE,
        {"a": (6, "inner", "a.weight a.bias p/2")}, {"fc": OUTPUT},
    ),
    "attention": attention_case(Attention),
    "explicit_attention": attention_case(ExplicitAttention),
    "encoder_layer": (
        lambda: S(nn.Linear(3, 8), EncoderLayer(8, 2, 12), nn.LayerNorm(8), nn.Linear(8, 2)), SEQUENCE,
        {"1.attention.query": (2, "inner", "1.attention.value.weight 1.attention.value.bias"),
         "1.up": (12, "inner", "1.up.weight 1.up.bias")},
        {"0": OVER_CHANNELS, "1.attention.project": OVER_CHANNELS, "1.down": OVER_CHANNELS, "3": OUTPUT},
    ),
    "multihead_attention_module": (
        lambda: Net(lambda m, x: m.fc(m.mha(x, x, x, need_weights=False)[0]), fc=nn.Linear(8, 2),
                    mha=nn.MultiheadAttention(8, 4, batch_first=True)), vectors(2, 5, 8),
        {"mha": (4, "inner", "mha.in_proj_weight mha.in_proj_bias"),
         "mha.out_proj": (8, "inner", "mha.out_proj.weight mha.out_proj.bias")}, {"fc": OUTPUT},
    ),
    "token_mixer": (
        lambda: Net(lambda m, x: m.fc(x + m.down(F.gelu(m.up(x.transpose(1, 2)))).transpose(1, 2)), up=nn.Linear(5, 7),
                    down=nn.Linear(7, 5), fc=nn.Linear(3, 2)), SEQUENCE,
        {"up": (7, "inner", "up.weight up.bias")}, {"down": "positions of fixed size", "fc": OUTPUT},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_and_frozen_parts(name: str) -> None:
    build, inputs, groups, frozen = CASES[name]
    expect(build(), inputs, groups, frozen)


def test_heads_are_units_of_their_rows_and_columns() -> None:
    structure = traced(S(nn.Linear(3, 8), Attention(8, 4, 3), nn.Linear(8, 2)), SEQUENCE)
    rows = {f"1.{n}.{t}": 3 for n in ("query", "key", "value") for t in ("weight", "bias")}
    assert members_of(structure, "1.query") == {**rows, "1.project.weight/1": 3}
    attributes = {f"{a.module}.{a.attribute}" for a in structure.attributes if a.module == "1"}
    assert attributes == {"1.num_heads"}, "head_dim stays, num_heads follows"


def suffixes(layers: int, bidirectional: bool) -> list[str]:
    """l0, l0_reverse, l1, …"""
    return [f"l{i}{r}" for i in range(layers) for r in (["", "_reverse"] if bidirectional else [""])]


@pytest.mark.parametrize(("layers", "bidirectional"), [slow(1, False), slow(2, False), slow(1, True), (2, True)])
@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_units(kind: str, gates: int, layers: int, bidirectional: bool) -> None:
    structure = traced(recurrent(kind, layers, bidirectional), SEQUENCE)
    assert {n: (size, role) for n, (size, role, _) in groups_of(structure).items()} == {
        "up": (4, "inner"),
        "rnn": (6, "inner"),
    }
    names = suffixes(layers, bidirectional)
    columns = 2 if bidirectional else 1
    expected = {f"rnn.{t}_{n}": gates for n in names for t in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    expected |= {f"rnn.weight_hh_{n}/1": 1 for n in names}
    expected |= {f"rnn.weight_ih_{n}/1": columns for n in names if not n.startswith("l0")}
    assert members_of(structure, "rnn") == {**expected, "fc.weight/1": columns}
    (site,) = [g.gate_site for g in structure.groups if g.name == "rnn"]
    assert {(s.tensor, s.dim) for s in site} == {
        *((f"rnn.weight_hh_{n}", 1) for n in names),
        *((f"rnn.weight_ih_{n}", 1) for n in names if not n.startswith("l0")),
        ("fc.weight", 1),
    }
    attributes = {f"{a.module}.{a.attribute}" for a in structure.attributes}
    assert attributes == {"up.out_features", "rnn.input_size", "rnn.hidden_size", "fc.in_features"}
    assert reasons_of(structure) == {"fc": f"2: {OUTPUT}"}


@pytest.mark.parametrize("options", [{"bias": False}, {"dropout": 0.5, "num_layers": 2}, {"batch_first": False}])
def test_recurrent_options(options: dict[str, Any]) -> None:
    layers = options.pop("num_layers", 1)
    first = options.pop("batch_first", True)
    net = recurrent("LSTM", layers, **options)
    net.rnn.batch_first = first
    assert [g.name for g in traced(net, SEQUENCE).groups] == ["up", "rnn"]


def test_relu_rnn() -> None:
    assert [g.name for g in traced(recurrent("RNN", nonlinearity="relu"), SEQUENCE).groups] == ["up", "rnn"]


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("layers", "directions"), [slow(1, 1), slow(1, 2), (2, 2)])
def test_a_frozen_hidden_unit_counts_in_each_direction_once_not_for_each_of_its_gates(
    kind: str, layers: int, directions: int
) -> None:
    rnn = getattr(nn, kind)(4, 6, layers, batch_first=True, bidirectional=directions == 2)
    width = 6 * directions
    parts = {"up": nn.Linear(3, 4), "rnn": rnn, "norm": nn.LayerNorm(width), "fc": nn.Linear(width, 2)}
    structure = traced(Net(lambda m, x: m.fc(m.norm(m.rnn(torch.relu(m.up(x)))[0])), **parts), SEQUENCE)
    assert reasons_of(structure)["rnn"].startswith(f"{6 * layers * directions}: {OVER_CHANNELS}")


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"layers": 2}, {"bias": False}], ids=str)
def test_a_projected_lstm_changes_its_outputs_only(options: dict[str, Any]) -> None:
    """With as many hidden units as outputs torch takes it for one without projection, and fails."""
    structure = traced(recurrent("LSTM", proj_size=5, **options), SEQUENCE)
    assert {n: size for n, (size, _, _) in groups_of(structure).items()} == {"up": 4, "rnn": 5}
    outputs = members_of(structure, "rnn")
    assert outputs["rnn.weight_hr_l0"] == outputs["rnn.weight_hh_l0/1"] == 1
    assert {a.attribute for a in structure.attributes if a.module == "rnn"} == {"proj_size", "input_size"}
    assert any("proj_size" in part.reason for part in structure.frozen)


def test_the_last_states_of_both_directions_are_concatenated() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = m.rnn(x)
        return m.fc(torch.cat([hidden[0], hidden[1]], 1))

    rnn = nn.LSTM(3, 6, batch_first=True, bidirectional=True)
    assert members_of(traced(Net(forward, rnn=rnn, fc=nn.Linear(12, 2)), SEQUENCE), "rnn")["fc.weight/1"] == 2


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1)])
def test_cell_in_a_loop(kind: type[nn.RNNCellBase], gates: int) -> None:
    structure = traced(CellLoop(kind), SEQUENCE)
    assert groups_of(structure) == {
        "up": (5, "inner", "up.weight up.bias"),
        "cell": (6, "inner", "cell.weight_hh/1 fc.weight/1"),
    }
    rows = dict.fromkeys(["cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"], gates)
    assert members_of(structure, "cell") == {**rows, "cell.weight_hh/1": 1, "fc.weight/1": 1}


def test_an_initial_state_of_fixed_size_freezes_the_cell() -> None:
    net = CellLoop(nn.GRUCell)

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        state = m.cell(torch.relu(m.up(x[:, 0])), x.new_zeros(x.shape[0], 6))
        return m.fc(state)

    structure = traced(Net(forward, up=net.up, cell=net.cell, fc=net.fc), SEQUENCE)
    assert [g.name for g in structure.groups] == ["up"]
    assert "forward pass fails" in reasons_of(structure)["cell"]


@pytest.mark.parametrize("layers", [1, 2])
def test_untied_language_model(layers: int) -> None:
    model = LanguageModel(tied=False, layers=layers, width=7)
    structure = traced(model, tokens(), state_outputs=(1,))
    found = groups_of(structure)
    assert found["embedding"] == (7, "inner", "embedding.weight/1")
    assert found["lstm"][0] == 6
    assert reasons_of(structure) == {"decoder": f"11: {OUTPUT}"}


def test_tied_language_model_has_one_width() -> None:
    structure = traced(LanguageModel(tied=True), tokens(), state_outputs=(1,))
    assert groups_of(structure) == {"embedding": (6, "inner", "embedding.weight/1 lstm.weight_hh_l0/1")}
    assert reasons_of(structure) == {"embedding": f"11: {OUTPUT}"}
    assert structure.tensors["embedding.weight"].aliases == ("decoder.weight",)
    assert structure.num_params() == sum(p.numel() for p in LanguageModel(tied=True).parameters())


def test_a_returned_state_is_frozen_unless_it_is_declared() -> None:
    model = LanguageModel(tied=False, width=7)
    assert [g.name for g in traced(model, tokens()).groups] == ["embedding"]
    assert [g.name for g in traced(model, tokens(), state_outputs=(1,)).groups] == ["embedding", "lstm"]
