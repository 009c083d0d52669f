"""Heads are units whatever acts along their width: positions, scales, norms, biases; grouped queries with their key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from marks import quick, slow
from structure.expectations import groups_of, members_of, reasons_of, traced
from structure.nets import Net, vectors

# of all that the networks here have, each reads a part
pytestmark = pytest.mark.filterwarnings("ignore:the example call does not read")

WIDTH, TOKENS, INPUTS = 4, 5, vectors(2, 5, 16)


def halves(x: Tensor) -> Tensor:
    """RoPE as in Llama."""
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def interleaved(x: Tensor) -> Tensor:
    """RoPE as in GPT-J."""
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def partial(m: nn.Module, x: Tensor) -> Tensor:
    """RoPE on the first half of the width only, as in GPT-NeoX."""
    turned, rest = x[..., :2], x[..., 2:]
    return torch.cat([turned * m.cos[:, :2] + halves(turned) * m.sin[:, :2], rest], -1)


def complex_rope(m: nn.Module, x: Tensor) -> Tensor:
    """RoPE as a product of complex numbers, as in Llama's own code."""
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    turn = torch.polar(torch.ones_like(m.angles), m.angles)
    return torch.view_as_real(z * turn).flatten(3)


def unbound(m: nn.Module, x: Tensor) -> Tensor:
    """RoPE on pairs, as in rotary-embedding-torch."""
    a, b = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([a * m.cos[:, ::2] - b * m.sin[:, ::2], b * m.cos[:, ::2] + a * m.sin[:, ::2]], -1).flatten(-2)


ALONG_WIDTH: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "rotate_half": lambda m, x: x * m.cos + halves(x) * m.sin,
    "rotate_interleaved": lambda m, x: x * m.cos + interleaved(x) * m.sin,
    "rotate_partial": partial,
    "rotate_complex": complex_rope,
    "rotate_unbound": unbound,
    "buffer": lambda m, x: x * m.cos,
    "learned_scale": lambda m, x: x * m.scale,
    "learned_shift": lambda m, x: x + m.scale,
    "scale_of_each_head": lambda m, x: x * m.per_head,
    "scale_of_each_head_and_position": lambda m, x: x * m.per_head * m.scale,
    "layer_norm": lambda m, x: m.norm(x),
    "rms_norm": lambda m, x: F.rms_norm(x, (WIDTH,), m.scale),
    "rms_written_out": lambda m, x: m.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "rms_one_plus": lambda m, x: (1 + m.scale) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
    "normalize": lambda m, x: F.normalize(x, dim=-1) * m.scale,
    "softmax": lambda m, x: x.softmax(-1),
    "indexed": lambda m, x: x[..., torch.tensor([2, 3, 0, 1])],
}  # fmt: skip


