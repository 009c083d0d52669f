"""Operations that few networks use: what can be followed is, the rest is frozen, and prices stay right throughout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from structure.expectations import groups_of, traced
from structure.nets import Net, conv, image, unit, vectors


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(normal(*shape))


torch.manual_seed(0)  # the layers below are made once, when this file is imported
SEQUENCE = vectors(2, 5, 3)
Sizes = dict[str, int]
# name -> (forward, parts, inputs, groups and their sizes)
Case = tuple[Callable[..., Any], dict[str, Any], tuple[Any, ...], Sizes]


def images(change: Callable[[Any, Tensor], Tensor], groups: Sizes, **parts: Any) -> Case:
    """A unit of six channels, a change, a convolution with five channels, and a last one."""
    everything: dict[str, Any] = {"a": unit(3, 6), "b": conv(6, 5), "last": conv(5, 2), **parts}
    return lambda m, x: m.last(F.relu(m.b(change(m, m.a(x))))), everything, image(), {**groups, "b": 5}


def sequences(change: Callable[[Any, Tensor], Tensor], groups: Sizes, width: int = 6, **parts: Any) -> Case:
    """A linear layer of six channels on a sequence, a change, a linear layer with five channels, and a last one."""
    everything = {"a": nn.Linear(3, 6), "b": nn.Linear(width, 5), "last": nn.Linear(5, 2), **parts}
    return lambda m, x: m.last(F.relu(m.b(change(m, m.a(x))))), everything, SEQUENCE, {**groups, "b": 5}


def heads(x: Tensor, n: int) -> Tensor:
    return x.view(*x.shape[:2], n, -1).transpose(1, 2)


def of_two(x: Tensor) -> Tensor:
    """Heads of width two."""
    return x.unflatten(-1, (-1, 2)).transpose(1, 2)


def _without_middle(bias: Tensor) -> Tensor:
    """The bias of queries, keys and values, without that of keys, as in the second version of Swin."""
    bias, third = bias.clone(), bias.numel() // 3
    bias[third : 2 * third].zero_()
    return bias


def _halved(h: Tensor) -> Tensor:
    """A slice that is written into, of what nobody else reads."""
    part = h[:, 1:]
    part *= 0.5
    return part


def _pooled_by_head(h: Tensor) -> Tensor:
    """Channels in pairs, each of which is an image of its own."""
    return F.max_pool2d(h.reshape(-1, 2, *h.shape[2:]), 2).reshape(len(h), -1, h.shape[2] // 2, h.shape[3] // 2)


def _resampled(table: Tensor) -> Tensor:
    """Biases of a window of three, by heads, for one of five, as BEiT's  # (1, heads, 5, 5)"""
    return F.interpolate(table.view(1, 3, 3, -1).permute(0, 3, 1, 2), size=(5, 5), mode="bilinear")


def merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _rounded(weight: Tensor) -> Tensor:
    """A weight in steps of a share of each row's largest, as training with quantised weights makes it."""
    step = weight.abs().amax(1, keepdim=True).clamp(min=1e-8) / 7
    return weight + ((weight / step).round() * step - weight).detach()


def _decays(rate: Tensor, n: int) -> Tensor:
    """How much each token sees of those before it, at a rate of each head's own (RetNet)  # (heads, n, n)"""
    steps = torch.arange(n)
    return torch.tril(rate[:, None, None] ** (steps[:, None] - steps).clamp(min=0))


