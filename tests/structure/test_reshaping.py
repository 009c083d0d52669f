"""Channels that are split, stacked, shuffled, flattened, padded, indexed or written to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.errors import TraceError
from structure.expectations import OUTPUT, Groups, expect, members_of, traced
from structure.nets import Net, conv, image, unit, vectors

S = nn.Sequential
STEM = (8, "inner", "0.1.weight 0.1.bias")
Case = tuple[Callable[[], nn.Module], tuple[Any, ...], Groups, dict[str, str]]


def two_branches(combine: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """Two units on the same image, combined, and a convolution."""
    return Net(lambda m, x: m.last(combine(m.a(x), m.b(x))), a=unit(3, 6), b=unit(3, 6), last=conv(6, 2))


def one_branch(change: Callable[[Tensor], Tensor], out: int = 6) -> nn.Module:
    """A unit of six channels, changed, and a convolution."""
    return Net(lambda m, x: m.last(change(m.a(x))), a=unit(3, 6), last=conv(out, 2))


def relu_in_place(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h.relu_()
    h.add_(m.b(x))
    h.mul_(2.0)
    return m.last(h)


def alias_in_place(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    same = h
    same.sigmoid_()
    return m.last(h)


ONE = {"a.0": (6, "inner", "a.1.weight a.1.bias")}
BOTH = "a.1.weight a.1.bias b.1.weight b.1.bias"

CASES: dict[str, Case] = {
    "flatten": (
        lambda: S(unit(3, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 7), nn.ReLU(), nn.Linear(7, 2)), image(),
        {"0.0": STEM, "3": (7, "inner", "3.weight 3.bias")}, {"5": OUTPUT},
    ),
    "view": (
        lambda: Net(lambda m, x: m.fc(m.a(x).view(x.shape[0], -1)), a=unit(3, 6), fc=nn.Linear(384, 2)), image(),
        ONE, {"fc": OUTPUT},
    ),
    "channels_last_linear": (
        lambda: Net(lambda m, x: m.fc(m.a(x).permute(0, 2, 3, 1)), a=unit(3, 6), fc=nn.Linear(6, 2)), image(),
        ONE, {"fc": OUTPUT},
    ),
    "linear_to_image": (
        lambda: Net(lambda m, x: m.last(F.relu(m.fc(x)).view(x.shape[0], -1, 4, 4)), fc=nn.Linear(3, 96),
                    last=conv(6, 2)), vectors(2, 3),
        {"fc": (6, "inner", "fc.weight fc.bias")}, {"last": OUTPUT},
    ),
    "pixel_shuffle": (
        lambda: S(unit(3, 8), conv(8, 24), nn.PixelShuffle(2), nn.ReLU(), conv(6, 2)), image(),
        {"0.0": STEM, "1": (6, "inner", "1.weight 1.bias")}, {"4": OUTPUT},
    ),
    "pixel_unshuffle": (
        lambda: S(unit(3, 8), nn.PixelUnshuffle(2), unit(32, 6), conv(6, 2)), image(),
        {"0.0": STEM, "2.0": (6, "inner", "2.1.weight 2.1.bias")}, {"3": OUTPUT},
    ),
    "channel_shuffle": (  # each of 3 shuffled groups must keep as many channels
        lambda: S(unit(3, 12), nn.ChannelShuffle(3), unit(12, 8), conv(8, 2)), image(),
        {"0.0": (4, "inner", "0.1.weight 0.1.bias"), "2.0": (8, "inner", "2.1.weight 2.1.bias")}, {"3": OUTPUT},
    ),
    "channel_shuffle_between_grouped_convolutions": (
        lambda: S(unit(3, 12), unit(12, 36, 1, groups=3), nn.ChannelShuffle(3), unit(36, 18, 1, groups=3), unit(18, 8),
                  conv(8, 2)), image(),
        {"4.0": (8, "inner", "4.1.weight 4.1.bias")}, {"0.0": "all its channels must go together", "5": OUTPUT},
    ),
    "chunk_gate": (
        lambda: Net(lambda m, x: m.last((p := m.a(x).chunk(2, 1))[0] * torch.sigmoid(p[1])), a=conv(3, 12),
                    last=conv(6, 2)), image(),
        {"a": (6, "inner", "a.weight a.bias")}, {"last": OUTPUT},
    ),
    "glu": (
        lambda: Net(lambda m, x: m.last(F.glu(m.a(x), 1)), a=conv(3, 12), last=conv(6, 2)), image(),
        {"a": (6, "inner", "a.weight a.bias")}, {"last": OUTPUT},
    ),
    "stack_and_sum": (lambda: two_branches(lambda a, b: torch.stack([a, b]).sum(0)), image(),
                      {"a.0": (6, "inner", BOTH)}, {"last": OUTPUT}),
    "stack_and_maximum": (lambda: two_branches(lambda a, b: torch.stack([a, b], -1).amax(-1)), image(),
                          {"a.0": (6, "inner", BOTH)}, {"last": OUTPUT}),
    "stack_and_unbind": (lambda: two_branches(lambda a, b: torch.add(*torch.stack([a, b]).unbind(0))), image(),
                         {"a.0": (6, "stream", BOTH)}, {"last": OUTPUT}),
    "cat_along_height": (lambda: two_branches(lambda a, b: torch.cat([a, b], 2)), image(),
                         {"a.0": (6, "inner", BOTH)}, {"last": OUTPUT}),
    "maximum": (lambda: two_branches(torch.maximum), image(), {"a.0": (6, "stream", BOTH)}, {"last": OUTPUT}),
    "product": (lambda: two_branches(lambda a, b: a * b), image(),
                {"a.0": (6, "inner", "a.1.weight a.1.bias")}, {"last": OUTPUT}),
    "where": (lambda: two_branches(lambda a, b: torch.where(a > b, a, b)), image(),
              {"a.0": (6, "stream", BOTH)}, {"last": OUTPUT}),
    "slices_of_the_image": (lambda: one_branch(lambda h: h[:, :, 1:-1, ::2].roll(1, 2).flip(3)), image(), ONE,
                            {"last": OUTPUT}),
    "softmax_over_pixels": (
        lambda: Net(lambda m, x: m.last(m.a(x).flatten(2).softmax(-1)), a=unit(3, 6), last=nn.Conv1d(6, 2, 1)), image(),
        {"a.0": (6, "inner", "last.weight/1")}, {"last": OUTPUT},
    ),
    "sum_over_channels": (
        lambda: Net(lambda m, x: m.last(m.a(x).sum(1, keepdim=True)), a=unit(3, 6), last=conv(1, 2)), image(), ONE,
        {"last": OUTPUT},
    ),
    "product_with_a_parameter_and_sum": (
        lambda: Net(lambda m, x: (F.relu(m.a(x)) * m.v).sum(-1), a=nn.Linear(3, 6), v=nn.Parameter(torch.randn(6))),
        vectors(2, 3), {"a": (6, "inner", "v")}, {},
    ),
    "similarity_of_two_embeddings": (
        lambda: Net(lambda m, x: torch.bmm(m.a(x), m.b(x).transpose(1, 2)), a=nn.Linear(3, 6), b=nn.Linear(3, 6)),
        vectors(2, 4, 3), {"a": (6, "inner", "a.weight a.bias")}, {},
    ),
    "parameters_by_hand": (
        lambda: Net(lambda m, x: F.linear(F.relu(x @ m.w), m.v), w=nn.Parameter(torch.randn(3, 6)),
                    v=nn.Parameter(torch.randn(2, 6))), vectors(2, 3), {"w": (6, "inner", "w/1")}, {"v": OUTPUT},
    ),
    "einsum": (
        lambda: Net(lambda m, x: torch.einsum("bi,oi->bo", F.relu(torch.einsum("bi,io->bo", x, m.w)), m.v),
                    w=nn.Parameter(torch.randn(3, 6)), v=nn.Parameter(torch.randn(2, 6))), vectors(2, 3),
        {"w": (6, "inner", "w/1")}, {"v": OUTPUT},
    ),
    "constant_buffer": (
        lambda: Net(lambda m, x: m.last(m.a(x) + m.c), a=unit(3, 6), c=torch.randn(6, 1, 1), last=conv(6, 2)), image(),
        {"a.0": (6, "inner", "last.weight/1")}, {"last": OUTPUT},
    ),
    "in_place": (
        lambda: Net(relu_in_place, a=conv(3, 6), b=conv(3, 6), last=conv(6, 2)), image(),
        {"a": (6, "stream", "a.weight a.bias b.weight b.bias")}, {"last": OUTPUT},
    ),
    "in_place_through_another_name": (
        lambda: Net(alias_in_place, a=conv(3, 6), last=conv(6, 2)), image(),
        {"a": (6, "inner", "last.weight/1")}, {"last": OUTPUT},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_groups_and_frozen_parts(name: str) -> None:
    build, inputs, groups, frozen = CASES[name]
    expect(build(), inputs, groups, frozen)


def test_flattened_pixels_belong_to_their_channel() -> None:
    structure = traced(S(unit(3, 8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 2)), image())
    assert members_of(structure, "0.0")["3.weight/1"] == 16
    (reader,) = [m for m in structure.group("0.0").members if m.tensor == "3.weight"]
    assert reader.positions[1] == tuple(range(16, 32))


def test_pixel_shuffle_units_are_four_channels() -> None:
    structure = traced(S(unit(3, 8), conv(8, 24), nn.PixelShuffle(2), nn.ReLU(), conv(6, 2)), image())
    assert members_of(structure, "1") == {"1.weight": 4, "1.bias": 4, "4.weight/1": 1}
    assert structure.group("1").members[0].positions[1] == (4, 5, 6, 7)


def write_slice(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).clone()
    h[:, :3] = 0.0
    return m.last(h)


def write_pixels(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).clone()
    h[:, :, 1:] = h[:, :, :-1] * 2.0
    return m.last(h)


def write_view(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).clone()
    h.view(h.shape[0], -1).sigmoid_()
    return m.last(h)


# What cannot be removed, with a part of the reason. `b` is a second branch that can always be removed.
FROZEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "slices of fixed width": (lambda m, x: m.last(torch.cat([(h := m.a(x))[:, :3], 2 * h[:, 3:]], 1)), ""),
    "a part of fixed width": (lambda m, x: m.last(F.pad(m.a(x)[:, :4], (0, 0, 0, 0, 0, 2))), ""),
    "split into fixed sizes": (lambda m, x: m.last(torch.cat(m.a(x).split([2, 4], 1)[::-1], 1)), "split_sizes"),
    "a view with a number in it": (lambda m, x: m.last(m.a(x).view(-1, 6, 8, 8)), "forward pass fails"),
    "a constant of fixed size": (lambda m, x: m.last(m.a(x) + torch.ones(1, 6, 1, 1)), "forward pass fails"),
    "softmax over channels": (lambda m, x: m.last(m.a(x).softmax(1)), "softmax over channels"),
    "mean over channels": (lambda m, x: m.last(m.a(x) * m.a(x).mean(1, keepdim=True)), "mean over channels"),
    "maximum over channels": (lambda m, x: m.last(m.a(x) + m.a(x).amax(1, keepdim=True)), "amax over channels"),
    "a loss over channels": (
        lambda m, x: m.last(h := m.a(x)) + F.smooth_l1_loss(h.detach(), 0.5 * h), "mean over channels",
    ),
    "sorted channels": (lambda m, x: m.last(m.a(x).sort(1)[0]), "sort over channels"),
    "permuted channels": (lambda m, x: m.last(m.a(x)[:, [5, 4, 3, 2, 1, 0]]), "picks channels"),
    "outer product": (lambda m, x: m.last((h := m.a(x))[:, :, None, 0] * h[:, None, :, 0]), "outer product"),
    "writing into a slice": (write_slice, ""),
    "writing into pixels": (write_pixels, ""),
    "writing through a view": (write_view, ""),
    "matrix times vector": (lambda m, x: m.last((m.a(x).mT @ x.new_ones(8))[..., None].expand(-1, -1, 8, 8)), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_with_a_reason(name: str) -> None:
    forward, reason = FROZEN[name]
    net = Net(
        lambda m, x: (forward(m, x), m.rest(m.b(x))), a=conv(3, 6), last=conv(6, 2), b=unit(3, 5), rest=conv(5, 2)
    )
    structure = traced(net, image())
    assert all(g.name != "a" or g.size < 6 for g in structure.groups)
    assert "b.0" in [g.name for g in structure.groups], "the other branch must stay removable"
    reasons = [f.reason for f in structure.frozen if f.name == "a"]
    assert reasons
    assert any(reason in given for given in reasons), reasons


def test_weights_that_are_computed_are_frozen_and_named() -> None:
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)

    net = S(nn.Linear(3, 6), Standardised(6, 5), nn.ReLU(), nn.Linear(5, 2))
    structure = traced(net, vectors(2, 3))
    assert [g.name for g in structure.groups] == ["1"]
    assert any(f.name.startswith("0") and f.size == 6 and "mean over the weights" in f.reason for f in structure.frozen)


def test_nothing_left_is_an_error_with_the_reasons() -> None:
    with pytest.raises(TraceError, match="softmax over channels"):
        apical.trace(one_branch(lambda h: h.softmax(1)), image())
