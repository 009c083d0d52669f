"""Groups, gate sites and frozen parts of small convolutional networks, each written down by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structure.expectations import OUTPUT, Groups, expect, members_of, reasons_of, site, traced
from structure.nets import (
    Net,
    PreActivation,
    Residual,
    SqueezeExcite,
    ZeroPadShortcut,
    conv,
    head,
    image,
    unit,
    vectors,
)

FIXED = "positions of fixed size"
S = nn.Sequential
STEM = (8, "inner", "0.1.weight 0.1.bias")  # unit(3, 8) at the front of a Sequential

# name -> (model, inputs, groups, frozen)
Case = tuple[Callable[[], nn.Module], tuple[Any, ...], Groups, dict[str, str]]

CASES: dict[str, Case] = {
    "conv_bn": (lambda: S(unit(3, 8), conv(8, 4)), image(), {"0.0": STEM}, {"1": OUTPUT}),
    "no_norm": (
        lambda: S(conv(3, 8), nn.ReLU(), conv(8, 4)), image(), {"0": (8, "inner", "0.weight 0.bias")}, {"2": OUTPUT},
    ),
    "no_norm_no_bias": (
        lambda: S(conv(3, 8, bias=False), nn.GELU(), conv(8, 4)), image(),
        {"0": (8, "inner", "0.weight")}, {"2": OUTPUT},
    ),
    "sigmoid_moves_the_gate_to_the_reader": (
        lambda: S(conv(3, 8), nn.Sigmoid(), conv(8, 4)), image(), {"0": (8, "inner", "2.weight/1")}, {"2": OUTPUT},
    ),
    "a_constant_moves_the_gate_to_the_reader": (
        lambda: Net(lambda m, x: m.last(1.0 - m.a(x)), a=unit(3, 6), last=conv(6, 2)), image(),
        {"a.0": (6, "inner", "last.weight/1")}, {"last": OUTPUT},
    ),
    "norm_without_affine": (
        lambda: S(conv(3, 6), nn.BatchNorm2d(6, affine=False), nn.ReLU(), conv(6, 2)), image(),
        {"0": (6, "inner", "3.weight/1")}, {"3": OUTPUT},
    ),
    "norm_without_statistics": (
        lambda: S(conv(3, 6), nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU(), conv(6, 2)), image(),
        {"0": (6, "inner", "1.weight 1.bias")}, {"3": OUTPUT},
    ),
    "instance_norm": (
        lambda: S(conv(3, 6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.ReLU(), conv(6, 2)),
        image(), {"0": (6, "inner", "1.weight 1.bias")}, {"3": OUTPUT},
    ),
    "group_norm": (
        lambda: S(conv(3, 12), nn.GroupNorm(4, 12), nn.ReLU(), conv(12, 2)), image(),
        {"0": (4, "inner", "1.weight 1.bias")}, {"3": OUTPUT},
    ),
    "group_norm_per_channel": (
        lambda: S(conv(3, 6), nn.GroupNorm(6, 6), nn.ReLU(), conv(6, 2)), image(),
        {"0": (6, "inner", "1.weight 1.bias")}, {"3": OUTPUT},
    ),
    "group_norm_over_everything": (
        lambda: S(conv(3, 6), nn.GroupNorm(1, 6), conv(6, 5), nn.ReLU(), conv(5, 2)), image(),
        {"2": (5, "inner", "2.weight 2.bias")}, {"0": "normalised over all channels", "4": OUTPUT},
    ),
    "layer_norm_over_pixels": (
        lambda: S(conv(3, 6), nn.LayerNorm([8, 8]), nn.ReLU(), conv(6, 2)), image(),
        {"0": (6, "inner", "3.weight/1")}, {"3": OUTPUT},
    ),
    "prelu": (
        lambda: S(conv(3, 6), nn.PReLU(6), conv(6, 5), nn.PReLU(), conv(5, 2)), image(),
        {"0": (6, "inner", "0.weight 0.bias"), "2": (5, "inner", "2.weight 2.bias")}, {"4": OUTPUT},
    ),
    "residual": (
        lambda: S(unit(3, 8), Residual(8, 8, 6), head(8)), image(),
        {"0.0": (8, "stream", "0.1.weight 0.1.bias 1.bn2.weight 1.bn2.bias"),
         "1.conv1": (6, "inner", "1.bn1.weight 1.bn1.bias")}, {"2.2": OUTPUT},
    ),
    "residual_projection": (
        lambda: S(unit(3, 8), Residual(8, 12, 6, stride=2), head(12)), image(),
        {"0.0": STEM, "1.conv1": (6, "inner", "1.bn1.weight 1.bn1.bias"),
         "1.conv2": (12, "stream", "1.bn2.weight 1.bn2.bias 1.shortcut.1.weight 1.shortcut.1.bias")}, {"2.2": OUTPUT},
    ),
    "pre_activation": (
        lambda: S(conv(3, 8), PreActivation(8, 6), nn.BatchNorm2d(8), nn.ReLU(), head(8)), image(),
        {"0": (8, "stream", "1.bn1.weight 1.bn1.bias 2.weight 2.bias"),
         "1.conv1": (6, "inner", "1.bn2.weight 1.bn2.bias")}, {"4.2": OUTPUT},
    ),
    "zero_pad_shortcut": (
        lambda: S(unit(3, 4), ZeroPadShortcut(4, 8, 6), head(8)), image(),
        {"0.0": (4, "stream", "0.1.weight 0.1.bias 1.bn2.weight 1.bn2.bias"),
         "1.conv1": (6, "inner", "1.bn1.weight 1.bn1.bias")},
        {"1.conv2": f"4: is combined with {FIXED}", "2.2": OUTPUT},
    ),
    "layer_scale": (
        lambda: Net(lambda m, x: m.last(F.relu(m.a(x)) * m.scale), a=conv(3, 6), last=conv(6, 2),
                    scale=nn.Parameter(torch.ones(6, 1, 1))), image(),
        {"a": (6, "inner", "scale")}, {"last": OUTPUT},
    ),
    "a_learned_offset_for_all_channels": (
        lambda: Net(lambda m, x: m.last(F.relu(m.a(x)) + m.offset), a=conv(3, 6), last=conv(6, 2),
                    offset=nn.Parameter(torch.ones(1))), image(),
        {"a": (6, "inner", "last.weight/1")}, {"last": OUTPUT},
    ),
    "a_learned_factor_for_all_channels": (
        lambda: Net(lambda m, x: m.last(F.relu(m.a(x)) * m.scale), a=conv(3, 6), last=conv(6, 2),
                    scale=nn.Parameter(torch.ones(()))), image(),
        {"a": (6, "inner", "a.weight a.bias")}, {"last": OUTPUT},
    ),
    "cat": (
        lambda: Net(lambda m, x: m.last(torch.cat([m.a(x), m.b(x)], 1)), a=unit(3, 4), b=unit(3, 6), last=conv(10, 2)),
        image(), {"a.0": (4, "inner", "a.1.weight a.1.bias"), "b.0": (6, "inner", "b.1.weight b.1.bias")},
        {"last": OUTPUT},
    ),
    "dense": (
        lambda: Net(lambda m, x: m.last(torch.cat([h := m.a(x), g := m.b(h), m.c(torch.cat([h, g], 1))], 1)),
                    a=unit(3, 4), b=unit(4, 6), c=unit(10, 5), last=conv(15, 2)), image(),
        {n + ".0": (k, "inner", f"{n}.1.weight {n}.1.bias") for n, k in (("a", 4), ("b", 6), ("c", 5))},
        {"last": OUTPUT},
    ),
    "grouped": (
        lambda: S(unit(3, 8), unit(8, 12, groups=4), conv(12, 2)), image(),
        {"0.0": (4, "inner", "1.1.weight 1.1.bias")}, {"2": OUTPUT},
    ),
    "depthwise": (
        lambda: S(unit(3, 8), unit(8, 8, groups=8), conv(8, 2)), image(),
        {"0.0": (8, "inner", "1.1.weight 1.1.bias")}, {"2": OUTPUT},
    ),
    "depthwise_multiplier": (
        lambda: S(unit(3, 8), unit(8, 16, groups=8), conv(16, 2)), image(),
        {"0.0": (8, "inner", "1.1.weight 1.1.bias")}, {"2": OUTPUT},
    ),
    "conv_1d": (
        lambda: S(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 2, 3)), vectors(2, 3, 9),
        {"0": (8, "inner", "1.weight 1.bias")}, {"3": OUTPUT},
    ),
    "conv_1d_grouped": (
        lambda: S(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv1d(8, 2, 3)),
        vectors(2, 3, 9), {"0": (4, "inner", "2.weight 2.bias")}, {"4": OUTPUT},
    ),
    "conv_3d": (
        lambda: S(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 2, 1)), vectors(2, 3, 4, 4, 4),
        {"0": (8, "inner", "1.weight 1.bias")}, {"3": OUTPUT},
    ),
    "conv_3d_depthwise": (
        lambda: S(nn.Conv3d(3, 8, 1), nn.ReLU(), nn.Conv3d(8, 8, 1, groups=8), nn.ReLU(), nn.Conv3d(8, 2, 1)),
        vectors(2, 3, 2, 2, 2), {"0": (8, "inner", "2.weight 2.bias")}, {"4": OUTPUT},
    ),
    "transposed_1d": (
        lambda: S(nn.ConvTranspose1d(3, 8, 2, 2), nn.ReLU(), nn.ConvTranspose1d(8, 2, 2, 2)), vectors(2, 3, 5),
        {"0": (8, "inner", "0.weight/1 0.bias")}, {"2": OUTPUT},
    ),
    "transposed_2d": (
        lambda: S(nn.ConvTranspose2d(3, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2, 2),
                  nn.ReLU(), conv(6, 2)), image(size=4),
        {"0": (8, "inner", "1.weight 1.bias"), "3": (6, "inner", "3.weight/1 3.bias")}, {"5": OUTPUT},
    ),
    "transposed_2d_grouped": (
        lambda: S(unit(3, 8), nn.ConvTranspose2d(8, 12, 2, 2, groups=4), nn.ReLU(), conv(12, 2)), image(size=4),
        {"0.0": (4, "inner", "1.weight 1.bias")}, {"3": OUTPUT},
    ),
    "transposed_3d": (
        lambda: S(nn.ConvTranspose3d(3, 8, 2, 2), nn.ReLU(), nn.ConvTranspose3d(8, 2, 2, 2)), vectors(2, 3, 2, 2, 2),
        {"0": (8, "inner", "0.weight/1 0.bias")}, {"2": OUTPUT},
    ),
    "unbatched": (
        lambda: S(conv(3, 8), nn.ReLU(), conv(8, 4)), (image()[0][0],), {"0": (8, "inner", "0.weight 0.bias")},
        {"2": OUTPUT},
    ),
    "squeeze_excite": (
        lambda: S(unit(3, 8), SqueezeExcite(8, 4), head(8)), image(),
        {"0.0": STEM, "1.down": (4, "inner", "1.down.weight 1.down.bias")}, {"2.2": OUTPUT},
    ),
    "one_channel_gate": (
        lambda: Net(lambda m, x: m.last((h := m.a(x)) * torch.sigmoid(m.gate(h))), a=unit(3, 8), gate=conv(8, 1),
                    last=conv(8, 2)), image(),
        {"a.0": (8, "inner", "a.1.weight a.1.bias")}, {"gate": "1: ", "last": OUTPUT},
    ),
    "one_channel_gate_first": (
        lambda: Net(lambda m, x: m.last(F.relu(m.gate(h := m.a(x))).expand_as(h) * h), a=unit(3, 8), gate=conv(8, 1),
                    last=conv(8, 2)), image(),
        {"a.0": (8, "inner", "a.1.weight a.1.bias")}, {"gate": "1: ", "last": OUTPUT},
    ),
    "squeeze_excite_with_one_channel": (
        lambda: S(unit(3, 8), SqueezeExcite(8, 1), head(8)), image(), {"0.0": STEM},
        {"1.down": "1: all its channels must go together (or there is only one)", "2.2": OUTPUT},
    ),
    "resampling": (
        lambda: S(unit(3, 6), nn.Upsample(scale_factor=2, mode="bilinear"), conv(6, 5), nn.MaxPool2d(2),
                  nn.AdaptiveAvgPool2d(3), conv(5, 2)), image(),
        {"0.0": (6, "inner", "0.1.weight 0.1.bias"), "2": (5, "inner", "2.weight 2.bias")}, {"5": OUTPUT},
    ),
    "padding_modes": (
        lambda: S(unit(3, 6), conv(6, 5, padding_mode="circular"), nn.ReLU(), conv(5, 4, padding_mode="reflect"),
                  nn.ReLU(), conv(4, 2, padding_mode="replicate")), image(),
        {"0.0": (6, "inner", "0.1.weight 0.1.bias"), "1": (5, "inner", "1.weight 1.bias"),
         "3": (4, "inner", "3.weight 3.bias")}, {"5": OUTPUT},
    ),
    "dropout": (
        lambda: S(unit(3, 6), nn.Dropout2d(0.5), conv(6, 5), nn.AlphaDropout(), conv(5, 2)), image(),
        {"0.0": (6, "inner", "0.1.weight 0.1.bias"), "2": (5, "inner", "2.weight 2.bias")}, {"4": OUTPUT},
    ),
    "same_module_twice": (
        lambda: Net(lambda m, x: m.last(m.b(m.b(m.a(x)))), a=unit(3, 6), b=unit(6, 6), last=conv(6, 2)), image(),
        {"a.0": (6, "inner", "a.1.weight a.1.bias b.1.weight b.1.bias")}, {"last": OUTPUT},
    ),
    "one_head_on_two_branches": (
        lambda: Net(lambda m, x: (m.h(m.a(x)), m.h(m.b(x))), a=unit(3, 6), b=unit(3, 6), h=conv(6, 2)), image(),
        {"a.0": (6, "inner", "a.1.weight a.1.bias b.1.weight b.1.bias")}, {"h": OUTPUT},
    ),
    "unused_layer": (
        lambda: Net(lambda m, x: m.last(m.a(x)), a=unit(3, 6), spare=nn.Linear(6, 6), last=conv(6, 2)), image(),
        {"a.0": (6, "inner", "a.1.weight a.1.bias")}, {"last": OUTPUT},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the example call does not read spare")
@pytest.mark.parametrize("name", CASES)
def test_groups_and_frozen_parts(name: str) -> None:
    build, inputs, groups, frozen = CASES[name]
    expect(build(), inputs, groups, frozen)


def test_members_of_a_residual_stream() -> None:
    structure = traced(S(unit(3, 8), Residual(8, 8, 6), head(8)), image())
    norms = ["0.1", "1.bn2"]
    affine = [f"{n}.{t}" for n in norms for t in ("weight", "bias", "running_mean", "running_var")]
    assert members_of(structure, "0.0") == dict.fromkeys(
        ["0.0.weight", "1.conv1.weight/1", "1.conv2.weight", "2.2.weight/1", *affine], 1
    )


def test_members_of_a_grouped_convolution() -> None:
    structure = traced(S(unit(3, 8), unit(8, 12, groups=4), conv(12, 2)), image())
    before = {f"0.1.{t}": 2 for t in ("weight", "bias", "running_mean", "running_var")}
    after = {f"1.1.{t}": 3 for t in ("weight", "bias", "running_mean", "running_var")}
    assert members_of(structure, "0.0") == {"0.0.weight": 2, **before, "1.0.weight": 3, **after, "2.weight/1": 3}
    assert structure.group("0.0").members[0].positions == ((0, 1), (2, 3), (4, 5), (6, 7))


def test_attributes_follow() -> None:
    structure = traced(S(unit(3, 8), unit(8, 12, groups=4), conv(12, 2)), image())
    sizes = {f"{a.module}.{a.attribute}": a.axis.length([3]) for a in structure.attributes}
    assert sizes == {
        "0.0.out_channels": 6, "0.1.num_features": 6, "1.0.groups": 3, "1.0.in_channels": 6, "1.0.out_channels": 9,
        "1.1.num_features": 9, "2.in_channels": 9,
    }  # fmt: skip


def test_a_fixed_filter_holds_no_gate() -> None:
    """A blur is a depthwise convolution with a buffer, which is not trained."""

    def blurred(m: Any, x: torch.Tensor) -> torch.Tensor:
        x = m.bn(m.a(x)).relu()
        return m.b(F.conv2d(x, m.filter, groups=x.shape[1]))

    net = Net(blurred, a=conv(3, 6), bn=nn.BatchNorm2d(6), b=conv(6, 2), filter=torch.rand(6, 1, 3, 3))
    assert site(traced(net, image()), "a") == "bn.weight bn.bias"


@pytest.mark.parametrize(
    "activation",
    [nn.Mish(inplace=True), nn.ELU(inplace=True), nn.Hardsigmoid(inplace=True), nn.Hardtanh(inplace=True),
     nn.LeakyReLU(), nn.LeakyReLU(inplace=True)],
    ids=str,
)  # fmt: skip
def test_in_place_activations_are_elementwise_although_torch_does_not_say_so(activation: nn.Module) -> None:
    structure = traced(nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 5, 1)), (torch.randn(2, 3, 6, 6),))
    assert [(group.name, group.size) for group in structure.groups] == [("0", 8)]


def test_a_convolution_along_the_channels_is_named() -> None:
    """As in efficient channel attention (ECA), whose every weight is for a channel and its neighbours."""

    def forward(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        scale = m.along(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
        return m.fc(torch.relu(m.last(x * scale[..., None, None])).mean((2, 3)))

    net = Net(forward, stem=nn.Conv2d(3, 6, 3), along=nn.Conv1d(1, 1, 3, padding=1), last=nn.Conv2d(6, 5, 3),
              fc=nn.Linear(5, 2))  # fmt: skip
    assert "since conv1d in along takes them all at once" in reasons_of(traced(net, image(2, 3, 9)))["stem"]
