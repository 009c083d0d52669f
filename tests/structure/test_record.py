"""The structure as data: prices, JSON, copies, print."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

import apical
from apical import Structure
from apical.errors import CheckpointError, ResizeError
from apical.structure import Frozen
from structure.contract import counted_macs, random_keep
from structure.nets import (
    Attention,
    LanguageModel,
    SqueezeExcite,
    conv,
    head,
    image,
    recurrent,
    tiny_resnet,
    tokens,
    unit,
    vectors,
)

NETS: dict[str, tuple[nn.Module, tuple[Any, ...], tuple[int, ...]]] = {
    "resnet": (tiny_resnet(), image(), ()),
    "mobile": (
        nn.Sequential(unit(3, 8), unit(8, 8, groups=8), SqueezeExcite(8, 4), unit(8, 6, 1), head(6)),
        image(),
        (),
    ),
    "grouped": (nn.Sequential(unit(3, 8), unit(8, 12, groups=4), conv(12, 2)), image(), ()),
    "language": (LanguageModel(tied=True), tokens(), (1,)),
    "gru": (recurrent("GRU", 2, True), vectors(2, 5, 3), ()),
    "attention": (nn.Sequential(nn.Linear(3, 8), Attention(8, 4, 3), nn.Linear(8, 2)), vectors(2, 5, 3), ()),
}


@pytest.fixture(scope="module")
def structures() -> dict[str, Structure]:
    return {name: apical.trace(m, x, state_outputs=states) for name, (m, x, states) in NETS.items()}


@pytest.fixture
def resnet(structures: dict[str, Structure]) -> Structure:
    return structures["resnet"]


# ---- prices -------------------------------------------------------------------------------------------------------


def test_ways_to_say_what_is_kept(resnet: Structure) -> None:
    expected = resnet.macs({"1.conv1": [0, 2]})
    for kept in (2, range(2), (0, 1), np.array([1, 3]), torch.tensor([4, 5]), np.int64(2)):
        assert resnet.macs({"1.conv1": kept}) == expected
    assert resnet.macs({}) == resnet.macs(None) == resnet.macs()
    assert isinstance(resnet.macs({"1.conv1": [0]}), int)
    assert isinstance(resnet.num_params({"1.conv1": [0]}, ["1"]), int)


def test_prices_by_hand() -> None:
    structure = apical.trace(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4, 1)), image(batch=1, size=5))
    assert structure.macs() == 25 * 9 * 3 * 8 + 25 * 8 * 4
    assert structure.macs({"0": 3}) == 25 * 9 * 3 * 3 + 25 * 3 * 4
    assert structure.num_params() == 8 * 27 + 8 + 4 * 8 + 4
    assert structure.num_params({"0": 3}) == 3 * 27 + 3 + 4 * 3 + 4


def test_linear_in_the_batch() -> None:
    net = tiny_resnet()
    assert 3 * apical.trace(net, image(1)).macs({"1.conv1": 2}) == apical.trace(net, image(3)).macs({"1.conv1": 2})


def test_unknown_names_are_named(resnet: Structure) -> None:
    with pytest.raises(KeyError, match=r"1\.conv7"):
        resnet.macs({"1.conv7": 2})
    with pytest.raises(KeyError, match="block"):
        resnet.num_params({}, ["2"])
    with pytest.raises(KeyError, match=r"1\.conv7"):
        resnet.group("1.conv7")


@pytest.mark.parametrize("ask", ["macs", "num_params", "widths"])
def test_what_is_no_choice_is_refused_in_words(resnet: Structure, ask: str) -> None:
    price, group = getattr(resnet, ask), resnet.groups[0].name
    for keep in (3, [group], group):
        with pytest.raises(TypeError, match="keep must give, by group name"):
            price(keep)
    for kept in ("3", 1.5, None, True, torch.tensor(3), nn.Linear(9, 9)):
        with pytest.raises(TypeError, match="positions or their number"):
            price({group: kept})
    with pytest.raises(TypeError, match="skip must be a list of block names"):
        price(skip=3)
    assert price(skip="1") == price(skip=["1"]) != price(), "one name, as resize_ takes it"
    with pytest.raises(KeyError, match="no block is called"):
        price(skip=[["layer1"]])


@pytest.mark.parametrize("ask", ["macs", "num_params", "widths"])
def test_what_no_resize_could_keep_has_no_price(resnet: Structure, ask: str) -> None:
    price, group = getattr(resnet, ask), resnet.groups[0]
    for kept in (-1, group.size + 1, 10**30, np.int64(99)):
        with pytest.raises(ResizeError, match=f"has {group.size} units, got"):
            price({group.name: kept})
    for positions, problem in (
        ([99, 99], "position 99 is outside"),
        ([1, 1], "repeated"),
        ([True], "must be integers"),
        (torch.ones(group.size, dtype=torch.bool), "from a mask"),
        (nn.Sequential(nn.ReLU()), "must be integers"),
    ):
        with pytest.raises(ResizeError, match=problem):
            price({group.name: positions})
    assert price({group.name: 2}) == price({group.name: torch.tensor([0, 1])}) == price({group.name: range(2)})
    assert price({group.name: group.size}) == price()
    with pytest.raises(KeyError, match="no group is called"):
        resnet.group(["1"])  # type: ignore[arg-type]


def test_skipping_counts_each_term_once(resnet: Structure) -> None:
    one, three = resnet.macs(skip=["1"]), resnet.macs(skip=["3"])
    assert resnet.macs(skip=["1", "3"]) == one + three - resnet.macs()
    assert resnet.macs(skip=["1", "1"]) == one


def test_weights_shared_with_a_skipped_block_stay_counted() -> None:
    net = tiny_resnet()
    net[3].conv1.weight = nn.Parameter(torch.randn(7, 12, 3, 3))
    shared = nn.Sequential(*net[:4], unit(12, 7), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 2))
    shared[4][0].weight = shared[3].conv1.weight
    structure = apical.trace(shared, image())
    small = copy.deepcopy(shared)
    apical.resize_(small, structure, {}, ["3"])
    assert structure.num_params(skip=["3"]) == sum(p.numel() for p in small.parameters())
    assert structure.macs(skip=["3"]) == counted_macs(small.eval(), image())


# ---- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_json_round_trip(structures: dict[str, Structure], name: str) -> None:
    structure = structures[name]
    text = json.dumps(structure.to_dict())
    again = Structure.from_dict(json.loads(text))
    assert again == structure
    assert json.dumps(again.to_dict()) == text
    keep = random_keep(structure, 3)
    assert again.macs(keep) == structure.macs(keep)
    assert again.num_params(keep) == structure.num_params(keep)


@pytest.mark.parametrize("used", [False, True])
def test_pickle_and_deepcopy(resnet: Structure, used: bool) -> None:
    if used:
        resnet.macs({"1.conv1": 2}, ["1"])
        resnet.group("1.conv1").members[0].index.sum()
    for again in (pickle.loads(pickle.dumps(resnet)), copy.deepcopy(resnet)):
        assert again == resnet
        assert again.macs({"1.conv1": 2}, ["1"]) == resnet.macs({"1.conv1": 2}, ["1"])


def test_it_cannot_be_changed(resnet: Structure) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resnet.groups = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        resnet.groups[0].size = 3  # type: ignore[misc]


def test_tensors_are_the_state_dict(structures: dict[str, Structure]) -> None:
    for name, (model, _, _) in NETS.items():
        specs = structures[name].tensors
        names = [n for spec_name, spec in specs.items() for n in (spec_name, *spec.aliases)]
        assert sorted(names) == sorted(model.state_dict())
        assert all(specs[n].shape == tuple(t.shape) for n, t in model.state_dict().items() if n in specs)


def test_names_are_unique_and_in_forward_order(structures: dict[str, Structure]) -> None:
    for structure in structures.values():
        names = [g.name for g in structure.groups]
        assert len(set(names)) == len(names)
    assert [g.name for g in structures["resnet"].groups] == ["0.0", "1.conv1", "2.conv1", "2.conv2", "3.conv1"]


# ---- print --------------------------------------------------------------------------------------------------------


def test_the_table_is_readable(resnet: Structure) -> None:
    text = str(resnet)
    assert "5 channel groups, 2 skippable blocks" in text
    assert f"{resnet.macs():,} MACs" in text
    for group in resnet.groups:
        (line,) = [row for row in text.splitlines() if row.split()[:2] == [group.name, group.role]]
        assert str(group.size) in line.split()
    for block in resnet.blocks:
        assert any(row.split()[:1] == [block.name] and block.gate_site[0] in row for row in text.splitlines())
    assert any("reaches the model's output" in row for row in text.splitlines())
    assert max(len(row) for row in text.splitlines()) < 200


def test_parts_that_are_frozen_for_one_reason_share_a_line(resnet: Structure) -> None:
    parts = tuple(Frozen(f"block{i}.norm", 8, "is normalised") for i in range(10))
    rows = str(dataclasses.replace(resnet, frozen=(*parts, Frozen("fc", 10, "is returned")))).splitlines()
    assert [row.split("  ")[0] for row in rows[-2:]] == ["10 parts: block0.norm, block1.norm, block2.norm …", "fc"]
    assert [row.split("  ")[-1].strip() for row in rows[-2:]] == ["is normalised", "is returned"]


def test_a_share_that_is_nearly_nothing_is_not_told_as_nothing() -> None:
    wide = apical.trace(nn.Sequential(nn.Linear(3, 4000), nn.ReLU(), nn.Linear(4000, 2)), vectors(1, 3))
    assert "down to 5 MACs (< 0.1 %)" in str(wide)


def test_the_table_of_many_groups_is_cut() -> None:
    net = nn.Sequential(*[layer for _ in range(9) for layer in (nn.Linear(3, 3), nn.ReLU())], nn.Linear(3, 2))
    structure = apical.trace(net, vectors(1, 3))
    many = dataclasses.replace(
        structure, groups=tuple(dataclasses.replace(structure.groups[0], name=f"g{i}") for i in range(300))
    )
    assert "more groups" in str(many)


def test_repr_is_one_short_line(structures: dict[str, Structure]) -> None:
    for structure in structures.values():
        parts = [structure, *structure.groups, *structure.states]
        parts += [piece for group in structure.groups for piece in group.members]
        for part in parts:
            assert "\n" not in repr(part)
            assert len(repr(part)) < 160, repr(part)
    assert "5 channel groups, 2 skippable blocks" in repr(structures["resnet"])


def test_one_part_is_not_told_as_several() -> None:
    structure = apical.trace(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    assert str(structure).startswith("1 channel group, 0 skippable blocks;")


def test_a_notebook_shows_the_table(resnet: Structure) -> None:
    page = resnet._repr_html_()
    cells = {"".join(cell.itertext()) for cell in ElementTree.fromstring(page).iter("td")}  # well formed
    assert cells >= {group.name for group in resnet.groups} | {block.name for block in resnet.blocks}
    assert "reaches the model's output" in cells


def test_names_in_the_notebook_table_are_escaped(resnet: Structure) -> None:
    odd = dataclasses.replace(resnet, notes=("<script>alert(1)</script>",))
    assert "<script>" not in odd._repr_html_()


def test_what_is_no_saved_structure_is_said_in_words(resnet: Structure) -> None:
    good = resnet.to_dict()
    for data in (None, 3, "x", [], {}, {**good, "groups": 3}, {**good, "groups": [{}]}, {**good, "terms": None}):
        with pytest.raises(CheckpointError, match="the saved structure does not fit"):
            Structure.from_dict(data)  # type: ignore[arg-type]
