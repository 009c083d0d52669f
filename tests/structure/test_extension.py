"""Teaching the tracer new operations and module types, and what it says about what it does not know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical import register_module, register_op
from apical.structure import Value, Walk, _registry
from apical.structure._registry import module_refresh
from structure.expectations import reasons_of, traced
from structure.nets import Net, conv, image, unit, vectors


@torch.library.custom_op("apicaltest::halve", mutates_args=())
def halve(x: Tensor) -> Tensor:
    return x * 0.5


@halve.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("apicaltest::swap_halves", mutates_args=())
def swap_halves(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.chunk(2, 1)
    return b.clone(), a.clone()


@swap_halves.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    half = x.new_empty(x.shape[0], x.shape[1] // 2, *x.shape[2:])
    return half, torch.empty_like(half)


@pytest.fixture(autouse=True)
def _registries_as_before() -> Iterator[None]:
    ops, modules = dict(_registry._OP_RULES), dict(_registry._MODULE_REFRESH)
    yield
    for registry, saved in ((_registry._OP_RULES, ops), (_registry._MODULE_REFRESH, modules)):
        registry.clear()
        registry.update(saved)


def halving_net() -> nn.Module:
    return Net(
        lambda m, x: m.last(torch.ops.apicaltest.halve(m.a(x))),
        a=unit(3, 6),
        last=nn.Sequential(unit(6, 5), conv(5, 2)),
    )


# ---- operations ---------------------------------------------------------------------------------------------------


def test_an_unknown_operation_freezes_what_enters_it_and_says_so() -> None:
    structure = traced(halving_net(), image())
    assert [g.name for g in structure.groups] == ["last.0.0"]
    assert "apicaltest::halve" in reasons_of(structure)["a.0"]
    assert len([n for n in structure.notes if "apicaltest::halve" in n]) == 1
    assert "apicaltest::halve" in str(structure)


def test_a_registered_operation_is_followed() -> None:
    @register_op("apicaltest::halve")
    def rule(walk: Walk, x: Value) -> Value:
        return x

    structure = traced(halving_net(), image())
    assert [g.name for g in structure.groups] == ["a.0", "last.0.0"]
    assert structure.notes == ()


def test_a_wrong_rule_is_caught_by_the_dry_run() -> None:
    """The rule claims that both results keep the channels in order, which is not so."""

    @register_op("apicaltest::swap_halves")
    def rule(walk: Walk, x: Value) -> tuple[Value, ...]:
        assert x.ids is not None
        first, second = x.ids.chunk(2, 1)
        shapes = walk.out_shapes
        return Value(shapes[0], first, x.zeros), Value(shapes[1], second, x.zeros)

    net = Net(
        lambda m, x: m.last(torch.cat(torch.ops.apicaltest.swap_halves(m.a(x)), 1)),
        a=unit(3, 6), last=nn.Sequential(unit(6, 5), conv(5, 2)),
    )  # fmt: skip
    structure = traced(net, image())
    assert [g.name for g in structure.groups] == ["last.0.0"]
    assert reasons_of(structure)["a.0"]


def test_a_rule_may_say_that_it_does_not_know() -> None:
    @register_op("apicaltest::halve")
    def rule(walk: Walk, x: Value) -> Value:
        raise LookupError("only on Sundays")

    structure = traced(halving_net(), image())
    assert "only on Sundays" in reasons_of(structure)["a.0"]
    assert any("only on Sundays" in note for note in structure.notes)


def test_registering_an_operation_twice_is_an_error_that_names_the_first() -> None:
    @register_op("apicaltest::halve")
    def first_rule(walk: Walk, x: Value) -> Value:
        return x

    with pytest.raises(ValueError, match="first_rule"):
        register_op("apicaltest::halve")(lambda walk, x: x)
    with pytest.raises(ValueError, match="aten::relu6"):
        register_op("aten::relu6")(lambda walk, x: x)


# ---- module types -------------------------------------------------------------------------------------------------


def rows_of(x: Tensor, slots: str) -> Tensor:
    """A size in a list, where no trial looks."""
    sizes = [x.shape[0], int(slots)]
    return x.reshape(sizes)


class Mixer(nn.Module):
    """Keeps the width of its first layer in a text of its own, where no trial looks for it, and reads it."""

    def __init__(self, slots: int = 8) -> None:
        super().__init__()
        self.up, self.down, self.slots = nn.Linear(4, slots), nn.Linear(slots, 4), str(slots)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(rows_of(F.relu(self.up(x)), self.slots))


class SubMixer(Mixer):
    """A subclass."""


def refresh(module: Mixer) -> None:
    module.slots = str(module.up.weight.shape[0])


def mixer_net(kind: type[Mixer] = Mixer) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), kind(), nn.Linear(4, 2))


def test_an_attribute_that_nobody_restates_freezes_the_group() -> None:
    structure = traced(mixer_net(), vectors(2, 4))
    assert "1.up" not in [g.name for g in structure.groups]
    assert "forward pass fails" in reasons_of(structure)["1.up"]


@pytest.mark.parametrize("kind", [Mixer, SubMixer])
def test_a_registered_module_restates_its_attributes(kind: type[Mixer]) -> None:
    register_module(Mixer)(refresh)
    net = mixer_net(kind)
    structure = traced(net, vectors(2, 4))
    assert "1.up" in [g.name for g in structure.groups]
    store = apical.DormantStore()
    apical.resize_(net, structure, {"1.up": [0, 2, 7]}, store=store)
    assert net[1].slots == "3"
    apical.resize_(net, structure, {}, store=store)
    assert net[1].slots == "8"


def test_the_nearest_class_wins() -> None:
    calls: list[str] = []
    register_module(Mixer)(lambda m: calls.append("mixer"))
    register_module(SubMixer)(lambda m: calls.append("sub"))
    for kind in (Mixer, SubMixer):
        found = module_refresh(kind())
        assert found is not None
        found(kind())
    assert calls == ["mixer", "sub"]
    assert module_refresh(nn.Linear(2, 2)) is None


def test_registering_a_module_type_twice_is_an_error() -> None:
    register_module(Mixer)(refresh)
    with pytest.raises(ValueError, match="Mixer"):
        register_module(Mixer)(refresh)


def test_registration_returns_the_function() -> None:
    def rule(walk: Walk, x: Value) -> Value:
        return x

    def restate(module: Any) -> None:
        return None

    assert register_op("apicaltest::halve")(rule) is rule
    assert register_module(Mixer)(restate) is restate


def test_what_is_no_operation_or_module_type_is_refused_at_the_call() -> None:
    for ops in ((3,), (None,), ()):
        with pytest.raises(TypeError, match="register_op takes names of operations, such as 'aten::relu', got"):
            register_op(*ops)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the same operation twice"):
        register_op("apicaltest::x", "apicaltest::x")
    for kind in (3, None, "x", int, nn.Linear(1, 1)):
        with pytest.raises(TypeError, match="register_module takes a class of modules"):
            register_module(kind)  # type: ignore[arg-type]
