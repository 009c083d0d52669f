"""Whatever a decoder's sizes are called, and wherever they are held, its heads grow in every layer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from marks import quick, slow
from structure.expectations import reasons_of, traced
from structure.nets import RmsNorm

TOKENS = (torch.arange(10).view(2, 5) % 7,)
Sizes = tuple[int, int, int]  # query heads, key heads, width of a head


def turned(x: Tensor, interleaved: bool) -> Tensor:
    """Rotary positions."""
    angles = torch.outer(torch.arange(x.shape[-2]).to(x), 100.0 ** -torch.linspace(0, 1, x.shape[-1] // 2).to(x))
    if interleaved:
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = angles.cos(), angles.sin()
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    cos, sin = torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()
    return x * cos + torch.cat((-b, a), -1) * sin


class Layer(nn.Module):
    """Grouped-query attention and a gated MLP; a subclass says where the sizes are.

    The code is that of `apical`'s users: every size is written out.
    """

    interleaved, copies = False, "repeat"

    def __init__(self, hold: Callable[[Any, Sizes], None], sizes: Sizes, width: int = 12) -> None:
        super().__init__()
        heads, key_heads, head_width = sizes
        self.norm, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.wq = nn.Linear(width, heads * head_width, bias=False)
        self.wk, self.wv = (nn.Linear(width, key_heads * head_width, bias=False) for _ in "kv")
        self.wo = nn.Linear(heads * head_width, width, bias=False)
        self.gate, self.up, self.down = nn.Linear(width, 10), nn.Linear(width, 10), nn.Linear(10, width)
        hold(self, sizes)

    def sizes(self) -> Sizes:
        raise NotImplementedError

    def queries(self, x: Tensor) -> Tensor:
        return self.wq(x)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads, key_heads, width = self.sizes()
        y = self.norm(x)
        q = self.queries(y).view(b, t, heads, width).transpose(1, 2)
        k = self.wk(y).view(b, t, key_heads, width).transpose(1, 2)
        v = self.wv(y).view(b, t, key_heads, width).transpose(1, 2)
        q, k = turned(q, self.interleaved), turned(k, self.interleaved)
        if self.copies == "repeat":
            k, v = (part.repeat_interleave(heads // key_heads, 1) for part in (k, v))
        else:
            copies = (b, key_heads, heads // key_heads, t, width)
            k, v = (part[:, :, None].expand(copies).reshape(b, heads, t, width) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.wo(y.reshape(b, t, heads * width))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Embedding, layers, norm and head."""

    def __init__(self, kind: type[Layer], hold: Callable[[Any, Sizes], None], sizes: Sizes, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 12)
        self.layers = nn.ModuleList(kind(hold, sizes) for _ in range(depth))
        self.norm, self.head = RmsNorm(12), nn.Linear(12, 7, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Named(NamedTuple):
    heads: int
    key_heads: int
    width: int


@dataclass(frozen=True, slots=True)
class Slotted:
    heads: int
    key_heads: int
    width: int


@dataclass
class Nested:
    attention: Slotted
    names: list[str] = field(default_factory=list)


def attributes(*names: str) -> Callable[[Any, Sizes], None]:
    """Sizes in attributes of the layer's own."""
    return lambda layer, sizes: [setattr(layer, *pair) for pair in zip(names, sizes, strict=True)] and None


def held(make: Callable[[Sizes], Any]) -> Callable[[Any, Sizes], None]:
    """Sizes in an object that the layer holds as ``cfg``."""
    return lambda layer, sizes: setattr(layer, "cfg", make(sizes))


def reading(read: Callable[[Any], Sizes], **changes: Any) -> type[Layer]:
    return type("Own", (Layer,), {"sizes": read, **changes})


KINDS: dict[str, tuple[type[Layer], Callable[[Any, Sizes], None]]] = {
    "heads": (reading(lambda m: (m.heads, m.kv_heads, m.head_dim)), attributes("heads", "kv_heads", "head_dim")),
    "num_heads": (
        reading(lambda m: (m.num_heads, m.n_kv_heads, m.dim)), attributes("num_heads", "n_kv_heads", "dim")
    ),
    "short": (reading(lambda m: (m.h, m.hk, m.dh), interleaved=True), attributes("h", "hk", "dh")),
    "expand": (reading(lambda m: (m.h, m.hk, m.dh), copies="expand"), attributes("h", "hk", "dh")),
    "tuple": (reading(lambda m: m.cfg), held(lambda sizes: sizes)),
    "list": (reading(lambda m: tuple(m.cfg)), held(list)),
    "dict": (
        reading(lambda m: (m.cfg["h"], m.cfg["k"], m.cfg["w"])), held(lambda s: dict(zip("hkw", s, strict=True)))
    ),
    "named_tuple": (reading(lambda m: (m.cfg.heads, m.cfg.key_heads, m.cfg.width)), held(lambda s: Named(*s))),
    "slots": (reading(lambda m: (m.cfg.heads, m.cfg.key_heads, m.cfg.width)), held(lambda s: Slotted(*s))),
    "nested": (
        reading(lambda m: (m.cfg.attention.heads, m.cfg.attention.key_heads, m.cfg.attention.width)),
        held(lambda s: Nested(Slotted(*s))),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", quick(KINDS, ["num_heads", "tuple", "nested"]))
def test_heads_follow_whatever_their_number_is_called(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Decoder(*KINDS[name], sizes=(4, 2, 6))
    structure = traced(model, TOKENS)
    heads = [g for g in structure.groups if g.size == 2]
    assert [g.name for g in heads] == ["layers.0.wq", "layers.1.wq"]
    assert {g.role for g in heads} == {"inner"}, "rotary positions add two halves of one head: no residual stream"
    fresh, store = copy.deepcopy(model), apical.DormantStore()
    before = model(*TOKENS)
    apical.resize_(model, structure, {"layers.0.wq": [1], "layers.1.gate": [0, 4]}, store=store)
    loaded = apical.load(copy.deepcopy(fresh), apical.save(model, tmp_path / "small"))
    assert torch.equal(loaded(*TOKENS), model(*TOKENS))
    apical.resize_(model, structure, {}, store=store)
    assert torch.equal(model(*TOKENS), before)


@pytest.mark.parametrize("depth", [slow(1), 3, slow(6)])
@pytest.mark.parametrize("sizes", [slow((4, 4, 6)), slow((8, 2, 4)), (6, 3, 6)])
def test_heads_follow_in_every_layer(sizes: Sizes, depth: int) -> None:
    """Key heads in equal number, several queries to each, and a width that equals the number of heads."""
    structure = traced(Decoder(*KINDS["heads"], sizes=sizes, depth=depth), TOKENS)
    assert [g.size for g in structure.groups if g.name.endswith("wq")] == [sizes[1]] * depth


class Adapted(Layer):
    """Queries are the sum of two projections, as with LoRA, so that heads are written by an addition."""

    def __init__(self, hold: Callable[[Any, Sizes], None], sizes: Sizes) -> None:
        super().__init__(hold, sizes)
        self.low, self.high = nn.Linear(12, 2, bias=False), nn.Linear(2, sizes[0] * sizes[2], bias=False)

    def sizes(self) -> Sizes:
        return self.h, self.hk, self.dh

    def queries(self, x: Tensor) -> Tensor:
        return self.wq(x) + self.high(self.low(x))


def test_heads_that_a_sum_writes_follow_in_their_own_layer_only() -> None:
    structure = traced(Decoder(Adapted, attributes("h", "hk", "dh"), (4, 2, 6)), TOKENS)
    assert [g.name for g in structure.groups if g.size == 2 and "high" not in g.name and "low" not in g.name] == [
        "layers.0.wq", "layers.1.wq",
    ]  # fmt: skip
    assert {(a.module, a.attribute) for a in structure.attributes if a.attribute == "hk"} == {
        ("layers.0", "hk"), ("layers.1", "hk"),
    }  # fmt: skip


class FixedLast(Layer):
    """Everything follows but the last reshape, to a size that is no attribute."""

    def sizes(self) -> Sizes:
        return self.h, self.hk, self.dh

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q = self.wq(x).view(b, t, self.h, self.dh).transpose(1, 2)
        k, v = (part.view(b, t, self.hk, self.dh).transpose(1, 2) for part in (self.wk(x), self.wv(x)))
        k, v = (part.repeat_interleave(self.h // self.hk, 1) for part in (k, v))
        y = F.scaled_dot_product_attention(turned(q, False), turned(k, False), v).transpose(1, 2)
        return x + self.wo(y.reshape(b, t, 2 * c))


def test_the_reason_is_the_line_that_cannot_follow_and_not_the_first_that_fails() -> None:
    reasons = reasons_of(apical.trace(Decoder(FixedLast, attributes("h", "hk", "dh"), (4, 2, 6)), TOKENS))
    for layer in range(2):
        reason = reasons[f"layers.{layer}.wq"]
        assert "`return x + self.wo(y.reshape(b, t, 2 * c))`" in reason
        assert "write -1 for the size that changes there" in reason
