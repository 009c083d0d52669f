"""Sizes in local variables and constants of the code follow a resize: read from attributes, saved and loaded."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.resizing._install import Installation
from apical.structure._local_sizes import method_of
from structure.expectations import groups_of, reasons_of, traced
from structure.nets import Net, conv, vectors

Attending = F.scaled_dot_product_attention
SEQUENCE = vectors(2, 5, 12)


class InputWidth(nn.Module):
    """The result is reshaped to the width of the input, the width of a head is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(Attending(q, k, v).transpose(1, 2).reshape(b, n, c))


class OtherCode(InputWidth):
    """The same tensors, another reshape."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 3)).permute(2, 0, 3, 1, 4)
        return self.proj(Attending(q, k, v).transpose(1, 2).flatten(2))


class Helpers(nn.Module):
    """Reshapes in methods of its own, below a call of super() and with a variable from around the class."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        super().parameters()
        return x.view(x.shape[0], x.shape[1], 4, 3).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        return self.out(Attending(q, k, v).transpose(1, 2).reshape(x.shape[0], x.shape[1], 12))


class Constants(nn.Module):
    """As in many tutorials: the number of features after the last convolution is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc1, self.fc2 = conv(3, 6), conv(6, 5), nn.Linear(80, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = x.view(-1, 80)
        return self.fc2(F.relu(self.fc1(x)))


class OneAttributeForTwo(nn.Module):
    """A non-local block: one attribute states the width of queries and keys, and that of values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = 6
        self.theta, self.phi, self.g, self.out = conv(3, 6, 1), conv(3, 6, 1), conv(3, 6, 1), conv(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi = self.theta(x).view(x.shape[0], self.inner, -1), self.phi(x).view(x.shape[0], self.inner, -1)
        values = self.g(x).view(x.shape[0], self.inner, -1)
        y = values @ torch.softmax(theta.mT @ phi, -1).mT
        return self.out(y.view(x.shape[0], self.inner, *x.shape[2:]))


class BatchTimesHeads(nn.Module):
    """A size that is a multiple of the heads, and of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        folded = b * 4
        q, k, v = (t.reshape(b, n, 4, 3).transpose(1, 2).reshape(folded, n, 3) for t in self.qkv(x).chunk(3, -1))
        return self.out((torch.softmax(q @ k.mT, -1) @ v).view(b, -1, n, 3).transpose(1, 2).flatten(2))


class WidthOverHeads(nn.Module):
    """Runs with fewer heads, but takes the width for a smaller one then."""

    def __init__(self) -> None:
        super().__init__()
        self.h = 4
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.h, x.shape[2] // self.h).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        return self.out(Attending(q, k, v).transpose(1, 2).flatten(2))


def window_attention(x: Tensor, weight: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """As torchvision's Swin has it: a function that knows weights and sizes, and no module."""
    b, n, c = x.shape
    qkv = F.linear(x, weight, bias).reshape(x.size(0), x.size(1), 3, num_heads, c // num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    attention = torch.softmax((q * (c // num_heads) ** -0.5) @ k.mT, -1)
    return (attention @ v).transpose(1, 2).reshape(b, n, c)


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, width: int) -> Tensor:
    q, k, v = (heads_of(t, heads) for t in (q, k, v))
    return Attending(q, k, v).transpose(1, 2).reshape(q.shape[0], q.shape[2], width)


class InFunction(nn.Module):
    """All sizes are in a function outside of the class."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = nn.Linear(12, 36), nn.Linear(12, 5), 4

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(window_attention(x, self.qkv.weight, self.qkv.bias, self.num_heads))


class InFunctions(nn.Module):
    """A function that calls another one for each of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(attended(self.query(x), self.key(x), self.value(x), 4, x.shape[-1]))


class OtherNames(InFunction):
    """Calls the function, something else of its own by the name of another function, and has no module at hand."""

    def forward(*args: Any) -> Tensor:  # type: ignore[override]
        me, x = args
        window_attention = me.rest
        return me.proj(window_attention(me.cut(x)))

    def rest(self, x: Tensor) -> Tensor:
        return x.relu()

    def cut(self, x: Tensor) -> Tensor:
        return window_attention(x, self.qkv.weight, self.qkv.bias, self.num_heads)


class LocalScale(nn.Module):
    """The width of a head is a local variable, and the scale of the scores is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 4, nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        width = c // self.num_heads
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, width).permute(2, 0, 3, 1, 4)
        return self.proj((torch.softmax(q * width**-0.5 @ k.mT, -1) @ v).transpose(1, 2).reshape(b, n, c))


class Gates(nn.Module):
    """Two gated units in one forward pass, whose halves are cut in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 16), nn.Linear(8, 14), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = F.silu(x[..., :8]) * x[..., -8:]
        a, b = torch.split(self.second(x), 7, dim=-1)
        return self.last(a * torch.sigmoid(b))


def behind(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.ReLU(), nn.LazyLinear(2))


def built(layer: nn.Module, inputs: tuple[Any, ...] = SEQUENCE) -> nn.Module:
    torch.manual_seed(0)
    model = behind(layer).eval()
    model(*inputs)
    return model


@pytest.mark.parametrize(
    "layer", [InputWidth, Helpers, WidthOverHeads, InFunction, InFunctions, OtherNames, LocalScale]
)
def test_heads_go_although_their_number_is_in_the_code(layer: type[nn.Module]) -> None:
    structure = traced(built(layer()), SEQUENCE)
    assert 4 in [g.size for g in structure.groups], reasons_of(structure)


