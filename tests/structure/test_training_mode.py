"""Branches that run in training mode only are followed too, and the dry run compares that mode as well."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.errors import TraceError
from structure.expectations import reasons_of, traced
from structure.nets import Net, conv, image, unit, vectors


def auxiliary(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    out = m.last(m.b(y))
    return (out, m.aux(y)) if m.training else out


def deep_supervision(m: Any, x: Tensor) -> Any:
    features = [x := block(x) for block in m.stages]
    return [head(f) for head, f in zip(m.heads, features, strict=True)] if m.training else m.heads[-1](features[-1])


def another_head(m: Any, x: Tensor) -> Any:
    """The same operations and shapes in both modes, with other weights."""
    return (m.aux if m.training else m.last)(m.a(x))


def extra_features(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    return (m.last(y), y.mean((2, 3))) if m.training else m.last(y)


def trained_after_shrinking(model: nn.Module, inputs: tuple[Any, ...]) -> apical.Structure:
    """Half of every group is removed; then both modes run, forward and backward."""
    structure = apical.trace(model, inputs)
    small = copy.deepcopy(model)
    apical.resize_(small, structure, {g.name: range((g.size + 1) // 2) for g in structure.groups})
    for training in (False, True):
        outputs = small.train(training)(*inputs)
        sum(t.square().mean() for t in torch.utils._pytree.tree_leaves(outputs)).backward()
    return structure


def nets() -> dict[str, tuple[nn.Module, dict[str, int]]]:
    return {
        "auxiliary head": (
            Net(auxiliary, a=unit(3, 8), b=unit(8, 6), last=conv(6, 2), aux=conv(8, 2)), {"a.0": 8, "b.0": 6},
        ),
        "deep supervision": (
            Net(deep_supervision, stages=nn.ModuleList([unit(3, 8), unit(8, 6)]),
                heads=nn.ModuleList([conv(8, 2), conv(6, 2)])),
            {"stages.0.0": 8, "stages.1.0": 6},
        ),
        "another head": (Net(another_head, a=unit(3, 8), last=conv(8, 2), aux=conv(8, 2)), {"a.0": 8}),
        "hidden width of an auxiliary head": (
            Net(auxiliary, a=unit(3, 8), b=unit(8, 6), last=conv(6, 2), aux=nn.Sequential(unit(8, 5), conv(5, 2))),
            {"a.0": 8, "b.0": 6, "aux.0.0": 5},
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", nets())
def test_branches_of_training_mode_follow(name: str) -> None:
    model, groups = nets()[name]
    structure = trained_after_shrinking(model, image())
    assert {g.name: g.size for g in structure.groups} == groups
    assert traced(model, image()) == structure, "and the contract of eval mode holds; its MACs are those of eval mode"


def test_channels_that_are_returned_in_training_mode_are_frozen() -> None:
    model = Net(extra_features, a=nn.Sequential(unit(3, 5), unit(5, 8)), last=conv(8, 2))
    structure = trained_after_shrinking(model, image())
    assert [g.name for g in structure.groups] == ["a.0.0"]
    assert "reaches the model's output" in reasons_of(structure)["a.1.0"]


def test_code_of_training_mode_that_depends_on_a_width_freezes() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.last(y * y.shape[1] if m.training else y * 8)

    structure = apical.trace(Net(forward, a=unit(3, 8), last=nn.Sequential(unit(8, 5), conv(5, 2))), image())
    assert [g.name for g in structure.groups] == ["last.0.0"]
    assert "in training mode a gate of zero does not equal its absence" in reasons_of(structure)["a.0"]


# ---- nothing else than before where training mode brings nothing new ------------------------------------------------


class Attention(nn.Module):
    """With every kind of dropout and a drop-path."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.drop = nn.Linear(8, 24), nn.Linear(8, 8), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, -1, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.3 if self.training else 0.0)
        y = F.dropout(self.out(y.transpose(1, 2).reshape(*x.shape[:2], -1)), 0.2, self.training)
        if self.training:
            y = y * y.new_empty(len(y), 1, 1).bernoulli_(0.9).div_(0.9)
            y = y * (0.9 + torch.rand(len(y), 1, 1, dtype=y.dtype)).floor_()
        return x + self.drop(y)


