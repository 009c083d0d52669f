"""torch's own attention: heads are units, and with fewer of them the module still computes what it did."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.structure import NarrowMultiheadAttention
from marks import slow
from structure.expectations import groups_of, traced
from structure.nets import Net, vectors

OPTIONS: list[dict[str, Any]] = [
    {}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 6, "vdim": 5}, {"batch_first": False},
]  # fmt: skip


def layer(options: dict[str, Any], *, need_weights: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """One attention layer of four heads with a linear layer on top, and its inputs."""
    torch.manual_seed(0)
    mha = nn.MultiheadAttention(8, 4, **{"batch_first": True, **options})
    net = Net(lambda m, *qkv: m.fc(m.mha(*qkv, need_weights=need_weights)[0]), mha=mha, fc=nn.Linear(8, 2))
    return net, (torch.randn(2, 5, 8), torch.randn(2, 5, mha.kdim), torch.randn(2, 5, mha.vdim))


@pytest.mark.parametrize("need_weights", [False, slow(True)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_heads_are_units(options: dict[str, Any], need_weights: bool) -> None:
    net, inputs = layer(options, need_weights=need_weights)
    found = groups_of(traced(net, inputs))
    assert found["mha"][0] == 4
    assert found["mha.out_proj"][0] == 8


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "per_head", "padding", "both"])
def test_at_full_width_it_computes_what_torch_does(options: dict[str, Any], mask: str) -> None:
    torch.manual_seed(0)
    own = nn.MultiheadAttention(8, 4, **{"batch_first": True, **options}).double().eval()
    ours = copy.deepcopy(own)
    ours.__class__ = NarrowMultiheadAttention
    q, k, v = (torch.randn(5, 5, n, dtype=torch.float64) for n in (8, own.kdim, own.vdim))
    given: dict[str, Any] = {
        "none": {},
        "causal": {"attn_mask": nn.Transformer.generate_square_subsequent_mask(5).double(), "is_causal": True},
        "bool": {"attn_mask": torch.eye(5).bool()},
        "per_head": {"attn_mask": torch.randn(20, 5, 5, dtype=torch.float64)},
        "padding": {"key_padding_mask": torch.arange(5).expand(5, 5) > 2},
        "both": {"attn_mask": torch.randn(5, 5).double(), "key_padding_mask": torch.zeros(5, 5).double()},
    }[mask]
    for more in ({"need_weights": False}, {}, {"average_attn_weights": False}):
        expected, got = own(q, k, v, **given, **more), ours(q, k, v, **given, **more)
        torch.testing.assert_close(got[0], expected[0])
        torch.testing.assert_close(got[1], expected[1])
    torch.testing.assert_close(ours(q[0], k[0], v[0])[0], own(q[0], k[0], v[0])[0])


def test_torchs_class_returns_with_the_last_head() -> None:
    net, inputs = layer({}, need_weights=False)
    text, store = str(net), apical.DormantStore()
    structure = apical.trace(net, inputs)
    apical.resize_(net, structure, {"mha": [0, 2]}, store=store)
    assert type(net.mha) is NarrowMultiheadAttention
    assert net.mha.out_proj.in_features == 4
    assert str(net.mha).startswith("MultiheadAttention(")
    assert torch.equal(copy.deepcopy(net)(*inputs), net(*inputs))
    assert torch.equal(pickle.loads(pickle.dumps(net.mha))(*inputs)[0], net.mha(*inputs)[0])
    apical.resize_(net, structure, {}, store=store)
    assert type(net.mha) is nn.MultiheadAttention
    assert str(net) == text


class EncoderClassifier(nn.Module):
    """``nn.TransformerEncoder`` over token embeddings with a learned position table."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.position = nn.Parameter(torch.zeros(1, 7, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embedding(tokens) + self.position).mean(1))


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_heads_of_torchs_encoder_are_units_and_are_saved(norm_first: bool, tmp_path: Path) -> None:
    tokens = torch.randint(0, 13, (2, 7), generator=torch.Generator().manual_seed(0))
    model = EncoderClassifier(norm_first=norm_first).eval()
    structure = traced(model, (tokens,))
    assert [g.size for g in structure.groups if g.name.endswith("self_attn")] == [4, 4]
    apical.resize_(model, structure, {"encoder.layers.0.self_attn": [1]})
    expected = model(tokens)
    apical.save(model, tmp_path / "small")
    loaded = apical.load(EncoderClassifier(norm_first=norm_first), tmp_path / "small").eval()
    assert torch.equal(loaded(tokens), expected)
    with torch.no_grad():  # where torch would take its fused kernel
        torch.testing.assert_close(loaded(tokens), expected)


def test_decoder_layers_too() -> None:
    decoder = nn.TransformerDecoderLayer(8, 4, 12, batch_first=True)
    net = Net(lambda m, x, y: m.fc(m.layer(x, y)), layer=decoder, fc=nn.Linear(8, 2))
    sizes = {g.name: g.size for g in traced(net, (*vectors(2, 5, 8), *vectors(2, 6, 8))).groups}
    assert sizes == {"layer.self_attn": 4, "layer.multihead_attn": 4, "layer.linear1": 12}
