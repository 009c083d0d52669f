"""Blocks with further arguments and results, branches that are added in the parent, and what stands in for them."""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.errors import LoadError
from apical.export import export_onnx, export_pt2
from apical.resizing._stand_in import AbsentWeight, StandIn
from apical.structure import Returned
from apical.structure._returned import Argument, returned
from marks import slow
from structure.contract import generic_
from structure.expectations import traced
from structure.nets import Net, conv, image, unit, vectors


class Output(NamedTuple):
    """A named tuple that a block returns."""

    hidden: Tensor
    weights: Tensor | None


@dataclass
class Record(OrderedDict[str, Any]):
    """A dataclass that is a dictionary of what is not None, as transformers return them."""

    hidden: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({k: v for k, v in vars(self).items() if v is not None})


class Block(nn.Module):
    """x + f(x), called and returning in many ways."""

    def __init__(self, give: Any = None) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.give, self.kind = give, "full"

    def forward(self, x: Tensor, mask: Any = None, *rest: Any, cache: Any = None, **options: Any) -> Any:
        y = self.norm(x) * (mask if isinstance(mask, Tensor) else 1)
        y = x + self.down(F.gelu(self.up(y)))
        return y if self.give is None else self.give(y, mask, cache)


class Stack(nn.Module):
    """Blocks that are called and read by these functions."""

    def __init__(self, call: Any, give: Any = None, read: Any = None) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList([Block(give) for _ in range(3)])
        self.call, self.read = call, read or (lambda y: y)

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.first(x)
        mask = (x[..., :1] > 0).to(x)
        for block in self.blocks:
            x = self.read(self.call(block, x, mask, first))
        return self.last(x)


class Dictionary(dict[str, Any]):
    """Neither a plain dictionary nor a record."""


CALLS: dict[str, tuple[Any, Any, Any]] = {
    "a mask": (lambda b, x, m, f: b(x, m), None, None),
    "a size": (lambda b, x, m, f: b(x, (4, 4)), None, None),
    "an option": (lambda b, x, m, f: b(x, use_cache=False), None, None),
    "all by name": (lambda b, x, m, f: b(mask=m, x=x), None, None),
    "many": (lambda b, x, m, f: b(x, m, f, 3, cache=None), None, None),
    "a tuple": (lambda b, x, m, f: b(x), lambda y, m, c: (y,), lambda y: y[0]),
    "a tuple with None": (lambda b, x, m, f: b(x, m), lambda y, m, c: (y, None), lambda y: y[0]),
    "a tensor that nobody reads": (lambda b, x, m, f: b(x, m), lambda y, m, c: (y.mean(), y), lambda y: y[1]),
    "a list": (lambda b, x, m, f: b(x, m), lambda y, m, c: [m, y], lambda y: y[0] * 0 + y[1]),
    "a dictionary": (lambda b, x, m, f: b(x, m), lambda y, m, c: {"a": (y, 3)}, lambda y: y["a"][0]),
    "a named tuple": (lambda b, x, m, f: b(x, m), lambda y, m, c: Output(y, None), lambda y: y.hidden),
    "a record": (lambda b, x, m, f: b(x, m), lambda y, m, c: Record(hidden=y), lambda y: y["hidden"]),
    "the cache again": (
        lambda b, x, m, f: (b(x, m, cache=f)), lambda y, m, c: (y, c), lambda y: y[0] + 0 * y[1],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_blocks_may_be_called_in_any_way(name: str) -> None:
    model = Stack(*CALLS[name])
    structure = traced(model, vectors(2, 5, 4))
    assert [b.name for b in structure.blocks] == ["blocks.0", "blocks.1", "blocks.2"], structure.notes
    assert apical.Structure.from_dict(structure.to_dict()) == structure


def test_a_plain_call_has_an_identity() -> None:
    structure = apical.trace(Stack(lambda b, x, m, f: b(x)), vectors(2, 5, 4))
    assert all(b.returns is None for b in structure.blocks)


def test_the_first_input_is_told_from_others_of_its_shape() -> None:
    """With every gate at zero, both arguments would be equal everywhere."""
    for call in (lambda b, x, m, f: b(mask=f, x=x), lambda b, x, m, f: b(x, f)):
        structure = traced(Stack(call), vectors(2, 5, 4))
        assert {b.returns.name for b in structure.blocks if b.returns} == {"x"}


def test_what_cannot_be_returned_is_said() -> None:
    model = Stack(lambda b, x, m, f: b(x, m), lambda y, m, c: Dictionary(y=y), lambda y: y["y"])
    structure = apical.trace(model, vectors(2, 5, 4))
    assert structure.blocks == ()
    assert "block blocks.0 stays: it returns a Dictionary" in structure.notes


def test_the_parent_may_read_attributes_of_a_block() -> None:
    def call(block: Any, x: Tensor, mask: Tensor, first: Tensor) -> Any:
        return block(x, mask) if block.kind == "full" and block.norm.eps < 1 else block(x)

    assert len(traced(Stack(call), vectors(2, 5, 4)).blocks) == 3


# ---- branches that are added in the parent --------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, -1, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:2], -1)), None


class PreNorm(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), inner

    def forward(self, x: Tensor, **options: Any) -> Any:
        return self.inner(self.norm(x), **options)


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))


