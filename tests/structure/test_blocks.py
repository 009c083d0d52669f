"""Which modules are skippable blocks, and where their gate sits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from structure.expectations import traced
from structure.nets import Net, PreActivation, Residual, ZeroPadShortcut, conv, head, image, tiny_resnet, unit, vectors


def blocks_of(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, tuple[str, ...]]:
    return {b.name: b.gate_site for b in traced(model, inputs).blocks}


def test_projection_blocks_stay() -> None:
    assert blocks_of(tiny_resnet(), image()) == {
        "1": ("1.bn2.bias", "1.bn2.weight"),
        "3": ("3.bn2.bias", "3.bn2.weight"),
    }


def test_pre_activation_gate_sits_on_the_last_convolution() -> None:
    net = nn.Sequential(conv(3, 8), PreActivation(8, 6), nn.BatchNorm2d(8), nn.ReLU(), head(8))
    assert blocks_of(net, image()) == {"1": ("1.conv2.bias", "1.conv2.weight")}


BRANCH = ("1.conv1", "1.bn1", "1.conv2", "1.bn2")


def test_of_a_block_that_cuts_negative_values_the_branch_leaves() -> None:
    """relu(x + f(x)) with f = 0 is x only where x is not negative already, else it is relu(x)."""
    net = nn.Sequential(conv(3, 8), Residual(8, 8, 6), Residual(8, 8, 5), head(8))
    structure = traced(net, image())
    assert [b.name for b in structure.blocks] == ["1.bn2", "2"]
    assert structure.left_out(["1.bn2", "2"]) == (*BRANCH, "2")


@pytest.mark.parametrize("inputs", [image(), (torch.zeros(2, 3, 8, 8),)])
def test_what_is_positive_only_on_the_example_is_no_reason(inputs: tuple[Tensor]) -> None:
    """The same block after a convolution that happens to be positive on the example inputs."""
    net = nn.Sequential(conv(3, 8), Residual(8, 8, 6), head(8))
    nn.init.constant_(net[0].weight, 1e-3)
    nn.init.constant_(net[0].bias, 5.0)
    assert traced(net, inputs).left_out(["1.bn2"]) == BRANCH


@pytest.mark.parametrize("between", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Dropout(), nn.Identity(), nn.Sigmoid()])
def test_what_is_never_negative_stays_so(between: nn.Module) -> None:
    net = nn.Sequential(unit(3, 8), between, Residual(8, 8, 6), Residual(8, 8, 5), head(8))
    assert list(blocks_of(net, image())) == ["2", "3"]


def test_innermost_blocks_win() -> None:
    class Stage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Residual(8, 8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    net = nn.Sequential(unit(3, 8), Stage(), nn.Sequential(Residual(8, 8, 4), Residual(8, 8, 3)), head(8))
    assert list(blocks_of(net, image())) == ["1.inner", "2.0", "2.1"]


def test_a_block_that_is_called_twice_is_none() -> None:
    block = Residual(8, 8, 5)
    assert blocks_of(nn.Sequential(unit(3, 8), block, block, head(8)), image()) == {}


def test_zero_pad_and_plain_modules_are_none() -> None:
    net = nn.Sequential(unit(3, 4), ZeroPadShortcut(4, 8, 6), unit(8, 8), head(8))
    assert blocks_of(net, image()) == {}


class Branch(nn.Module):
    """x + scale * f(x)."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.up, self.down, self.scale = nn.Linear(8, 12), nn.Linear(12, 8), nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(x)))


@pytest.mark.parametrize(
    ("scale", "site"),
    [
        (torch.full((8,), 1e-6), ("1.scale",)),
        (torch.zeros(1), ("1.down.bias", "1.down.weight")),
    ],
)
def test_scaled_branches(scale: Tensor, site: tuple[str, ...]) -> None:
    net = nn.Sequential(nn.Linear(3, 8), Branch(scale), nn.Linear(8, 2))
    assert blocks_of(net, vectors(2, 5, 3)) == {"1": site}


def test_two_branches_of_a_transformer_layer_are_one_gate_site() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(8), nn.Linear(8, 8)
            self.up, self.down = nn.Linear(8, 9), nn.Linear(9, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.mix(self.norm(x))
            return x + self.down(F.relu(self.up(x)))

    net = nn.Sequential(nn.Linear(3, 8), Layer(), nn.Linear(8, 2))
    assert blocks_of(net, vectors(2, 5, 3)) == {"1": ("1.down.weight", "1.mix.bias", "1.mix.weight")}


class OneAndWeight(nn.Module):
    """Scales by ``1 + weight``, as the norms of some language models do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * (1.0 + self.weight.float())


def test_a_scale_that_is_one_where_its_weight_is_zero_is_no_gate() -> None:
    block = Net(
        lambda n, x: x + n.after(n.down(torch.relu(n.up(n.before(x))))),
        before=OneAndWeight(8), up=nn.Linear(8, 12), down=nn.Linear(12, 8, bias=False), after=OneAndWeight(8),
    )  # fmt: skip
    structure = traced(nn.Sequential(nn.Linear(4, 8), block, nn.Linear(8, 2)), (torch.randn(3, 4),))
    assert [(b.name, b.gate_site) for b in structure.blocks] == [("1", ("1.down.weight",))]


def test_a_shared_last_layer_is_no_gate() -> None:
    """Zeroing it for one block would zero it for the other."""
    one, two = PreActivation(8, 6), PreActivation(8, 6)
    two.conv2.weight = one.conv2.weight
    net = nn.Sequential(conv(3, 8), one, two, nn.ReLU(), head(8))
    assert blocks_of(net, image()) == {}


def test_a_block_whose_result_is_used_inside_again_is_none() -> None:
    net = Net(
        lambda m, x: m.last(torch.cat([h := m.a(x), m.block(h)], 1)),
        a=unit(3, 6), block=Residual(6, 6, 4), last=conv(12, 2),
    )  # fmt: skip
    structure = traced(net, image())
    assert [b.name for b in structure.blocks] == ["block"], "the identity may be read twice"


def test_drop_path_between_branch_and_sum() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.drop = conv(8, 8), nn.BatchNorm2d(8), nn.Dropout(0.3)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.bn(self.conv(x))) + x

    assert blocks_of(nn.Sequential(unit(3, 8), Block(), head(8)), image()) == {"1": ("1.bn.bias", "1.bn.weight")}
