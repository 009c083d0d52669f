"""Weights that the forward pass computes: normed, scaled, modulated, mixed, flattened."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import apical
from apical.errors import TraceError
from apical.growth._growing_model import prepare_births_
from structure.expectations import groups_of, members_of, reasons_of, site, traced
from structure.nets import Net, image, vectors


def test_weight_norm_has_the_gate_of_what_it_writes_in_the_length_and_of_what_it_reads_in_the_direction() -> None:
    """A direction of zero has no norm, and what is read counts in the norm although its writer is zero."""
    parts = [weight_norm(nn.Conv1d(3, 6, 3)), nn.ReLU(), weight_norm(nn.Conv1d(6, 5, 3)), nn.ReLU(), nn.Conv1d(5, 2, 1)]
    length, direction = (f"parametrizations.weight.original{k}" for k in (0, 1))
    assert groups_of(traced(nn.Sequential(*parts), vectors(2, 3, 9))) == {
        "0.parametrizations.weight": (6, "inner", f"2.{direction}/1"),
        "2.parametrizations.weight": (5, "inner", f"2.{length} 2.bias"),
    }


def test_weight_norm_of_grouped_and_transposed_convolutions() -> None:
    norm = nn.Sequential(
        weight_norm(nn.Conv1d(3, 6, 3)), weight_norm(nn.Conv1d(6, 6, 3, groups=6)), nn.ReLU(),
        weight_norm(nn.ConvTranspose1d(6, 8, 4, 2), dim=1), nn.LeakyReLU(), nn.Conv1d(8, 2, 1),
    )  # fmt: skip
    assert {name: size for name, (size, *_) in groups_of(traced(norm, vectors(2, 3, 9))).items()} == {
        "0.parametrizations.weight": 6, "3.parametrizations.weight": 8,
    }  # fmt: skip


def test_a_spectral_norm_stays_and_says_what_to_write() -> None:
    net = nn.Sequential(spectral_norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    structure = traced(net, vectors(2, 3))
    assert list(groups_of(structure)) == ["2"]
    assert "weight_norm" in reasons_of(structure)["0.parametrizations.weight"]


def vocoder(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """As vocoders are built: each transposed convolution is normed by input channel, which is weight_norm's default."""
    parts = [norm(nn.ConvTranspose1d(3, 8, 4, 2)), nn.LeakyReLU(), norm(nn.Conv1d(8, 6, 3)), nn.LeakyReLU(),
             norm(nn.ConvTranspose1d(6, 5, 4, 2)), nn.LeakyReLU(), nn.Conv1d(5, 1, 3)]  # fmt: skip
    return nn.Sequential(*parts)