def test_a_method_without_an_argument_of_its_own_keeps_its_sizes() -> None:
    assert method_of(OtherNames, "forward") is None  # nothing at hand could hold an attribute
    assert method_of(OtherNames, "cut") is not None


def test_bounds_of_slices_follow() -> None:
    structure = traced(built(Gates()), SEQUENCE)
    assert {g.name: g.size for g in structure.groups} == {"0.first": 8, "0.second": 7, "0.last": 5}


@pytest.mark.parametrize("layer", [InputWidth, InFunction])
def test_a_resized_module_is_copied_saved_and_exported_and_another_is_as_it_was(
    layer: type[nn.Module], tmp_path: Path
) -> None:
    """What was a function is a method of resized modules only, which are still of the user's class."""
    model, other = built(layer()), built(layer())
    before = other(*SEQUENCE)
    apical.resize_(model, apical.trace(model, SEQUENCE), {"0.qkv": [0, 3]})
    small = model(*SEQUENCE)
    loaded = apical.load(built(layer()), apical.save(model, tmp_path / "small"))
    again = apical.load(built(layer()), apical.save(loaded, tmp_path / "again"))
    exported = torch.export.export(model, SEQUENCE).module()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), exported, loaded, again):
        assert torch.equal(twin(*SEQUENCE), small)
    assert torch.equal(other(*SEQUENCE), before)
    assert type(other[0]) is layer
    assert isinstance(model[0], layer)
    assert str(model[0]).startswith(f"{layer.__name__}(")
    assert model(torch.randn(3, 7, 12)).shape == (3, 7, 2), "any batch and length"


def test_constants_in_a_view_follow() -> None:
    structure = traced(Constants(), (torch.randn(2, 3, 8, 8),))
    assert [(g.name, g.size) for g in structure.groups] == [("conv1", 6), ("conv2", 5), ("fc1", 7)]


def test_two_groups_that_one_attribute_states_change_apart() -> None:
    structure = traced(OneAttributeForTwo(), (torch.randn(2, 3, 4, 4),))
    assert sorted((g.name, g.size) for g in structure.groups) == [("g", 6), ("theta", 6)]


def test_a_size_that_depends_on_the_batch_stays_in_the_code() -> None:
    model = built(BatchTimesHeads())
    structure = apical.trace(model, SEQUENCE)
    assert "qkv" in "".join(reasons_of(structure)), "only a batch of this size would be right"


def narrow() -> nn.Module:
    model = built(InputWidth())
    apical.resize_(model, apical.trace(model, SEQUENCE), {"0.qkv": [0, 3]})
    return model


def test_a_folder_does_not_fit_a_class_of_other_code(tmp_path: Path) -> None:
    apical.save(narrow(), tmp_path / "small")
    with pytest.raises(apical.ApicalError, match="size_in_forward"):
        apical.load(built(OtherCode()), tmp_path / "small")


def test_a_structure_with_such_sizes_is_read_back(tmp_path: Path) -> None:
    model = built(InputWidth())
    structure = apical.trace(model, SEQUENCE)
    apical.save_structure(structure, tmp_path / "structure.json")
    assert apical.load_structure(tmp_path / "structure.json", model) == structure
    with pytest.raises(apical.ApicalError, match="size_in_forward"):
        apical.load_structure(tmp_path / "structure.json", built(OtherCode()))


def test_a_failed_resize_leaves_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(InputWidth())
    structure = apical.trace(model, SEQUENCE)

    def fail(*_: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(Installation, "optimizer", fail)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(apical.ApicalError, match="the disk is full"):
        apical.resize_(model, structure, {"0.qkv": [0, 3]}, optimizer=sgd)
    assert type(model[0]) is InputWidth
    assert vars(model[0]).keys() == vars(InputWidth()).keys()


def test_a_narrow_model_is_traced_again() -> None:
    structure = traced(narrow(), SEQUENCE)
    assert ("0.qkv", 2) in [(g.name, g.size) for g in structure.groups]


class Outlook(nn.Module):
    """Outlook attention as in VOLO: heads of windows, whose width is that of the input in the code."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.num_heads = heads
        self.v, self.attn = nn.Linear(width, width), nn.Linear(width, 3**4 * heads)
        self.proj, self.unfold = nn.Linear(width, width), nn.Unfold(3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        v = self.v(x).permute(0, 3, 1, 2)
        v = self.unfold(v).reshape(B, self.num_heads, C // self.num_heads, 9, H * W).permute(0, 1, 4, 3, 2)
        a = self.attn(x).reshape(B, H * W, self.num_heads, 9, 9).permute(0, 2, 1, 3, 4)
        x = (a.softmax(-1) @ v).permute(0, 1, 4, 3, 2).reshape(B, C * 9, H * W)
        x = F.fold(x, output_size=(H, W), kernel_size=3, padding=1)
        return self.proj(x.permute(0, 2, 3, 1))


def test_heads_of_windows_go_although_the_width_of_all_is_in_the_code() -> None:
    net = Net(lambda m, x: m.head(x + m.attn(m.norm(x))), attn=Outlook(), norm=nn.LayerNorm(16), head=nn.Linear(16, 2))
    structure = traced(net, vectors(2, 4, 4, 16))
    assert {name: size for name, (size, *_) in groups_of(structure).items()} == {"attn.v": 4}
