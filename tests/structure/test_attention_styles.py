"""Heads of attention in the styles that people write: shared parts of keys, one key head, weights with three sides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structure.expectations import groups_of, members_of, reasons_of, traced
from structure.nets import Net, vectors

INPUTS = vectors(2, 5, 12)


def turned(x: Tensor) -> Tensor:
    """Rotary positions over (…, tokens, width)."""
    angles = torch.outer(torch.arange(x.shape[-2]).to(x), 9.0 ** -torch.linspace(0, 1, x.shape[-1] // 2).to(x))
    angles, (a, b) = torch.cat((angles, angles), -1), x.chunk(2, -1)
    return x * angles.cos() + torch.cat((-b, a), -1) * angles.sin()


@pytest.mark.parametrize("written", [False, True])
def test_latent_attention_whose_rotary_keys_all_heads_share(written: bool) -> None:
    """As in DeepSeek: queries and keys have a part of their own and a rotary one, and a key has one for all heads.

    Its keys are a concatenation, or (in transformers) written into two slices of a new tensor.
    """

    def forward(m: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, q_turned = m.q(x).view(b, t, m.h, 10).transpose(1, 2).split([6, 4], -1)
        latent, shared = m.down(x).split([m.rank, 4], -1)
        k, v = m.up(latent).view(b, t, m.h, 11).transpose(1, 2).split([6, 5], -1)
        shared = turned(shared.view(b, t, 1, 4).transpose(1, 2)).expand(b, m.h, t, 4)
        if written:
            keys = k.new_empty(*k.shape[:-1], 10)
            keys[..., :6].copy_(k)
            keys[..., 6:].copy_(shared)
        else:
            keys = torch.cat([k, shared], -1)
        y = F.scaled_dot_product_attention(torch.cat([q, turned(q_turned)], -1), keys, v)
        return m.o(y.transpose(1, 2).reshape(b, t, m.h * 5))

    layers = {"q": nn.Linear(12, 40), "down": nn.Linear(12, 12), "up": nn.Linear(8, 44), "o": nn.Linear(20, 3)}
    net = Net(forward, h=4, rank=8, **layers)
    structure = traced(net, INPUTS)
    assert members_of(structure, "q") == {
        "q.weight": 10, "q.bias": 10, "up.weight": 11, "up.bias": 11, "o.weight/1": 5
    }  # fmt: skip
    assert structure.group("down").size == 8
    assert reasons_of(structure)["down"].startswith("4: ")


def test_query_heads_of_one_key_head_without_a_dimension_of_heads() -> None:
    """As in PaLM: one projection for queries, a key, a value and the MLP."""

    def forward(m: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v, y = m.fused(x).split((m.inner, 6, 6, m.hidden), -1)
        q, k = turned(q.view(b, t, m.heads, 6).transpose(1, 2)), turned(k)
        scores = torch.einsum("bhid,bjd->bhij", q, k).softmax(-1)
        merged = torch.einsum("bhij,bjd->bhid", scores, v).transpose(1, 2).reshape(b, t, m.heads * 6)
        return m.o(merged) + m.o2(F.gelu(y))

    net = Net(forward, inner=24, heads=4, hidden=10, fused=nn.Linear(12, 46), o=nn.Linear(24, 3), o2=nn.Linear(10, 3))
    structure = traced(net, INPUTS)
    assert {g.size for g in structure.groups} == {4, 10}
    heads = next(g.name for g in structure.groups if g.size == 4)
    assert members_of(structure, heads) == {"fused.weight": 6, "fused.bias": 6, "o.weight/1": 6}


def test_weights_with_a_dimension_for_heads_on_both_sides_of_attention() -> None:
    """As in Flax: (channels, heads, width) in, (heads, width, channels) out, three operands in one einsum."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,chw->bhtw", x, weight) for weight in (m.q, m.k, m.v))
        scores = torch.einsum("bhtw,bhsw->bhts", q, k).softmax(-1)
        return torch.einsum("bhts,bhsw,hwc->btc", scores, v, m.o)

    parts = {name: nn.Parameter(torch.randn(12, 4, 3)) for name in "qkv"}
    structure = traced(Net(forward, **parts, o=nn.Parameter(torch.randn(4, 3, 5))), INPUTS)
    ((name, (size, role, _)),) = groups_of(structure).items()
    assert (size, role) == (4, "inner")
    assert members_of(structure, name) == {"q/1": 1, "k/1": 1, "v/1": 1, "o": 1}


def test_slopes_of_heads_make_no_stream() -> None:
    """As in ALiBi: what is added to the scores are no channels that another layer writes."""

    def forward(m: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (part(x).view(b, t, -1, 3).transpose(1, 2) for part in (m.q, m.k, m.v))
        distance = (torch.arange(t)[None] - torch.arange(t)[:, None]).to(x)
        y = (q @ k.mT + m.slopes[:, None, None] * distance).softmax(-1) @ v
        return m.o(y.transpose(1, 2).reshape(b, t, -1))

    layers = {name: nn.Linear(12, 12) for name in "qkv"}
    structure = traced(Net(forward, **layers, o=nn.Linear(12, 5), slopes=2.0 ** -torch.arange(1, 5)), INPUTS)
    assert [(g.size, g.role) for g in structure.groups] == [(4, "inner")]
    assert members_of(structure, structure.groups[0].name)["slopes"] == 1


@pytest.mark.parametrize("of_keys", ["parameter", "buffer", "created"])
def test_biases_of_queries_keys_and_values_side_by_side(of_keys: str) -> None:
    """As in BEiT and Swin V2: one projection, whose bias is put together anew in every call."""

    def forward(m: Any, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        k_bias = torch.zeros_like(m.v_bias) if of_keys == "created" else m.k_bias
        qkv = F.linear(x, m.qkv.weight, torch.cat((m.q_bias, k_bias, m.v_bias)))
        q, k, v = qkv.reshape(b, t, 3, -1, 3).permute(2, 0, 3, 1, 4)
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1))

    biases: dict[str, Any] = {f"{name}_bias": nn.Parameter(torch.randn(12)) for name in "qv"}
    if of_keys != "created":
        biases["k_bias"] = nn.Parameter(torch.randn(12)) if of_keys == "parameter" else torch.randn(12)
    layers = {"qkv": nn.Linear(12, 36, bias=False), "o": nn.Linear(12, 5)}
    structure = traced(Net(forward, **layers, **biases), INPUTS)
    assert members_of(structure, "qkv") == {
        "qkv.weight": 9, **dict.fromkeys(sorted(biases), 3), "o.weight/1": 3
    }  # fmt: skip


def test_elementwise_einsum_costs_nothing() -> None:
    net = Net(lambda m, x: m.b(torch.einsum("btc,bt->btc", m.a(x), x[..., 0])), a=nn.Linear(12, 7), b=nn.Linear(7, 2))
    structure = traced(net, INPUTS)
    assert structure.macs() == 10 * (12 * 7 + 7 * 2)
