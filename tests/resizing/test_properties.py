"""Random networks, random choices: removed equals gated to zero, costs are counted, everything comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import apical
from apical.errors import TraceError
from structure.contract import check_contract, generic_
from structure.nets import (
    Attention,
    Net,
    PreActivation,
    Residual,
    SqueezeExcite,
    ZeroPadShortcut,
    conv,
    head,
    unit,
)

SIZE = 8
EXAMPLES = settings().max_examples  # of the profile that is loaded
Stage = Callable[[int], tuple[nn.Module, int]]  # width in -> (module, width out)


# ---- image networks -------------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Two units side by side, joined by concatenation, addition, product or maximum."""

    def __init__(self, width: int, left: int, right: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.left, self.right = unit(width, left), unit(width, right if how == "cat" else left, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        if self.how == "cat":
            return torch.cat([a, b, a], 1)
        return {"add": torch.add, "mul": torch.mul, "max": torch.maximum}[self.how](a, b)


class Twice(nn.Module):
    """One unit called twice, and a second module that holds its convolution's weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body, self.tail = unit(width, width), conv(width, width, bias=False)
        self.tail.weight = self.body[0].weight

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.tail(self.body(self.body(x))))


class HalfGate(nn.Module):
    """Half of the channels gate the other half."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.both = conv(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, 1)
        return value * torch.sigmoid(gate)


class OneGate(nn.Module):
    """A single channel gates all others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = conv(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


def zero_pad(width: int, extra: int, inner: int) -> nn.Module:
    """A zero-pad shortcut at the same resolution, so that stages can follow in any order."""
    block = ZeroPadShortcut(width, width + extra, inner)
    block.conv1.stride = (1, 1)
    return Net(
        lambda m, x: F.relu(
            m.block.bn2(m.block.conv2(F.relu(m.block.bn1(m.block.conv1(x)))))
            + F.pad(x, (0, 0, 0, 0, m.block.extra // 2, m.block.extra - m.block.extra // 2))
        ),
        block=block,
    )


def widths(low: int = 2, high: int = 7) -> st.SearchStrategy[int]:
    return st.integers(low, high)


def grouped(width: int, per_group: int, multiple: int) -> tuple[nn.Module, int]:
    groups = next(g for g in (4, 3, 2, 1) if width % g == 0)
    return unit(width, groups * multiple, 1 if per_group > 2 else 3, groups=groups), groups * multiple


def norm(width: int, kind: str) -> nn.Module:
    return {
        "group": nn.GroupNorm(width, width), "instance": nn.InstanceNorm2d(width, affine=True),
        "plain": nn.BatchNorm2d(width, affine=False), "prelu": nn.PReLU(width), "sigmoid": nn.Sigmoid(),
    }[kind]  # fmt: skip


STAGES: list[st.SearchStrategy[Stage]] = [
    st.builds(lambda o: lambda w: (unit(w, o), o), widths()),
    st.builds(lambda o: lambda w: (nn.Sequential(conv(w, o), nn.SiLU()), o), widths()),
    st.builds(lambda n: lambda w: (Residual(w, w, n), w), widths()),
    st.builds(lambda n, o: lambda w: (Residual(w, o, n), o), widths(), widths()),
    st.builds(lambda n: lambda w: (nn.Sequential(PreActivation(w, n), nn.BatchNorm2d(w)), w), widths()),
    st.builds(lambda e, n: lambda w: (zero_pad(w, e, n), w + e), st.integers(0, 3), widths()),
    st.builds(lambda p, m: lambda w: grouped(w, p, m), widths(1, 3), widths(1, 3)),
    st.builds(lambda m: lambda w: (unit(w, w * m, groups=w), w * m), st.integers(1, 2)),
    st.builds(lambda n: lambda w: (SqueezeExcite(w, n), w), widths()),
    st.builds(
        lambda a, b, how: lambda w: (Branches(w, a, b, how), 2 * a + b if how == "cat" else a),
        widths(), widths(), st.sampled_from(["cat", "add", "mul", "max"]),
    ),
    st.builds(
        lambda o: lambda w: (nn.Sequential(conv(w, 4 * o), nn.PixelShuffle(2), nn.MaxPool2d(2)), o), widths(2, 4)
    ),
    st.builds(lambda: lambda w: (nn.Sequential(nn.Upsample(scale_factor=2), nn.PixelUnshuffle(2), unit(4 * w, w)), w)),
    st.builds(lambda: lambda w: (nn.Sequential(nn.ConvTranspose2d(w, w, 2, 2), nn.ReLU(), nn.AvgPool2d(2)), w)),
    st.builds(lambda: lambda w: (Twice(w), w)),
    st.builds(lambda o: lambda w: (HalfGate(w, o), o), widths()),
    st.builds(lambda: lambda w: (OneGate(w), w)),
    st.builds(
        lambda kind: lambda w: (norm(w, kind), w), st.sampled_from(["group", "instance", "plain", "prelu", "sigmoid"])
    ),
]  # fmt: skip


@st.composite
def image_nets(draw: st.DrawFn) -> nn.Module:
    stages = draw(st.lists(st.one_of(STAGES), min_size=1, max_size=4))
    ending = draw(st.sampled_from(["pool", "flatten", "dense"]))
    torch.manual_seed(0)
    width = draw(widths())
    modules: list[nn.Module] = [unit(3, width)]
    for stage in stages:
        module, width = stage(width)
        modules.append(module)
    if ending == "pool":
        modules.append(head(width))
    elif ending == "flatten":
        modules += [nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(4 * width, 5), nn.Tanh(), nn.Linear(5, 2)]
    else:
        modules.append(conv(width, 2))
    return nn.Sequential(*modules)


def same_choice_on(model: nn.Module, inputs: tuple[Any, ...], seed: int) -> None:
    """The contract; a network in which nothing can be removed must say why."""
    try:
        structure = apical.trace(model, inputs)
    except TraceError as problem:
        if "can be grown or removed" not in str(problem) or "reaches the model's output" not in str(problem):
            raise
        return
    note(str(model))
    note(str(structure))
    check_contract(generic_(copy.deepcopy(model)), structure, inputs, (seed, seed + 1))


def images() -> tuple[Tensor]:
    return (torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)


@settings(max_examples=2 * EXAMPLES)
@given(model=image_nets(), seed=st.integers(0, 1000))
def test_image_networks(model: nn.Module, seed: int) -> None:
    same_choice_on(model.double(), images(), seed)


# ---- sequence networks ----------------------------------------------------------------------------------------------


class Feed(nn.Module):
    """A residual feed-forward layer, gated or not, with or without a norm in front."""

    def __init__(self, width: int, inner: int, normed: bool, gated: bool) -> None:
        super().__init__()
        self.norm: nn.Module = nn.LayerNorm(width) if normed else nn.Identity()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.gate = nn.Linear(width, inner) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        h = F.gelu(self.up(y)) if self.gate is None else F.silu(self.gate(y)) * self.up(y)
        return x + self.down(h)


class Recurrent(nn.Module):
    """The outputs of a recurrent module."""

    def __init__(self, kind: str, width: int, hidden: int, layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(width, hidden, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


SEQUENCE_STAGES: list[st.SearchStrategy[Stage]] = [
    st.builds(lambda o: lambda w: (nn.Sequential(nn.Linear(w, o), nn.ReLU()), o), widths()),
    st.builds(lambda n, a, g: lambda w: (Feed(w, n, a, g), w), widths(), st.booleans(), st.booleans()),
    st.builds(lambda h, d: lambda w: (Attention(w, h, d), w), st.integers(1, 4), st.integers(1, 3)),
    st.builds(
        lambda k, h, n, b: lambda w: (Recurrent(k, w, h, n, b), h * (2 if b else 1)),
        st.sampled_from(["LSTM", "GRU", "RNN"]), widths(), st.integers(1, 2), st.booleans(),
    ),
    st.builds(lambda: lambda w: (nn.LayerNorm(w), w)),
]  # fmt: skip


@st.composite
def sequence_nets(draw: st.DrawFn) -> nn.Module:
    stages = draw(st.lists(st.one_of(SEQUENCE_STAGES), min_size=1, max_size=4))
    width = draw(widths())
    torch.manual_seed(0)
    modules: list[nn.Module] = [nn.Linear(3, width)]
    for stage in stages:
        module, width = stage(width)
        modules.append(module)
    return nn.Sequential(*modules, nn.Linear(width, 2))


@settings(max_examples=EXAMPLES)
@given(model=sequence_nets(), seed=st.integers(0, 1000))
def test_sequence_networks(model: nn.Module, seed: int) -> None:
    x = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same_choice_on(model.double(), (x,), seed)


# ---- walks ----------------------------------------------------------------------------------------------------------
