"""Groups described by hand, for models that cannot be exported."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.errors import TraceError
from apical.structure import ParamSlice
from structure.contract import check_contract, doubled, generic_
from structure.expectations import members_of, reasons_of
from structure.nets import Net, conv, image, unit, vectors


def branching() -> nn.Module:
    """Looks at a value, which no exported graph can."""
    return Net(
        lambda m, x: m.c(torch.relu(m.b(m.a(x)))) if float(x.sum()) < 1e9 else m.c(m.b(m.a(x))),
        a=unit(3, 8), b=conv(8, 6), c=conv(6, 2),
    )  # fmt: skip


NORM = {f"a.1.{t}": 0 for t in ("weight", "bias", "running_mean", "running_var")}
GROUPS = {
    "first": {"a.0.weight": 0, **NORM, "b.weight": 1},
    "second": {"b.weight": 0, "b.bias": 0, "c.weight": 1},
}


def test_a_branching_model_is_not_exported_but_can_be_described() -> None:
    with pytest.raises(TraceError, match=r"groups="):
        apical.trace(branching(), image())
    structure = apical.trace(branching(), image(), groups=GROUPS)
    assert [(g.name, g.size) for g in structure.groups] == [("first", 8), ("second", 6)]
    assert members_of(structure, "second") == {"b.weight": 1, "b.bias": 1, "c.weight/1": 1}
    assert any("by hand" in note for note in structure.notes)
    check_contract(generic_(branching()), structure, doubled(image()), (0, 1, 2))


def test_layers_that_are_named_in_no_group_are_listed() -> None:
    structure = apical.trace(branching(), image(), groups={"second": GROUPS["second"]})
    assert reasons_of(structure)["a.0"] == "8: named in no group"


def packed(m: Any, x: Tensor) -> Tensor:
    sequence = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
    return m.fc(nn.utils.rnn.pad_packed_sequence(m.rnn(sequence)[0], batch_first=True)[0])


def test_packed_sequences() -> None:
    net = Net(packed, rnn=nn.GRU(3, 6, batch_first=True), fc=nn.Linear(6, 2))
    rows = tuple((u, u + 6, u + 12) for u in range(6))
    columns = tuple((u,) for u in range(6))
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    parts = [
        *(ParamSlice(f"rnn.{n}", 0, rows) for n in names),
        ParamSlice("rnn.weight_hh_l0", 1, columns),
        ParamSlice("fc.weight", 1, columns),
    ]
    structure = apical.trace(net, vectors(2, 5, 3), groups={"hidden": parts})
    assert structure.group("hidden").size == 6
    small = copy.deepcopy(net)
    apical.resize_(small, structure, {"hidden": [1, 4]})
    assert small.rnn.hidden_size == 2
    assert small(*vectors(2, 5, 3)).shape == (2, 5, 2)


def test_a_wrong_description_is_refuted() -> None:
    """The bias is forgotten: the forward pass without some units fails."""
    wrong = {"first": GROUPS["first"], "second": {"b.weight": 0, "c.weight": 1}}
    structure = apical.trace(branching(), image(), groups=wrong)
    assert [g.name for g in structure.groups] == ["first"]
    assert "forward pass fails" in reasons_of(structure)["second"]


BAD: dict[str, tuple[Any, str]] = {
    "no such tensor": ({"g": {"b.wieght": 0, "c.weight": 1}}, r"'g'.*no parameter or buffer 'b\.wieght'"),
    "no such dimension": ({"g": {"b.weight": 4, "c.weight": 1}}, r"no dimension 4"),
    "negative dimension": ({"g": {"b.weight": -1, "c.weight": 1}}, r"no dimension -1"),
    "sizes differ": ({"g": {"b.weight": 0, "b.bias": 0, "c.weight": 0}}, "different numbers of units"),
    "no reader": ({"g": {"b.weight": 0, "b.bias": 0}}, "no tensor that reads"),
    "positions out of range": (
        {"g": [ParamSlice("b.weight", 0, ((0,), (9,))), ParamSlice("c.weight", 1, ((0,), (1,)))]}, "position 9",
    ),
    "one slice in two groups": ({**GROUPS, "third": {"b.weight": 0, "b.bias": 0, "c.weight": 1}}, "two groups"),
    "empty": ({}, "nothing"),
    "no mapping": (3, "groups must be tensors and their dimensions .*got 3"),
    "no tensors": ({"g": 3}, "group 'g': expected a name .*got 3"),
    "no name": ({3: {"b.weight": 0, "c.weight": 1}}, "group 3: expected a name"),
    "a dimension in text": ({"g": {"b.weight": "0", "c.weight": 1}}, "dimension of b.weight is '0'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_descriptions(name: str) -> None:
    groups, message = BAD[name]
    with pytest.raises(TraceError, match=message):
        apical.trace(branching(), image(), groups=groups)


def test_the_model_must_run() -> None:
    with pytest.raises(TraceError, match="does not run on the example inputs"):
        apical.trace(branching(), image(channels=4), groups=GROUPS)
