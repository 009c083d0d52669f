"""Products in which channels meet another dimension: maps that pool features, mixers over tokens, message passing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structure.expectations import groups_of, reasons_of, traced
from structure.nets import Net, vectors


def test_features_pooled_by_maps_keep_their_channels() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.o(m.a(x).softmax(1).mT @ F.relu(m.f(x)))

    net = Net(forward, f=nn.Linear(4, 16), a=nn.Linear(4, 3), o=nn.Linear(16, 2))
    structure = traced(net, vectors(2, 7, 4))
    assert {n: size for n, (size, _, _) in groups_of(structure).items()} == {"f": 16}
    assert "outer product" in reasons_of(structure)["a"]


def test_a_mixer_over_tokens_grows_beside_a_stream_that_layer_norm_fixes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = m.stem(x)
        x = x + m.down(F.gelu(m.up(m.norm(x).mT))).mT
        return m.fc(m.norm(x + m.mlp(m.norm(x))).mean(1))

    mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
    net = Net(forward, stem=nn.Linear(3, 8), norm=nn.LayerNorm(8), up=nn.Linear(5, 7), down=nn.Linear(7, 5), mlp=mlp,
              fc=nn.Linear(8, 2))  # fmt: skip
    structure = traced(net, vectors(2, 5, 3))
    assert {n: size for n, (size, _, _) in groups_of(structure).items()} == {"up": 7, "mlp.0": 12}


def test_channels_pass_a_mixer_over_tokens() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.fc(m.mix(F.relu(m.stem(x)).mT).mT)

    net = Net(forward, stem=nn.Linear(3, 8), mix=nn.Linear(5, 6), fc=nn.Linear(8, 2))
    structure = traced(net, vectors(2, 5, 3))
    assert groups_of(structure) == {"stem": (8, "inner", "fc.weight/1")}
    assert "beside channels" in reasons_of(structure)["mix"]


def test_a_linear_layer_on_the_width_of_every_head() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (part(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for part in (m.q, m.k, m.v))
        return m.o(F.scaled_dot_product_attention(m.w(q), m.w(k), v).transpose(1, 2).flatten(2))

    net = Net(forward, q=nn.Linear(16, 16), k=nn.Linear(16, 16), v=nn.Linear(16, 16), w=nn.Linear(4, 6),
              o=nn.Linear(16, 3))  # fmt: skip
    assert groups_of(traced(net, vectors(2, 5, 16))) == {"q": (4, "inner", "v.weight v.bias")}


NODES = torch.tensor([0, 1, 2, 3, 1, 2, 0])
MESSAGES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "index_add": lambda m, h: torch.zeros(5, h.shape[1], dtype=h.dtype).index_add(0, NODES, h[NODES]),
    "index_select": lambda m, h: torch.zeros_like(h).index_add(0, NODES, h.index_select(0, NODES)),
    "scatter_add": lambda m, h: torch.zeros_like(h).scatter_add(0, NODES[:, None].expand_as(h), h),
    "scatter_reduce": lambda m, h: torch.zeros_like(h).scatter_reduce(0, NODES[:, None].expand_as(h), h, "amax"),
    "gather": lambda m, h: h.gather(0, NODES[:, None].expand(-1, h.shape[1])),
    "index_add_to_itself": lambda m, h: h.index_add(0, NODES, F.relu(m.g(h))),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the example call does not read g")
@pytest.mark.parametrize("name", MESSAGES)
def test_message_passing(name: str) -> None:
    net = Net(lambda m, x: m.o(MESSAGES[name](m, F.relu(m.f(x)))), f=nn.Linear(4, 16), g=nn.Linear(16, 16),
              o=nn.Linear(16, 2))  # fmt: skip
    assert [g.size for g in traced(net, vectors(7, 4)).groups] == [16]


def test_similarities_of_channels() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        return m.o(F.cosine_similarity(a, b, dim=-1)) + m.o(torch.cdist(a, b).diagonal(dim1=-2, dim2=-1))

    net = Net(forward, a=nn.Linear(4, 8), b=nn.Linear(4, 8), o=nn.Linear(5, 2))
    structure = traced(net, vectors(2, 5, 4))
    assert groups_of(structure) == {"a": (8, "inner", "a.weight a.bias b.weight b.bias")}


def test_products_of_all_pairs_of_features_lose_the_same_width_in_each() -> None:
    """As in DLRM: the number of features stays, and all of them have one width."""

    def forward(m: Any, x: Tensor, i: Tensor) -> Tensor:
        features = torch.stack([torch.relu(m.a(x)), m.b(i), m.c(i)], 1)
        pairs = (features @ features.mT)[:, [1, 2, 2], [0, 0, 1]]
        return m.top(torch.cat([features[:, 0], pairs], 1))

    net = Net(forward, a=nn.Linear(4, 6), b=nn.Embedding(5, 6), c=nn.Embedding(5, 6), top=nn.Linear(9, 2))
    structure = traced(net, (*vectors(3, 4), torch.tensor([0, 3, 4])))
    assert {n: size for n, (size, _, _) in groups_of(structure).items()} == {"a": 6}


@pytest.mark.parametrize("kernel", ["einsum", "bmm"])
def test_a_hidden_unit_of_all_experts(kernel: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x)).transpose(0, 1).contiguous()  # (experts, tokens, width)
        if kernel == "einsum":
            return m.o(torch.einsum("enh,ehd->end", F.gelu(torch.einsum("end,edh->enh", x, m.up)), m.down).mean(0))
        return m.o((F.gelu(x @ m.up) @ m.down).mean(0))

    net = Net(forward, stem=nn.Linear(4, 6), up=nn.Parameter(torch.randn(3, 6, 8)), o=nn.Linear(6, 2),
              down=nn.Parameter(torch.randn(3, 8, 6)))  # fmt: skip
    structure = traced(net, vectors(5, 3, 4))
    assert {n: size for n, (size, _, _) in groups_of(structure).items()} == {"stem": 6, "up": 8, "down": 6}


def test_heads_of_a_weight_with_a_dimension_of_its_own_for_them() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btc,hcd->bhtd", x, w) for w in (m.q, m.k, m.v))
        y = torch.einsum("...ij,...jd->...id", torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1), v)
        return m.o(y.transpose(1, 2).flatten(2))

    net = Net(forward, o=nn.Linear(12, 2), **{n: nn.Parameter(torch.randn(4, 6, 3)) for n in "qkv"})
    assert {n: size for n, (size, _, _) in groups_of(traced(net, vectors(2, 5, 6))).items()} == {"q": 4}


def test_heads_whose_weights_meet_positions_of_fixed_size_first() -> None:
    """As in the Funnel transformer: queries times a weight for each head, and then times the table of positions."""

    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(*x.shape[:2], -1, 3) for layer in (m.q, m.k, m.v))
        moved = torch.einsum("binh,dnh->bind", q + m.shift, m.relative)
        positions = torch.arange(84).view(7, 12).to(x.dtype).cos()
        scores = torch.einsum("bind,td->bnit", moved, positions)[..., :5] + torch.einsum("bind,bjnd->bnij", q, k)
        return m.out(torch.einsum("bnij,bjnd->bind", scores.softmax(-1), v).flatten(2))

    parts: Any = {name: nn.Linear(4, 12) for name in "qkv"}
    net = Net(forward, **parts, shift=nn.Parameter(torch.randn(4, 3)), relative=nn.Parameter(torch.randn(12, 4, 3)),
              out=nn.Linear(12, 2))  # fmt: skip
    structure = traced(net, vectors(2, 5, 4))
    assert [(g.name, g.size) for g in structure.groups] == [("q", 4)]