def in_the_model(m: Any, x: Tensor) -> Tensor:
    """As in lucidrains' models: no module is a whole layer."""
    x = m.first(x)
    for attend, feed in m.layers:
        x = attend(x, mask=None)[0] + x
        x = x + feed(x)
    return m.last(x)


def parallel(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    y = m.norm(x)
    return m.last(x + m.attend(y)[0] + m.feed(y))


def scaled(m: Any, x: Tensor) -> Tensor:
    """Layer scale and dropout between the branch and the sum, and a norm after it."""
    x = m.first(x)
    return m.last(m.norm(x + F.dropout(m.scale * m.attend(x)[0], 0.1, m.training)))


def pair() -> nn.Module:
    return nn.ModuleList([PreNorm(Attention()), PreNorm(feed_forward())])


def ends() -> dict[str, nn.Module]:
    return {"first": nn.Linear(4, 8), "last": nn.Linear(8, 2)}


def branches() -> dict[str, tuple[nn.Module, list[str]]]:
    def layer(norm_first: bool) -> nn.Module:
        return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)

    norm = nn.LayerNorm(8)
    return {
        "in the model": (
            Net(in_the_model, layers=nn.ModuleList([pair(), pair()]), **ends()),
            ["layers.0.0", "layers.0.1", "layers.1.0", "layers.1.1"],
        ),
        "parallel": (Net(parallel, norm=norm, attend=Attention(), feed=feed_forward(), **ends()), ["attend", "feed"]),
        "scaled": (Net(scaled, norm=norm, attend=Attention(), scale=torch.full((8,), 0.1), **ends()), ["attend"]),
        "norm after the sum": (
            nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer(False), 2), nn.Linear(8, 2)),
            ["1.layers.0.self_attn", "1.layers.0.linear2", "1.layers.1.self_attn", "1.layers.1.linear2"],
        ),
        "norm before": (
            nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer(True), 2, enable_nested_tensor=False),
                          nn.Linear(8, 2)),
            ["1.layers.0", "1.layers.1"],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", branches())
def test_branches_give_zeros(name: str) -> None:
    model, blocks = branches()[name]
    structure = traced(model, vectors(2, 5, 4))
    assert [b.name for b in structure.blocks] == blocks, structure.notes


def test_decoder_layers_lose_either_attention() -> None:
    model = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)
    blocks = [b.name for b in traced(model, (torch.randn(2, 5, 8), torch.randn(2, 3, 8))).blocks]
    parts = {"encoder": ("self_attn", "linear2"), "decoder": ("self_attn", "multihead_attn", "linear2")}
    assert blocks == [f"{stack}.layers.0.{part}" for stack, names in parts.items() for part in names]


class BertOutput(nn.Module):
    """A projection, the addition, and the norm after it."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense, self.dropout, self.norm = nn.Linear(inner, width), nn.Dropout(0.1), nn.LayerNorm(width)

    def forward(self, hidden: Tensor, given: Tensor) -> Tensor:
        return self.norm(self.dropout(self.dense(hidden)) + given)


class BertHeads(nn.Module):
    """Attention without its output projection; returns its weights, too, which nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 6) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        q, k, v = (p(x).unflatten(-1, (-1, 3)).transpose(1, 2) for p in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) / 3 + (0 if mask is None else mask)).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights


def bert() -> nn.Module:
    """Layers whose branches are computed by two modules in turn, the last of them inside a third that also adds."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        for layer in m.layers:
            x = layer.attended(layer.heads(x, torch.zeros(()).to(x))[0], x)
            x = layer.output(F.gelu(layer.up(x)), x)
        return m.last(x)

    def layer() -> nn.Module:
        return nn.ModuleDict({"heads": BertHeads(), "attended": BertOutput(6, 8), "up": nn.Linear(8, 12),
                              "output": BertOutput(12, 8)})  # fmt: skip

    return Net(run, layers=nn.ModuleList([BertLayer(layer()), BertLayer(layer())]), **ends())


class BertLayer(nn.Module):
    """Parts by name."""

    def __init__(self, parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def test_a_branch_of_several_modules_leaves_as_one() -> None:
    structure = traced(bert(), vectors(2, 5, 4))
    assert [b.name for b in structure.blocks] == [
        f"layers.{i}.{part}.dense" for i in (0, 1) for part in ("attended", "output")
    ]
    assert structure.left_out(["layers.1.attended.dense"]) == ("layers.1.heads", "layers.1.attended.dense")
    assert structure.left_out(["layers.1.output.dense"]) == ("layers.1.up", "layers.1.output.dense")
    assert apical.Structure.from_dict(structure.to_dict()) == structure
    with pytest.raises(KeyError, match=r"no block is called 'layers.1.up'; did you mean"):
        structure.left_out(["layers.1.up"])


def test_what_others_read_does_not_leave_with_a_branch() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        y = m.up(x)
        return m.last(x + m.down(F.relu(y))) + m.other(y)

    model = Net(run, up=nn.Linear(8, 12), down=nn.Linear(12, 8), other=nn.Linear(12, 2), **ends())
    assert traced(model, vectors(2, 5, 4)).blocks == ()


def test_what_lies_between_the_modules_of_a_branch_leaves_with_them() -> None:
    """A batch norm between two convolutions knows one width; zeros of another must not reach it."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        return m.last(F.hardswish(x + m.norm2(m.conv2(F.relu(m.norm1(m.conv1(x)))))))

    model = Net(run, first=unit(3, 6), conv1=conv(6, 9), norm1=nn.BatchNorm2d(9), conv2=conv(9, 6),
                norm2=nn.BatchNorm2d(6), last=conv(6, 2))  # fmt: skip
    structure = traced(model, image())
    assert structure.left_out([b.name for b in structure.blocks]) == ("conv1", "norm1", "conv2", "norm2")


def half_a_branch(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    return m.last(x + m.down(F.relu(F.linear(x, m.up))))


def another_path(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    return m.last(m.a(x) + m.b(x))


def a_skip_connection(m: Any, x: Tensor) -> Tensor:
    x = m.first(x)
    return m.last(x + F.interpolate(m.inner(F.avg_pool2d(x, 2)), scale_factor=2))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Net(half_a_branch, up=nn.Parameter(torch.randn(12, 8)), down=nn.Linear(12, 8), **ends()), vectors(2, 5, 4)),
        (Net(another_path, first=unit(3, 6), a=conv(6, 6), b=conv(6, 6), last=conv(6, 2)), image()),
        (Net(a_skip_connection, first=unit(3, 6), inner=conv(6, 6), last=conv(6, 2)), image()),
    ],
    ids=["half a branch", "two branches and no residual", "resized after the module"],
)
def test_what_is_no_residual_branch_is_no_block(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    assert traced(model, inputs).blocks == ()


def test_zeros_follow_the_width_of_the_stream() -> None:
    """A stream that may shrink, and a branch whose input has another width of the same size."""
    stream = Net(lambda m, x: m.last((y := m.first(x)) + m.branch(y)), first=unit(3, 6),
                 branch=nn.Sequential(unit(6, 5), conv(5, 6)), last=conv(6, 2))  # fmt: skip
    structure = traced(stream, image())
    assert [b.name for b in structure.blocks] == ["branch"]
    assert sorted(g.size for g in structure.groups) == [5, 6]
    other = Net(lambda m, x: m.last((y := m.first(x)) + m.branch(m.narrow(y).relu())), first=unit(3, 6),
                narrow=nn.BatchNorm2d(6), branch=conv(6, 6), last=conv(6, 2))  # fmt: skip
    assert [b.name for b in traced(other, image()).blocks] == ["branch"]
    mixed = Net(lambda m, x: m.last(m.branch(m.before(y := m.first(x))) + y), first=unit(3, 6),
                before=unit(6, 6), branch=conv(6, 6), last=conv(6, 2))  # fmt: skip
    structure = traced(mixed, image())
    assert structure.left_out([b.name for b in structure.blocks]) == ("before", "branch")


# ---- taking out, bringing back, saving, exporting ------------------------------------------------------------------


def skipped(model: nn.Module, store: apical.DormantStore | None = None) -> tuple[nn.Module, apical.Structure]:
    generic_(model)
    structure = apical.trace(model, torch.randn(2, 5, 4, dtype=torch.float64))
    small = copy.deepcopy(model)
    apical.resize_(small, structure, {}, [b.name for b in structure.blocks][:2], store=store)
    assert any(isinstance(m, StandIn) for m in small.modules())
    return small, structure


def stacks() -> dict[str, nn.Module]:
    return {
        "records": Stack(*CALLS["a record"]),
        "named tuples": Stack(*CALLS["a named tuple"]),
        "tuples": Stack(*CALLS["the cache again"]),
        "zeros": branches()["in the model"][0],
        "several modules": bert(),
    }


@pytest.mark.parametrize("name", stacks())
def test_saved_and_loaded_and_brought_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, x, store = stacks()[name], torch.randn(3, 5, 4, dtype=torch.float64), apical.DormantStore()
    small, structure = skipped(model, store)
    apical.save(small, tmp_path)
    loaded = apical.load(stacks()[name].double().eval(), tmp_path)
    assert torch.equal(loaded(x), small(x))
    assert str(loaded) == str(small)
    again = apical.load(stacks()[name].double().eval(), apical.save(loaded, tmp_path / "again"))
    assert torch.equal(again(x), small(x))
    apical.resize_(small, structure, {}, store=store)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in small.state_dict().items())
    assert not any(isinstance(m, StandIn) for m in small.modules())