def attention(along: Callable[[Any, Tensor], Tensor], value_too: bool = False) -> nn.Module:
    """Attention of four heads of width 4, with something done to queries and keys on their way."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(*x.shape[:2], -1, WIDTH).transpose(1, 2) for part in (m.q, m.k, m.v))
        q, k, v = along(m, q), along(m, k), along(m, v) if value_too else v
        return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    angles = torch.rand(TOKENS, WIDTH)
    return Net(
        forward, q=nn.Linear(16, 16), k=nn.Linear(16, 16), v=nn.Linear(16, 16), o=nn.Linear(16, 3),
        cos=angles.cos(), sin=angles.sin(), angles=angles[:, ::2], scale=nn.Parameter(torch.rand(WIDTH)),
        per_head=nn.Parameter(torch.rand(4, 1, 1)), norm=nn.LayerNorm(WIDTH),
    )  # fmt: skip


@pytest.mark.parametrize("value_too", [False, slow(True)])
@pytest.mark.parametrize("name", ALONG_WIDTH)
def test_what_acts_along_the_width_leaves_heads_apart(name: str, value_too: bool) -> None:
    structure = traced(attention(ALONG_WIDTH[name], value_too), INPUTS)
    assert [(g.name, g.size) for g in structure.groups] == [("q", 4)]
    own = members_of(structure, "q")
    assert own["q.weight"] == own["k.weight"] == own["v.weight"] == own["o.weight/1"] == WIDTH
    assert ("per_head" in own) == ("each_head" in name)
    assert "scale" not in own


def test_positions_of_the_width_are_units_where_heads_cannot_be() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # the mean over heads needs them all; the width does not
        return m.o((m.a(x).view(*x.shape[:2], 4, -1) * m.scale).mean(2))

    net = Net(forward, a=nn.Linear(16, 16), scale=nn.Parameter(torch.rand(4)), o=nn.Linear(4, 2))
    structure = traced(net, INPUTS)
    assert members_of(structure, "a") == {"a.weight": 4, "a.bias": 4, "scale": 1, "o.weight/1": 1}


def grouped(spread: Callable[[Tensor], Tensor], kernel: str = "sdpa") -> nn.Module:
    """Four query heads, two key and value heads."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(*x.shape[:2], -1, WIDTH).transpose(1, 2) for part in (m.q, m.k, m.v))
        q, k = q * m.cos, k * m.cos
        if kernel == "gqa":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif kernel == "five":  # (batch, key heads, queries per key head, tokens, width)
            q = q.unflatten(1, (-1, 2))
            y = ((q @ k.unsqueeze(2).mT).softmax(-1) @ v.unsqueeze(2)).flatten(1, 2)
        else:
            y = F.scaled_dot_product_attention(q, spread(k), spread(v))
        return m.o(y.transpose(1, 2).flatten(2))

    return Net(forward, q=nn.Linear(16, 16), k=nn.Linear(16, 8), v=nn.Linear(16, 8), o=nn.Linear(16, 3),
               cos=torch.rand(TOKENS, WIDTH))  # fmt: skip


SPREADS: dict[str, Callable[[Tensor], Tensor]] = {
    "expand": lambda x: x[:, :, None].expand(-1, -1, 2, -1, -1).reshape(x.shape[0], -1, *x.shape[2:]),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
}


@pytest.mark.parametrize("name", [*SPREADS, "gqa", "five"])
def test_a_key_head_goes_with_its_query_heads(name: str) -> None:
    structure = traced(grouped(SPREADS.get(name, lambda x: x), name), INPUTS)
    assert [g.size for g in structure.groups] == [2]
    own = members_of(structure, structure.groups[0].name)
    assert (own["q.weight"], own["k.weight"], own["o.weight/1"]) == (2 * WIDTH, WIDTH, 2 * WIDTH)


@pytest.mark.parametrize("kernel", ["sdpa", "gqa", "matmul"])
def test_query_heads_of_one_key_head_go_one_by_one(kernel: str) -> None:
    """The key head is shared, so it stays; the number of its copies follows where it is read from a tensor."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(*x.shape[:2], -1, WIDTH).transpose(1, 2) for part in (m.q, m.k, m.v))
        q, k = q * m.cos, k * m.cos
        if kernel == "matmul":
            y = (q @ k.mT).softmax(-1) @ v
        elif kernel == "gqa":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, *(t.expand(-1, q.shape[1], -1, -1) for t in (k, v)))
        return m.o(y.transpose(1, 2).flatten(2))

    model = Net(forward, q=nn.Linear(16, 16), k=nn.Linear(16, WIDTH), v=nn.Linear(16, WIDTH), o=nn.Linear(16, 3),
                cos=torch.rand(TOKENS, WIDTH))  # fmt: skip
    structure = traced(model, INPUTS)
    (group,) = structure.groups
    assert (group.size, {s.tensor for s in group.gate_site}) == (16 // WIDTH, {"o.weight"})
    assert members_of(structure, group.name) == {"q.weight": WIDTH, "q.bias": WIDTH, "o.weight/1": WIDTH}


def biased(bias: Callable[[Any, int], Tensor | None], kernel: str) -> nn.Module:
    """Attention whose scores get a bias, through SDPA's mask or as a sum."""

    def forward(m: Any, x: Tensor) -> Tensor:
        t = x.shape[1]
        q, k, v = m.qkv(x).view(*x.shape[:2], 3, -1, WIDTH).permute(2, 0, 3, 1, 4)
        if kernel == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias(m, t))
        else:
            y = (q @ k.mT * WIDTH**-0.5 + bias(m, t)).softmax(-1) @ v
        return m.o(y.transpose(1, 2).flatten(2))

    return Net(
        forward, qkv=nn.Linear(16, 48), o=nn.Linear(16, 3), table=nn.Parameter(torch.randn(4, 5, 5)),
        embedding=nn.Embedding(9, 4), fixed=torch.randn(4, 5, 5), mask=torch.randn(5, 5).tril(),
        picked=nn.Parameter(torch.randn(9, 4)), mlp=nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 4)),
        steps=torch.arange(5.0)[:, None, None] - torch.arange(5.0)[:, None],
    )  # fmt: skip