class ResidualVocoder(nn.Module):
    """As HiFi-GAN: what a transposed convolution writes, others read and add to."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.same = weight_norm(nn.ConvTranspose1d(3, 6, 4, 2)), weight_norm(nn.Conv1d(6, 6, 3, padding=1))
        self.again, self.last = weight_norm(nn.ConvTranspose1d(6, 5, 4, 2)), nn.Conv1d(5, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        return self.last(F.leaky_relu(self.again(x + self.same(F.leaky_relu(x)))))


def test_channels_that_share_a_norm_go_and_come_without_a_change() -> None:
    """A newborn is zero where it is written, and so has no part in the norm; it moves at the first or second step."""
    torch.manual_seed(0)
    normed = weight_norm(nn.Linear(9, 6), dim=None)
    flat = nn.Sequential(normed, nn.Tanh(), nn.Linear(6, 2))
    for model, sizes in ((vocoder(weight_norm), [8, 6, 5]), (ResidualVocoder(), [6, 5]), (flat, [6])):
        model = model.double()
        inputs = tuple(x.double() for x in (vectors(2, 9) if model is flat else vectors(2, 3, 9)))
        structure, store = traced(model, inputs), apical.DormantStore()
        assert [g.size for g in structure.groups] == sizes
        born = {g.name: range(2, g.size) for g in structure.groups}
        apical.resize_(model, structure, {name: range(2) for name in born}, store=store)
        before = model(*inputs)
        prepare_births_(store, structure, born, born, (), preserving=True)
        apical.resize_(model, structure, {}, store=store)
        torch.testing.assert_close(model(*inputs), before, rtol=1e-10, atol=1e-10)
        optimizer, was = torch.optim.SGD(model.parameters(), lr=0.1), copy.deepcopy(model)
        for _ in range(2):
            optimizer.zero_grad()
            model(*inputs).square().sum().backward()
            optimizer.step()
        for group in structure.groups:
            for part in group.members:
                moved = (model.get_parameter(part.tensor) != was.get_parameter(part.tensor)).movedim(part.dim, 0)
                assert moved.reshape(len(moved), -1).any(1)[part.index[2:].reshape(-1)].all(), (group.name, part.tensor)


@pytest.mark.parametrize("between", [nn.BatchNorm1d(6), nn.Identity()], ids=["batch norm", "no bias"])
def test_channels_that_share_a_norm_stay_where_a_newborn_would_never_move(between: nn.Module) -> None:
    """Two factors of zero have no gradient."""
    first = weight_norm(nn.ConvTranspose1d(3, 6, 4, bias=False))
    with pytest.raises(TraceError, match="of a transposed convolution with dim=1"):
        apical.trace(nn.Sequential(first, between, nn.ReLU(), weight_norm(nn.Conv1d(6, 2, 1))), vectors(2, 3, 9))


def cosine(m: Net, x: Tensor) -> Tensor:
    return F.linear(F.normalize(m.a(x)), F.normalize(m.classes))


def by_hand(m: Net, x: Tensor) -> Tensor:
    weight = m.classes * m.length[:, None] / m.classes.pow(2).sum(1).add(1e-6).sqrt()[:, None]
    return torch.relu(m.a(x)) @ weight.t()


@pytest.mark.parametrize("forward", [cosine, by_hand])
def test_classes_that_are_normed_in_the_forward_pass_let_their_features_go(forward: Callable[..., Tensor]) -> None:
    classes, length = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (4,)))
    parts = {"length": length} if forward is by_hand else {}
    structure = traced(Net(forward, a=nn.Linear(3, 6), classes=classes, **parts), vectors(2, 3))
    assert groups_of(structure)["a"][0] == 6
    assert "classes/1" in groups_of(structure)["a"][2]


class Modulated(nn.Module):
    """StyleGAN's convolution: a style scales the columns of a weight for each image, whose rows are then normed."""

    def __init__(self, i: int, o: int, form: str) -> None:
        super().__init__()
        self.form, self.out_channel = form, o
        self.style, self.weight = nn.Linear(4, i), nn.Parameter(torch.randn(1, o, i, 3, 3))
        self.strength, self.bias = nn.Parameter(torch.randn(1)), nn.Parameter(torch.randn(o, 1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        b, i, h, w = x.shape
        if self.form == "rosinality":
            weight = 0.5 * self.weight * self.style(style).view(b, 1, i, 1, 1)
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(b, self.out_channel, 1, 1, 1)
            weight = weight.view(b * self.out_channel, i, 3, 3)
        elif self.form == "lucidrains":
            weight = self.weight[0][None] * (self.style(style)[:, None, :, None, None] + 1)
            weight = weight * torch.rsqrt((weight**2).sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
            weight = weight.reshape(b * self.out_channel, *weight.shape[2:])
        else:  # NVlabs
            weight = self.weight[0].unsqueeze(0) * self.style(style).reshape(b, 1, -1, 1, 1)
            weight = weight * (weight.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt().reshape(b, -1, 1, 1, 1)
            weight = weight.reshape(-1, i, 3, 3)
        y = F.conv2d(x.reshape(1, -1, h, w), weight, padding=1, groups=b)
        y = y.view(b, -1, h, w)
        return F.leaky_relu(y + self.strength * style[:, :1, None, None] + self.bias, 0.2)


@pytest.mark.parametrize("form", ["rosinality", "lucidrains", "NVlabs"])
def test_a_generator_whose_weights_are_modulated(form: str) -> None:
    def forward(m: Net, style: Tensor) -> Tensor:
        return m.out(m.b(m.a(m.begin.repeat(len(style), 1, 1, 1), style), style))

    parts = {"a": Modulated(5, 6, form), "b": Modulated(6, 7, form), "out": nn.Conv2d(7, 3, 1)}
    found = groups_of(traced(Net(forward, begin=nn.Parameter(torch.randn(1, 5, 4, 4)), **parts), vectors(2, 4)))
    assert {name: size for name, (size, *_) in found.items()} == {"a.style": 5, "a": 6, "b": 7}
    assert found["a"][2] == "b.weight/2", "noise that all channels share is there without them"


class Dynamic(nn.Module):
    """Dynamic convolution: each image mixes a weight and a bias of its own from three."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.out_planes, self.shares = o, nn.Linear(i, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(3, o, i, 3, 3)), nn.Parameter(torch.randn(3, o))

    def forward(self, x: Tensor) -> Tensor:
        b, i, h, w = x.shape
        shares = self.shares(x.mean((2, 3))).softmax(-1)
        weight = torch.mm(shares, self.weight.view(3, -1)).view(b * self.out_planes, i, 3, 3)
        bias = torch.mm(shares, self.bias).view(-1)
        y = F.conv2d(x.reshape(1, -1, h, w), weight, bias, padding=1, groups=b)
        return y.view(b, self.out_planes, h, w)


def test_a_weight_that_each_image_mixes_of_several() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), Dynamic(6, 5), nn.ReLU(), nn.Conv2d(5, 2, 1))
    structure = traced(net, image())
    assert {g.name: g.size for g in structure.groups} == {"0": 6, "2": 5}
    assert "softmax" in reasons_of(structure)["2.shares"]


def test_hidden_units_of_what_computes_a_weight_go() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        weight = (torch.relu(m.hidden(m.seed)) @ m.made).view(4, 5)
        return F.linear(torch.relu(m.a(x)), weight)

    parts = {"hidden": nn.Linear(3, 6), "a": nn.Linear(3, 5), "seed": torch.randn(1, 3)}
    structure = traced(Net(forward, made=nn.Parameter(torch.randn(6, 20)), **parts), vectors(2, 3))
    assert {g.name: g.size for g in structure.groups} == {"hidden": 6}


class Splines(nn.Module):
    """A layer of a Kolmogorov-Arnold network, with a scale for each of its functions."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.out_features = o
        self.base, self.scale = nn.Parameter(torch.randn(o, i)), nn.Parameter(torch.randn(o, i))
        self.weight = nn.Parameter(torch.randn(o, i, 4))
        self.register_buffer("grid", torch.linspace(-1, 1, 4).expand(i, -1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        near = torch.exp(-((x.unsqueeze(-1) - self.grid) ** 2)).view(len(x), -1)
        return F.linear(F.silu(x), self.base) + F.linear(
            near, (self.weight * self.scale.unsqueeze(-1)).view(self.out_features, -1)
        )


def test_a_weight_whose_inputs_are_flattened_with_what_each_has() -> None:
    structure = traced(nn.Sequential(Splines(3, 6), Splines(6, 5), Splines(5, 2)), vectors(2, 3))
    assert sorted(g.size for g in structure.groups) == [5, 6]


class Mixed(nn.Module):
    """A convolution whose weight is mixed from four, stored as they are or, as in timm's CondConv, flat."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.stem, self.route, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4), nn.Linear(8, 2)
        self.weight = nn.Parameter(torch.randn((4, 8 * 6) if flat else (4, 8, 6, 1, 1)) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        b, c, *sides = x.shape
        weight = (torch.sigmoid(self.route(x.mean((2, 3)))) @ self.weight.flatten(1)).view(-1, c, 1, 1)
        y = F.conv2d(x.reshape(1, -1, *sides), weight, groups=b)
        return self.fc(torch.relu(y.view(b, -1, *sides)).mean((2, 3)))


def test_weights_that_are_stored_flat_are_told_how_to_be_stored() -> None:
    whole = traced(Mixed(flat=False), image())
    assert {g.name: g.size for g in whole.groups} == {"stem": 6, "weight": 8}
    flat = traced(Mixed(flat=True), image())
    assert "(number, out, in, *kernel)" in " ".join(f.reason for f in flat.frozen)


class Adapted(nn.Linear):
    """A linear layer with what it has learned since in a product of two thin weights (LoRA)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o)
        self.down, self.up = nn.Parameter(torch.randn(3, i)), nn.Parameter(torch.randn(o, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + 0.5 * (self.up @ self.down), self.bias)


def test_weights_of_low_rank_added_to_others() -> None:
    structure = traced(
        nn.Sequential(Adapted(4, 6), nn.ReLU(), Adapted(6, 5), nn.ReLU(), nn.Linear(5, 2)), vectors(2, 4)
    )
    assert {g.name: g.size for g in structure.groups} == {"0": 3, "0:2": 6, "2": 3, "2:2": 5}
    assert members_of(structure, "0:2") == {
        "0.weight": 1, "0.bias": 1, "0.up": 1, "2.weight/1": 1, "2.down/1": 1
    }  # fmt: skip


def test_weights_of_low_rank_alone() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.last(torch.relu(F.linear(x, m.up @ m.down, m.bias)))

    thin = {"up": nn.Parameter(torch.randn(6, 3)), "down": nn.Parameter(torch.randn(3, 4))}
    structure = traced(Net(forward, **thin, bias=nn.Parameter(torch.randn(6)), last=nn.Linear(6, 2)), vectors(2, 4))
    assert sorted(g.size for g in structure.groups) == [3, 6]


def test_a_small_kernel_that_is_added_to_a_large_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        weight = m.large.weight + F.pad(m.small.weight, [1, 1, 1, 1])
        return m.last(torch.relu(F.conv2d(torch.relu(m.stem(x)), weight, padding=1)))

    net = Net(forward, stem=nn.Conv2d(3, 6, 3), large=nn.Conv2d(6, 5, 3, bias=False), last=nn.Conv2d(5, 2, 1),
              small=nn.Conv2d(6, 5, 1, bias=False))  # fmt: skip
    structure = traced(net, image())
    assert {g.name: g.size for g in structure.groups} == {"stem": 6, "large": 5}
    apical.resize_(net, structure, {"stem": range(4), "large": range(3)})
    assert (net.small.in_channels, net.small.out_channels) == (4, 3)


class Standardised(nn.Conv2d):
    """Weight standardisation as timm writes it for BiT and, with a gain, for NFNet."""

    def __init__(self, i: int, o: int, gain: bool) -> None:
        super().__init__(i, o, 3)
        self.gain = nn.Parameter(torch.rand(o, 1, 1, 1) + 0.5) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        gain = None if self.gain is None else (self.gain * 0.3).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias)


@pytest.mark.parametrize("gain", [False, True])
def test_standardised_weights_lose_what_they_read_only_if_streams_may_be_resized(gain: bool) -> None:
    net = nn.Sequential(Standardised(3, 6, gain), nn.ReLU(), Standardised(6, 5, gain), nn.ReLU(), nn.Conv2d(5, 2, 1))
    kept = traced(net, image())
    assert {g.name: g.size for g in kept.groups} == {"2": 5}
    assert 'without one of them it changes, unless streams="resize"' in reasons_of(kept)["0"]
    resized = apical.trace(net, image(), streams="resize")
    assert {g.name: (g.size, g.exact) for g in resized.groups} == {"0": (6, False), "2": (5, True)}


class Knots(nn.Module):
    """Splines of first degree, whose knots are a table that each feature has its own row of."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.features, self.weight = o, nn.Parameter(torch.randn(o, i, 4))
        self.register_buffer("grid", torch.linspace(-2, 2, 6).expand(i, -1).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        x, g = x.unsqueeze(-1), self.grid
        near = ((x >= g[:, :-1]) & (x < g[:, 1:])).to(x.dtype)
        rising = (x - g[:, :-2]) / (g[:, 1:-1] - g[:, :-2]) * near[..., :-1]
        near = rising + (g[:, 2:] - x) / (g[:, 2:] - g[:, 1:-1]) * near[..., 1:]
        return F.linear(near.flatten(1), self.weight.view(self.features, -1))


def test_a_table_of_knots_loses_the_rows_of_features() -> None:
    structure = traced(nn.Sequential(Knots(3, 6), Knots(6, 2)), vectors(4, 3))
    assert [(g.name, g.size, site(structure, g.name)) for g in structure.groups] == [("0", 6, "1.weight/1")]


def test_the_largest_of_all_weights_does_not_depend_on_those_that_are_zero() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        weight = m.a.weight / m.a.weight.abs().max()
        return m.last(torch.relu(F.linear(x, weight, m.a.bias)))

    structure = traced(Net(forward, a=nn.Linear(4, 6), last=nn.Linear(6, 2)), vectors(2, 4))
    assert [(g.name, g.size) for g in structure.groups] == [("a", 6)]