def test_types_that_are_not_imported_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, _ = skipped(stacks()["records"])
    apical.save(small, tmp_path)
    monkeypatch.delattr(sys.modules[__name__], "Record")
    with pytest.raises(LoadError, match="no named tuple or dataclass"):
        apical.load(stacks()["tuples"].double(), tmp_path)


@pytest.mark.parametrize("data", [
    {"kind": "call", "position": 0}, {"kind": "input"}, {"kind": "input", "position": -1},
    {"kind": "dict", "keys": ["a"]}, {"kind": "value", "value": []}, {"kind": "record", "value": "os:system"},
    {"kind": "record", "value": "builtins:dict"},
])  # fmt: skip
def test_a_damaged_description_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no stand-in returns|no named tuple"):
        Returned.from_dict(data)


@pytest.mark.parametrize("name", [slow("tuples"), slow("zeros"), "several modules"])
def test_exported(name: str, tmp_path: Path) -> None:
    small, _ = skipped(stacks()[name])
    x = torch.randn(2, 5, 4)
    assert export_pt2(small.float(), x, tmp_path / "m.pt2", batch_dim=None).difference <= 1e-5
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export_onnx(small.float(), x, tmp_path / "m.onnx", batch_dim=None).difference <= 1e-5


def test_what_feeds_a_branch_that_is_left_out_keeps_a_gradient_of_zero() -> None:
    """Data-parallel training waits for the gradient of every parameter."""
    x = torch.randn(2, 3, requires_grad=True)
    zeros = Returned("zeros", 0).build((x,), {})
    (x.sum() + zeros.sum()).backward()
    assert torch.equal(zeros, torch.zeros(2, 3))
    (grad,) = torch.autograd.grad(Returned("zeros", 0).build((x,), {}).sum(), x)
    assert torch.equal(grad, torch.zeros(2, 3))
    with torch.no_grad():
        assert Returned("zeros", 0).build((x,), {}).grad_fn is None


class FedBesideItsStream(nn.Module):
    """As in BLOOM: a block that is given what its caller's norm makes, and the stream that it adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(2))
        self.mlps, self.last = nn.ModuleList(Adding() for _ in range(2)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = mlp(norm(x), x)
        return self.last(x)


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        return stream + self.down(torch.relu(self.up(x)))


def test_what_feeds_a_block_beside_its_stream_keeps_a_gradient_of_zero() -> None:
    model, x = FedBesideItsStream(), torch.randn(2, 5, 4)
    structure = traced(model, (x,))
    assert [b.name for b in structure.blocks] == ["mlps.0", "mlps.1"]
    apical.resize_(model, structure, {}, ["mlps.1"])
    model(x).sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert not model.norms[1].weight.grad.any()


def test_a_parent_may_rescale_a_weight_that_is_absent() -> None:
    absent = copy.deepcopy(StandIn(Returned("input", 0), nn.Linear(3, 3)))
    assert isinstance(absent.weight, AbsentWeight)
    assert absent.weight.mul_(2) is absent.weight
    assert not hasattr(absent.weight, "shape")


def test_a_mask_with_infinities_is_not_taken_for_another() -> None:
    x, mask = torch.randn(2, 3), torch.tensor([0.0, -torch.inf, 1.0])
    arguments = [Argument(x, 0, None), Argument(mask, 1, None)]
    made = returned((x, mask + 1), arguments, 1e-10)
    assert made is not None
    assert [item.kind for item in made.items] == ["input", "value"]
    made = returned((x, mask * torch.nan), arguments, 1e-10)
    assert made is not None
    assert [item.kind for item in made.items] == ["input", "value"]