def distance(t: int) -> Tensor:
    """(t, t) relative positions from 0 to 8."""
    i = torch.arange(t)
    return (i[None] - i[:, None]).clamp(-4, 4) + 4


BIASES: dict[str, Callable[[Any, int], Tensor]] = {
    "parameter": lambda m, t: m.table,
    "scaled_parameter": lambda m, t: m.table * 2.0,
    "parameter_and_mask": lambda m, t: m.table + m.mask,
    "embedding": lambda m, t: m.embedding(distance(t)).permute(2, 0, 1)[None],
    "picked_and_mask": lambda m, t: m.picked[distance(t).view(-1)].view(t, t, -1).permute(2, 0, 1) + m.mask,
    "mlp": lambda m, t: m.mlp(m.steps).permute(2, 0, 1),
}


@pytest.mark.parametrize(
    ("name", "kernel"),
    [*((name, "sdpa") for name in BIASES), *quick([(name, "matmul") for name in BIASES], [("parameter", "matmul")])],
)
def test_a_bias_of_each_head_goes_with_its_head(name: str, kernel: str) -> None:
    structure = traced(biased(BIASES[name], kernel), INPUTS)
    assert structure.group("qkv").size == 4
    assert members_of(structure, "qkv")["qkv.weight"] == 3 * WIDTH


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
def test_a_mask_that_all_heads_share_ties_nothing(kernel: str) -> None:
    assert groups_of(traced(biased(lambda m, t: m.mask, kernel), INPUTS))["qkv"][0] == 4


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
def test_a_fixed_bias_of_each_head_fixes_the_heads(kernel: str) -> None:
    def bias(m: Any, t: int) -> Tensor:
        return torch.arange(4.0)[:, None, None] * m.mask

    net = Net(lambda m, x: m.last(torch.relu(m.body(x))), body=biased(bias, kernel), last=nn.Linear(3, 2))
    structure = traced(net, INPUTS)
    assert [g.name for g in structure.groups] == ["body.o"]
    assert "positions of fixed size" in reasons_of(structure)["body.qkv"]


@pytest.mark.parametrize("causal", [False, True])
def test_heads_of_layers_that_share_a_created_bias_go_together(causal: bool) -> None:
    """As in T5's cross-attention, whose first layer makes zeros for all, as large as its own number of heads."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.qkv, self.o = 4, nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
            q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, WIDTH).permute(2, 0, 3, 1, 4)
            if bias is None:
                bias = torch.zeros(1, self.heads, x.shape[1], x.shape[1])
            mask = torch.where(torch.ones_like(bias).tril() > 0, bias, -1e9) if causal else bias
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return x + self.o(y.transpose(1, 2).flatten(2)), bias

    def forward(m: Any, x: Tensor) -> Tensor:
        x, bias = m.first(x, None)
        return m.head(m.second(x, bias)[0])

    structure = traced(Net(forward, first=Layer(), second=Layer(), head=nn.Linear(16, 3)), INPUTS)
    assert [b.name for b in structure.blocks] == ["first", "second"]  # the second makes the bias where it gets none
    assert structure.group("first.qkv").size == 4
    assert members_of(structure, "first.qkv")["second.qkv.weight"] == 3 * WIDTH