class Bottleneck(nn.Module):
    """Normalises by a function, as custom batch norms do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return F.batch_norm(
            self.conv(x), n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1, 1e-5
        ).relu()


def without_chance() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.5, batch_first=True)
    skip = lambda m, x: m.last(m.a(x) if m.training and random.random() < 0.5 else m.b(m.a(x)))  # noqa: E731
    return {
        "attention": (nn.Sequential(nn.Linear(3, 8), Attention(), Attention(), nn.Linear(8, 2)), vectors(2, 5, 3)),
        "torch's layer": (nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)), vectors(2, 5, 3)),
        "batch norms of one pixel": (
            nn.Sequential(unit(3, 8), nn.AdaptiveAvgPool2d(1), unit(8, 6), nn.Flatten(), nn.Linear(6, 2)),
            image(batch=1),
        ),
        "functional batch norm": (nn.Sequential(Bottleneck(), conv(8, 2)), image()),
        "dropped layer": (Net(skip, a=unit(3, 8), b=unit(8, 8), last=conv(8, 2)), image()),
        "stacked recurrent layers": (
            Net(lambda m, x: m.last(m.rnn(x)[0]), rnn=nn.LSTM(3, 6, 2, batch_first=True, dropout=0.5),
                last=nn.Linear(6, 2)),
            vectors(2, 5, 3),
        ),
        "noise": (
            Net(lambda m, x: m.last((y := m.a(x)) + (0.1 * torch.randn_like(y) if m.training else 0)), a=unit(3, 8),
                last=conv(8, 2)),
            image(),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", without_chance())
def test_chance_raises_no_false_alarm(name: str) -> None:
    model, inputs = without_chance()[name]
    frozen = copy.deepcopy(model).eval()
    frozen.train = lambda mode=True: frozen  # type: ignore[method-assign, assignment] # knows eval mode only
    both, one = apical.trace(model, inputs), apical.trace(frozen, inputs)
    assert [(g.name, g.size) for g in both.groups] == [(g.name, g.size) for g in one.groups]
    assert (both.blocks, both.frozen, both.notes) == (one.blocks, one.frozen, ())
    assert both.macs() == one.macs()


def test_statistics_and_modes_stay() -> None:
    model = nn.Sequential(Bottleneck(), unit(8, 6), conv(6, 2)).train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    apical.trace(model, image())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes


# ---- training mode that cannot be run --------------------------------------------------------------------------------


def needs_targets(m: Any, x: Tensor, targets: Tensor | None = None) -> Any:
    y = m.a(x)
    if m.training and targets is None:
        raise ValueError("in training mode, targets should be passed")
    return (m.last(y), m.aux(y)) if m.training and m.with_aux else m.last(y)


def test_parameters_that_only_an_unknown_training_mode_reads_are_refused_by_name() -> None:
    model = Net(needs_targets, a=unit(3, 8), last=conv(8, 2), aux=conv(8, 2))
    model.with_aux = True
    with pytest.raises(TraceError, match=r"never reads aux\.weight, aux\.bias, .*targets should be passed"):
        apical.trace(model, image())
    structure = apical.trace(model, (*image(), torch.zeros(2)))
    assert [g.name for g in structure.groups] == ["a.0"]


def test_an_unknown_training_mode_is_said() -> None:
    model = Net(needs_targets, a=unit(3, 8), last=conv(8, 2))
    model.with_aux = False
    structure = apical.trace(model, image())
    assert [g.name for g in structure.groups] == ["a.0"]
    assert "training mode was not followed" in structure.notes[0]
    assert "targets should be passed" in structure.notes[0]
    assert "test_training_mode.py" in structure.notes[0], "with the line of the model's code"


def test_training_mode_that_chance_decides_is_said() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.last(y[torch.randperm(len(y))] if m.training else y)

    structure = apical.trace(Net(forward, a=unit(3, 8), last=conv(8, 2)), image(batch=5))
    assert [g.name for g in structure.groups] == ["a.0"]
    assert "compared in eval mode only" in structure.notes[-1]


def layers_now_and_then(m: Any, x: Tensor) -> Any:
    for layer in m.layers:
        if m.training and torch.rand([]) < 0.1:
            continue
        x = x + layer(x)
    return (m.last(x), m.aux(x)) if m.training else m.last(x)


def test_layers_that_are_dropped_now_and_then_are_followed() -> None:
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4)) for _ in range(2))
    net = Net(layers_now_and_then, layers=layers, last=nn.Linear(4, 2), aux=nn.Linear(4, 3))
    structure = trained_after_shrinking(net, vectors(2, 4))
    assert {g.name: g.size for g in structure.groups if "layers" in g.name} == {"layers.0.0": 6, "layers.1.0": 6}
    assert not [note for note in structure.notes if "training mode" in note]


def test_parameters_that_neither_mode_reads_do_not_matter_where_training_mode_is_unknown() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        if m.training and m.a(x).isinf().any():
            return m.last(torch.relu(m.a(x)).clamp(max=9.0))
        return m.last(torch.relu(m.a(x)))

    net = Net(forward, a=nn.Linear(4, 6), last=nn.Linear(6, 2), never=nn.Linear(6, 2))
    with pytest.warns(UserWarning, match="the example call does not read never.weight, never.bias"):
        structure = apical.trace(net, vectors(2, 4))
    assert [(g.name, g.size) for g in structure.groups] == [("a", 6)]
    assert [note for note in structure.notes if "training mode was not followed" in note]


# ---- what the example call does not read -----------------------------------------------------------------------------


def two_heads(m: Any, x: Tensor, task: str | None = "a") -> Any:
    y = m.body(x)
    return [head(y) for head in m.heads.values()] if task is None else m.heads[task](y)


def of_two_tasks() -> nn.Module:
    body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU())
    return Net(two_heads, body=body, heads=nn.ModuleDict({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)}))


def test_what_the_example_call_does_not_read_is_said_at_the_line_that_traces() -> None:
    with pytest.warns(UserWarning, match=r"does not read heads\.b\.weight, heads\.b\.bias: .*groups=") as caught:
        structure = apical.trace(of_two_tasks(), vectors(2, 4))
    assert [warning.filename for warning in caught] == [__file__]
    assert "does not read heads.b.weight" in str(structure)


BY_HAND: dict[str, dict[str, dict[str, int]]] = {
    "body.0": {"a": {"body.0.weight": 0, "body.0.bias": 0, "body.2.weight": 1}},
    "body.2": {"a": {"body.2.weight": 0, "body.2.bias": 0, "heads.a.weight": 1, "heads.b.weight": 1}},
}


@pytest.mark.parametrize("name", ["one call reads all", *BY_HAND])
def test_the_ways_out_that_the_warning_names_keep_every_call_running(name: str) -> None:
    model, x = of_two_tasks(), vectors(2, 4)[0]
    structure = apical.trace(model, (x,), groups=BY_HAND[name]) if name in BY_HAND else apical.trace(model, (x, None))
    apical.resize_(model, structure, {g.name: range(2) for g in structure.groups})
    assert structure.groups
    assert [tuple(model(x, task).shape) for task in ("a", "b")] == [(2, 2), (2, 3)]


def test_a_weight_that_is_read_by_another_name_is_read() -> None:
    net = Net(lambda m, x: m.b(m.a(x)) @ m.a.weight, tied=nn.Linear(4, 6, bias=False), a=nn.Linear(4, 6, bias=False),
              b=nn.Linear(6, 6), count=nn.Parameter(torch.zeros(1)))  # fmt: skip
    net.tied.weight = net.a.weight
    assert apical.trace(net, vectors(2, 4)).notes == ()