class WeightStandardised(nn.Conv2d):
    """A convolution whose weight is normalised in the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


ALL = {"a.0": 6}
CASES: dict[str, Case] = {
    "bilinear form": sequences(
        lambda m, x: m.form(torch.tanh(x), m.other(x)), {"a": 6, "other": 4, "form": 7}, width=7,
        other=nn.Linear(6, 4), form=nn.Bilinear(6, 4, 7),
    ),
    # activations: what keeps a zero at zero lets the gate stay at the norm, what does not moves it to the reader
    "clamp around zero": images(lambda m, h: h.clamp(-1, 1), ALL),
    "clamp above zero": images(lambda m, h: h.clamp(0.5, 2.0), ALL),
    "clamp_min and clamp_max": images(lambda m, h: h.clamp_min(-2.0).clamp_max(2.0), ALL),
    "clamp_max below zero": images(lambda m, h: h.clamp_max(-0.5), ALL),
    "hardtanh": images(lambda m, h: F.hardtanh(h, -0.5, 0.5), ALL),
    "powers": images(lambda m, h: h**2 + h.pow(3), ALL),
    "power of zero": images(lambda m, h: h**0, ALL),
    "negative power": images(lambda m, h: (h + 1) ** -1, ALL),
    "threshold": images(lambda m, h: F.threshold(h, 0.1, 0.0), ALL),
    "threshold to a value": images(lambda m, h: F.threshold(h, 0.1, 0.3), ALL),
    "masked_fill with zero": images(lambda m, h: h.masked_fill(h > 1, 0.0), ALL),
    "masked_fill with a value": images(lambda m, h: h.masked_fill(h > 1, 2.0), ALL),
    "softplus": images(lambda m, h: F.softplus(h), ALL),
    "cosine": images(lambda m, h: torch.cos(h), ALL),
    "logarithm": images(lambda m, h: torch.log1p(h), ALL),
    "division by a number": images(lambda m, h: h / 3.0 - h * 2, ALL),
    "division by channels": images(lambda m, h: h / (h.abs() + 1.0), ALL),
    "random noise": images(lambda m, h: h + torch.zeros_like(h), ALL),
    "comparison": images(lambda m, h: (h > 0.5).to(h.dtype), ALL),
    "one channel plus many": images(lambda m, h: m.gate(h) + h, ALL, gate=conv(6, 1)),
    "one channel times many": images(lambda m, h: m.gate(h) * h, ALL, gate=conv(6, 1)),
    "many times one channel that may be zero": images(lambda m, h: F.relu(m.gate(h)) * h, ALL, gate=conv(6, 1)),
    # reductions over pixels
    "maximum over pixels": images(lambda m, h: h * h.flatten(2).max(-1)[0][..., None, None], ALL),
    "top pixels": images(lambda m, h: h.flatten(2).topk(16, -1)[0].view(2, -1, 4, 4), ALL),
    "norm over pixels": images(lambda m, h: h * h.norm(dim=(2, 3), keepdim=True), ALL),
    "variance over pixels": images(lambda m, h: h * h.var((2, 3), keepdim=True), ALL),
    "cumulative sum over pixels": images(lambda m, h: h.cumsum(2), ALL),
    "mean over everything": images(lambda m, h: h * h.mean(), {}),
    "response norm": images(lambda m, h: F.local_response_norm(h, 3), {}),
    "channel dimension moved": images(lambda m, h: h.movedim(1, -1).mul(2.0).movedim(-1, 1), ALL),
    "square unfolded": images(lambda m, h: F.unfold(h, 1).view(2, -1, 8, 8), ALL),
    "repeated channels": images(lambda m, h: h.repeat(1, 2, 1, 1)[:, : h.shape[1]], ALL),
    # Fourier transforms are linear maps along some dimensions, and tie nothing along the others
    "frequencies of pixels": images(lambda m, h: torch.fft.irfft2(torch.fft.rfft2(h) * m.keep, s=h.shape[-2:]), ALL,
                                    keep=torch.rand(8, 5)),
    "a learned filter of frequencies": images(
        lambda m, h: torch.fft.irfft2(torch.fft.rfft2(h) * torch.view_as_complex(m.keep), s=h.shape[-2:]), ALL,
        keep=parameter(6, 8, 5, 2)),
    "frequencies of rows": images(lambda m, h: torch.fft.ifft(torch.fft.fft(h, dim=2), dim=2).real, ALL),
    "frequencies of everything": images(lambda m, h: torch.fft.fftn(h).real, {}),
    "frequencies of channels": sequences(lambda m, h: torch.fft.fft(h).real, {}),
    "outer product of channels": sequences(
        lambda m, h: (h[..., None] * m.short(h)[..., None, :]).sum(-1), {"a": 6}, short=nn.Linear(6, 3)),
    # weights that are computed or used in parts
    "view of a depthwise weight": images(
        lambda m, h: F.conv2d(h, m.w.squeeze(1)[:, None], m.c, groups=h.shape[1]), ALL, w=parameter(6, 1, 1, 1),
        c=parameter(6)),
    "weight standardisation": images(lambda m, h: m.ws(h), {"ws": 6}, ws=WeightStandardised(6, 6, 1)),
    "scaled by the largest": sequences(
        lambda m, h: F.linear(h, _rounded(m.q.weight), m.q.bias).relu(), {"a": 6, "q": 6}, q=nn.Linear(6, 6)
    ),
    "a table of heads' biases that is resampled": sequences(
        lambda m, h: merged((of_two(m.q(h)) @ of_two(m.k(h)).mT + _resampled(m.table)).softmax(-1) @ of_two(h)),
        {"a": 3}, q=nn.Linear(6, 6), k=nn.Linear(6, 6), table=parameter(9, 3),
    ),
    "learned positions that are resampled": images(
        lambda m, h: h + F.interpolate(m.at, size=(8, 8), mode="bicubic"), ALL, at=parameter(1, 6, 4, 4)
    ),
    "a slice that is written into": sequences(lambda m, h: _halved(h), {"a": 6}),
    "pooled head by head": images(lambda m, h: _pooled_by_head(h), {"a.0": 2}),
    "a part of a bias that is zeroed": sequences(
        lambda m, h: F.linear(h, m.qkv.weight, _without_middle(m.qkv.bias)).chunk(3, -1)[1] * m.v(h),
        {"a": 6, "qkv": 4}, width=4, qkv=nn.Linear(6, 12), v=nn.Linear(6, 4),
    ),
    "complex numbers": sequences(
        lambda m, h: (z := torch.complex(h, m.p(h)) * torch.polar(h, m.q(h))).real + z.imag.relu(), {"a": 6},
        p=nn.Linear(6, 6), q=nn.Linear(6, 6),
    ),
    # sums with a learned vector
    "pooled by a learned score": sequences(
        lambda m, h: h + ((torch.tanh(m.p(h)) @ m.v).softmax(1)[..., None] * h).sum(1, keepdim=True),
        {"a": 6, "p": 4}, p=nn.Linear(6, 4), v=parameter(4),
    ),
    "a score by einsum": sequences(
        lambda m, h: h * torch.einsum("btd,d->bt", m.p(h), m.v)[..., None], {"a": 6, "p": 4}, p=nn.Linear(6, 4),
        v=parameter(4),
    ),
    "a weighted sum of layers": sequences(
        lambda m, h: torch.einsum("n,nbtd->btd", m.v, torch.stack([h, m.p(h)])), {"a": 6}, p=nn.Linear(6, 6),
        v=parameter(2),
    ),
    "a vector before a matrix": sequences(lambda m, h: h + (m.v @ h)[:, None], {"a": 6}, v=parameter(5)),
    # operations that torch computes by others
    "other names of operations": sequences(
        lambda m, h: torch.multiply(h, torch.arctan(m.p(h))).subtract(h).divide(2.0).negative(), {"a": 6},
        p=nn.Linear(6, 6),
    ),
    "tensordot and inner": sequences(
        lambda m, h: torch.inner(torch.tensordot(h, m.w, dims=([2], [0])).relu(), m.v), {"a": 6, "w": 4, "v": 6},
        w=parameter(6, 4), v=parameter(6, 4),
    ),
    "stacked horizontally and moved": sequences(
        lambda m, h: torch.moveaxis(torch.hstack([h, m.p(h)]), 1, 0).flipud().moveaxis(0, 1), {"a": 6},
        p=nn.Linear(6, 6),
    ),
    "products of vectors": sequences(
        lambda m, h: h * torch.linalg.vecdot(m.p(h), m.q(h))[..., None], {"a": 6, "p": 4}, p=nn.Linear(6, 4),
        q=nn.Linear(6, 4),
    ),
    "variance and mean at once": sequences(
        lambda m, h: (h - torch.var_mean(h, dim=1, keepdim=True)[1]) * torch.std_mean(h, 1, keepdim=True)[0], {"a": 6}
    ),
    "windows over tokens": sequences(lambda m, h: (h.unfold(1, 2, 1) * m.w).sum(-1), {"a": 6}, w=parameter(2)),
    "products so far": sequences(lambda m, h: h.cumprod(1) + h.cummax(1)[0] + h.logcumsumexp(1), {"a": 6}),
    "a loss that adds up": sequences(
        lambda m, h: h + F.mse_loss(m.p(h), m.q(h), reduction="sum"), {"a": 6, "p": 4}, p=nn.Linear(6, 4),
        q=nn.Linear(6, 4),
    ),
    "decays of heads below the diagonal": sequences(
        lambda m, h: merged(_decays(m.rate, 5) * (of_two(m.q(h)) @ of_two(m.k(h)).mT) @ of_two(h)),
        {"a": 3}, q=nn.Linear(6, 6), k=nn.Linear(6, 6), rate=torch.tensor([0.9, 0.8, 0.7]),
    ),
    "the last sum of a loop is not read": sequences(
        lambda m, h: (m.same(h), h + m.one(h)[:, -5:], m.b)[0], {"a": 6, "same": 6}, same=nn.Linear(6, 6),
        one=nn.Linear(6, 6),
    ),
    "computed bias": images(
        lambda m, h: F.conv2d(h, m.w, m.c * 2), {"a.0": 6, "w": 6}, w=parameter(6, 6, 1, 1), c=parameter(6)),
    "part of a weight": images(lambda m, h: F.conv2d(h, m.w[:6]), ALL, w=parameter(9, 6, 1, 1)),
    "grouped over the input": (
        lambda m, x: m.last(F.relu(m.b(F.relu(m.a(x))))),
        {"a": nn.Conv2d(4, 8, 1, groups=2), "b": conv(8, 5), "last": conv(5, 2)}, image(channels=4), {"b": 5},
    ),
    # parameters in the place of activations
    "learned mask": images(lambda m, h: h * torch.sigmoid(m.mask), ALL, mask=parameter(1, 6, 1, 1)),
    "learned picture": images(lambda m, h: h + m.picture, ALL, picture=parameter(1, 8, 8)),
    "addmm": (
        lambda m, x: m.last(F.relu(torch.addmm(m.c, x, m.w))),
        {"w": parameter(3, 6), "c": parameter(6), "last": nn.Linear(6, 2)}, vectors(2, 3), {"w": 6},
    ),
    "class token": sequences(
        lambda m, h: torch.cat([m.token.expand(h.shape[0], -1, -1), h], 1), {"a": 6}, token=parameter(1, 1, 6)),
    "stacked parameters": sequences(
        lambda m, h: h + torch.stack([m.p, m.q]).sum(0), {}, p=parameter(6), q=parameter(6)),
    "split parameter": sequences(lambda m, h: h * m.p.chunk(2)[0] + m.p.chunk(2)[1], {"a": 6}, p=parameter(12)),
    "rows of a table": sequences(
        lambda m, h: h + m.table[m.rows], {"a": 6}, table=parameter(9, 6), rows=torch.arange(5)),
    "selected rows": sequences(
        lambda m, h: h + m.table.index_select(0, m.rows), {"a": 6}, table=parameter(9, 6), rows=torch.arange(5)),
    "unbound parameter": sequences(lambda m, h: h * m.pair.unbind(0)[0], {"a": 6}, pair=parameter(2, 6)),
    "computed table": sequences(
        lambda m, h: h + F.embedding(m.rows, m.table * 2.0), {"a": 6}, table=parameter(9, 6), rows=torch.arange(5)),
    "masked weight": sequences(
        lambda m, h: F.linear(h, m.w * m.mask), {"a": 6, "w": 6}, w=parameter(6, 6), mask=torch.ones(6, 6).tril()),
    "rows summed in bags": sequences(
        lambda m, h: h + m.bags(m.rows)[None], {"a": 6}, bags=nn.EmbeddingBag(9, 6),
        rows=torch.arange(10).view(5, 2) % 9),
    "normalised latents": sequences(
        lambda m, h: h + m.mix(m.norm(m.latents)), {"a": 6}, latents=parameter(5, 4), norm=nn.LayerNorm(4),
        mix=nn.Linear(4, 6)),
    "broadcast as for a loss": sequences(
        lambda m, h: torch.add(*torch.broadcast_tensors(h, m.c(h[:, :1]))), {"a": 6}, c=nn.Linear(6, 6)),
    "a sum that nobody reads": (
        lambda m, x: (h := m.a(x), s := m.skip(h), h + m.rest(h), m.last(F.relu(m.b(h) + s)))[-1],
        {"a": nn.Linear(3, 6), "rest": nn.Linear(6, 6), "skip": nn.Linear(6, 5), "b": nn.Linear(6, 5),
         "last": nn.Linear(5, 2)}, SEQUENCE, {"a": 6, "skip": 5},
    ),
    # attention
    "masked attention": sequences(
        lambda m, h: merged(F.scaled_dot_product_attention(*(heads(h, 2),) * 3, attn_mask=m.mask)), {},
        mask=torch.zeros(5, 5)),
    "grouped queries": (
        lambda m, x: m.last(F.relu(m.b(merged(F.scaled_dot_product_attention(
            heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2), enable_gqa=True))))),
        {"q": nn.Linear(3, 8), "k": nn.Linear(3, 4), "v": nn.Linear(3, 4), "b": nn.Linear(8, 5),
         "last": nn.Linear(5, 2)}, SEQUENCE, {"b": 5},
    ),
    "learned keys": sequences(
        lambda m, h: torch.softmax(h @ m.keys.T, -1) @ m.values, {"a": 6, "values": 7}, width=7, keys=parameter(4, 6),
        values=parameter(4, 7)),
    "gram matrix": sequences(lambda m, h: h @ (h.mT @ h), {}),
    "einsum with an ellipsis": sequences(lambda m, h: torch.einsum("...i,io->...o", h, m.w), {"a": 6, "w": 6},
                                         w=parameter(6, 6)),
    "batched products": sequences(lambda m, h: torch.baddbmm(h, h.mT[:, :5, :5], h), {}),
    # recurrent states
    "given state": (
        lambda m, x, s: m.last(F.relu(m.b(m.rnn(x, s)[0]))),
        {"rnn": nn.GRU(3, 6, batch_first=True), "b": nn.Linear(6, 5), "last": nn.Linear(5, 2)},
        (*SEQUENCE, *vectors(1, 2, 6)), {"b": 5},
    ),
    "learned state": (
        lambda m, x: m.last(F.relu(m.b(m.rnn(x, m.state.expand(-1, x.shape[0], -1).contiguous())[0]))),
        {"rnn": nn.GRU(3, 6, batch_first=True), "b": nn.Linear(6, 5), "last": nn.Linear(5, 2),
         "state": parameter(1, 1, 6)}, SEQUENCE, {"rnn": 6, "b": 5},
    ),
    "learned state of a cell": (
        lambda m, x: m.last(m.cell(x[:, 0], m.state.expand(x.shape[0], -1).contiguous())),
        {"cell": nn.GRUCell(3, 6), "last": nn.Linear(6, 2), "state": parameter(1, 6)}, SEQUENCE, {"cell": 6},
    ),
    "learned input of a cell": (
        lambda m, x: m.last(m.cell(m.start.expand(x.shape[0], -1).contiguous(), m.a(x[:, 0]))),
        {"a": nn.Linear(3, 6), "cell": nn.GRUCell(4, 6), "last": nn.Linear(6, 2), "start": parameter(1, 4)}, SEQUENCE,
        {"a": 6},
    ),
    "recurrent over the input": (
        lambda m, x: m.last(m.rnn(x)[0]), {"rnn": nn.LSTM(3, 6, batch_first=True), "last": nn.Linear(6, 2)},
        SEQUENCE, {"rnn": 6},
    ),
}  # fmt: skip


AT_THE_READER = ["clamp above zero", "clamp_max below zero", "negative power", "threshold to a value", "softplus",
                 "cosine", "masked_fill with a value", "one channel plus many", "learned picture"]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_contract_and_groups(name: str) -> None:
    forward, parts, inputs, sizes = CASES[name]
    structure = traced(Net(forward, **parts), inputs)
    assert {n: size for n, (size, _, _) in groups_of(structure).items()} == sizes
    if name in AT_THE_READER:  # what does not keep zeros
        (group,) = [g for g in structure.groups if g.name == "a.0"]
        assert [(s.tensor, s.dim) for s in group.gate_site if s.tensor.startswith("b")] == [("b.weight", 1)]


def test_contexts_inside_the_forward_pass() -> None:
    """no_grad, autocast and checkpointing make regions of their own in the exported graph."""

    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = x * m.a(x).mean()
        h = m.b(x)
        with torch.autocast("cpu", enabled=False):
            h = m.c(h)
        return m.last(checkpoint(m.d, h, use_reentrant=False))

    net = Net(forward, a=conv(3, 4), b=unit(3, 6), c=unit(6, 5), d=unit(5, 4), last=conv(4, 2))
    structure = traced(net, image())
    assert {"b.0", "c.0", "d.0"} <= set(groups_of(structure))


def test_several_inputs_of_which_one_is_a_mask() -> None:
    def forward(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        return m.last(m.a(x) * mask[:, None])

    inputs = (*image(), (vectors(2, 8, 8)[0] > 0).float())
    assert set(groups_of(traced(Net(forward, a=unit(3, 6), last=conv(6, 2)), inputs))) == {"a.0"}


def test_an_input_that_is_as_wide_as_the_channels_freezes_them() -> None:
    def forward(m: Any, x: Tensor, style: Tensor) -> Tensor:
        return m.last(m.b(m.a(x) * style[:, :, None, None]))

    inputs = (*image(), *vectors(2, 6))
    assert set(groups_of(traced(Net(forward, a=unit(3, 6), b=unit(6, 5), last=conv(5, 2)), inputs))) == {"b.0"}


def test_a_tensor_that_is_written_in_parts_is_their_concatenation() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        both = a.new_zeros(a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:])
        both[:, : a.shape[1]] = a
        both[:, a.shape[1] :].add_(b)
        return m.last(torch.relu(both))

    net = Net(forward, a=conv(3, 4), b=conv(3, 6), last=conv(10, 2))
    assert {name: size for name, (size, _, _) in groups_of(traced(net, image())).items()} == {"a": 4, "b": 6}


@pytest.mark.parametrize("case", ["a frame", "a loop"])
def test_a_created_tensor_has_the_channels_that_are_written_into_a_part_of_it(case: str) -> None:
    def framed(m: Any, x: Tensor) -> Tensor:
        a = m.a(x)
        made = a.new_zeros(*a.shape[:2], 12, 12)
        made[:, :, 1:9, 2:10] = a
        made[:, :, 0:2, 0:2] += a[:, :, :2, :2]
        return m.last(made)

    def stepped(m: Any, x: Tensor) -> Tensor:
        a = m.a(x)
        made = torch.empty_like(a)
        for step in range(a.shape[-1]):
            made[:, :, step] = torch.tanh(a[:, :, step]) + (made[:, :, step - 1] if step else 0)
        return m.last(made)

    net = Net(framed if case == "a frame" else stepped, a=conv(3, 5), last=conv(5, 2))
    assert groups_of(traced(net, image()))["a"][0] == 5


def test_windows_of_an_image_and_their_sum_keep_its_channels() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = torch.relu(m.a(x))
        windows = F.unfold(a, 3, padding=1).unflatten(1, (a.shape[1], 9))
        return m.last(F.fold((windows * m.weights[:, None]).flatten(1, 2), x.shape[-2:], 3, padding=1))

    net = Net(forward, a=conv(3, 5), weights=parameter(9), last=conv(5, 2))
    assert groups_of(traced(net, image()))["a"][0] == 5


def test_rates_of_a_state_space_model_lose_what_its_steps_lose() -> None:
    """Mamba's scan in short: products over several dimensions that sum nothing are elementwise."""

    def forward(m: Any, x: Tensor) -> Tensor:
        step, wide = F.softplus(m.step(x)), m.wide(x)
        decay = torch.exp(torch.einsum("bld,dn->bldn", step, -torch.exp(m.rates)))
        inner = torch.einsum("bld,bln,bld->bldn", step, m.into(x), wide)
        state, outputs = torch.zeros_like(inner[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + inner[:, t]
            outputs.append(torch.einsum("bdn,bn->bd", state, m.out(x)[:, t]))
        return m.last(torch.stack(outputs, 1) + wide * m.skip)

    parts = {name: nn.Linear(3, n) for name, n in (("step", 6), ("wide", 6), ("into", 8), ("out", 8))}
    net = Net(forward, **parts, rates=parameter(6, 8), skip=parameter(6), last=nn.Linear(6, 2))
    ((size, _, _),) = groups_of(traced(net, SEQUENCE)).values()
    assert size == 6, "the inner channels go, the larger state stays"


@pytest.mark.parametrize("case", ["in part", "twice", "through a view"])
def test_channels_written_into_a_slice_otherwise_stay(case: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        a = torch.relu(m.a(x))
        made = a.new_zeros(a.shape[0], 7 if case == "in part" else 5, *a.shape[2:])
        if case == "through a view":
            made.transpose(2, 3)[:, :5] = a
        else:
            made[:, :5] = a
        if case == "twice":
            made[:, 1:] += a[:, 1:]
        return m.last(made)

    net = Net(forward, a=conv(3, 5), last=conv(7 if case == "in part" else 5, 6))
    whole = Net(
        lambda m, x: m.end(m.net(x) + m.one(m.body(x))), net=net, end=conv(6, 2), body=unit(3, 4), one=conv(4, 6)
    )
    assert "net.a" not in groups_of(traced(whole, image()))
