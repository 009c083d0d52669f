"""Blocks that are left out and put back."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn, optim

import apical
from apical import DormantStore, Structure
from apical.errors import ResizeError
from resizing.reference import Reference, assert_unchanged, snapshot, train_steps
from structure.contract import random_keep
from structure.nets import PreActivation, Residual, conv, head, image, unit

SHAPE = (4, 3, 8, 8)


def deep() -> nn.Module:
    """Five blocks in a row, of which "2" and "3" share the weight of their first convolution."""
    net = nn.Sequential(unit(3, 8), *[Residual(8, 8, 6) for _ in range(5)], head(8))
    net[3].conv1.weight = net[2].conv1.weight
    return net


@pytest.fixture(scope="module")
def structure() -> Structure:
    return apical.trace(deep(), torch.zeros(SHAPE))


def test_blocks_of_the_net(structure: Structure) -> None:
    assert [b.name for b in structure.blocks] == ["1", "2", "3", "4", "5"]
    assert structure.tensors["2.conv1.weight"].aliases == ("3.conv1.weight",)


def test_a_dropped_block_is_an_identity_and_returns_as_the_same_object(structure: Structure) -> None:
    model, store = deep(), DormantStore()
    block = model[4]
    apical.resize_(model, structure, {}, ["4"], store=store)
    assert type(model[4]) is nn.Identity
    assert "4.conv1.weight" not in dict(model.named_parameters())
    assert store.modules == {"4": block}
    apical.resize_(model, structure, {}, store=store)
    assert model[4] is block
    assert store.modules == {}


def test_many_choices_of_blocks(structure: Structure) -> None:
    model, store = deep(), DormantStore()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    reference = Reference.of(structure, model, optimizer)
    order = [id(g) for g in optimizer.param_groups]
    for round_, skip in enumerate(
        [["1"], ["2"], ["2", "3"], ["3"], [], ["1", "2", "3", "4", "5"], ["5"], ["2", "4"], []]
    ):
        train_steps(model, optimizer, 1, SHAPE, seed=round_)
        reference.pull(model, optimizer)
        keep = random_keep(structure, round_)
        apical.resize_(model, structure, keep, skip, optimizer=optimizer, store=store)
        reference.choose(keep, skip)
        reference.assert_matches(model, optimizer)
        assert [id(g) for g in optimizer.param_groups] == order
    assert model[3].conv1.weight is model[2].conv1.weight


@pytest.mark.parametrize(("first", "second"), [("2", "3"), ("3", "2")])
def test_a_weight_shared_by_two_blocks_lives_as_long_as_one_of_them(
    structure: Structure, first: str, second: str
) -> None:
    model, store = deep(), DormantStore()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train_steps(model, optimizer, 1, SHAPE, seed=0)
    shared = model[2].conv1.weight.detach().clone()
    moment = optimizer.state[model[2].conv1.weight]["momentum_buffer"].clone()
    keep = {"0.0": [0, 1, 3]}
    apical.resize_(model, structure, keep, [first], optimizer=optimizer, store=store)
    alive = model.get_parameter(f"{second}.conv1.weight")
    assert torch.equal(alive, shared[:, [0, 1, 3]])
    assert torch.equal(optimizer.state[alive]["momentum_buffer"], moment[:, [0, 1, 3]])
    apical.resize_(model, structure, keep, ["2", "3"], optimizer=optimizer, store=store)
    assert len(optimizer.state) == len(list(model.parameters()))
    apical.resize_(model, structure, keep, [second], optimizer=optimizer, store=store)
    alive = model.get_parameter(f"{first}.conv1.weight")
    assert torch.equal(alive, shared[:, [0, 1, 3]])
    assert torch.equal(optimizer.state[alive]["momentum_buffer"], moment[:, [0, 1, 3]])
    apical.resize_(model, structure, {}, optimizer=optimizer, store=store)
    assert model[2].conv1.weight is model[3].conv1.weight
    assert torch.equal(model[2].conv1.weight, shared)
    assert torch.equal(optimizer.state[model[2].conv1.weight]["momentum_buffer"], moment)


def test_a_shared_weight_that_trained_while_one_block_was_away(structure: Structure) -> None:
    model, store = deep(), DormantStore()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    apical.resize_(model, structure, {}, ["2"], optimizer=optimizer, store=store)
    train_steps(model, optimizer, 2, SHAPE, seed=0)
    trained = model[3].conv1.weight
    apical.resize_(model, structure, {}, optimizer=optimizer, store=store)
    assert model[2].conv1.weight is model[3].conv1.weight
    assert torch.equal(model[2].conv1.weight, trained)


def test_sizes_inside_an_absent_block_may_change_meanwhile(structure: Structure) -> None:
    model, store = deep(), DormantStore()
    before = copy.deepcopy(model.state_dict())
    apical.resize_(model, structure, {}, ["4"], store=store)
    apical.resize_(model, structure, {"4.conv1": [0, 5], "0.0": [2, 3]}, ["4"], store=store)
    apical.resize_(model, structure, {"4.conv1": [0, 5], "0.0": [2, 3]}, store=store)
    assert model[4].conv1.out_channels == model[4].conv2.in_channels == 2
    assert torch.equal(model[4].conv1.weight, before["4.conv1.weight"][[0, 5]][:, [2, 3]])
    model(image()[0])
    apical.resize_(model, structure, {}, store=store)
    assert str(model) == str(deep())


def test_train_and_eval_modes(structure: Structure) -> None:
    """Modes inside a block are its own; a switch of the whole model while it was away reaches it on return."""
    model, store = deep(), DormantStore()
    model[4].bn1.eval()  # a norm with frozen statistics
    apical.resize_(model, structure, {}, ["4"], store=store)
    apical.resize_(model, structure, {}, store=store)
    assert [m.training for m in (model[4], model[4].bn1, model[4].bn2)] == [True, False, True]
    apical.resize_(model, structure, {}, ["4"], store=store)
    model.eval()
    apical.resize_(model, structure, {}, store=store)
    assert not any(m.training for m in model.modules())


def test_skip_in_every_form(structure: Structure) -> None:
    texts = set()
    for skip in (["4", "1"], ("1", "4"), {"1", "4"}, iter(["1", "4", "1"])):
        model = deep()
        apical.resize_(model, structure, {}, skip)
        texts.add(str(model))
    assert len(texts) == 1
    model = deep()
    report = apical.resize_(model, structure, {}, "4")
    assert report.dropped == ("4",)


def test_without_a_store_a_block_is_gone(structure: Structure) -> None:
    model = deep()
    apical.resize_(model, structure, {}, ["4"])
    before = snapshot(model)
    with pytest.raises(ResizeError, match=r"4\.conv1\.weight is missing.*DormantStore"):
        apical.resize_(model, structure, {})
    with pytest.raises(ResizeError, match="DormantStore"):
        apical.resize_(model, structure, {}, ["4"])
    assert_unchanged(before, snapshot(model))


def test_order_of_parameters_after_every_return() -> None:
    """state_dict order, parameter order and optimizer order are the template's whenever everything is back."""
    net = nn.Sequential(conv(3, 8), PreActivation(8, 6), PreActivation(8, 5), nn.BatchNorm2d(8), nn.ReLU(), head(8))
    structure = apical.trace(net, image())
    names = [n for n, _ in net.named_parameters()]
    optimizer, store = optim.SGD(net.parameters(), lr=0.1), DormantStore()
    choices = [[], ["1"], ["2"], ["1", "2"], ["2"], []]
    for _, skip in pairwise(choices):
        apical.resize_(net, structure, {}, skip, optimizer=optimizer, store=store)
        live = {id(p): n for n, p in net.named_parameters()}
        present = [n for n in names if not n.startswith(tuple(f"{b}." for b in skip))]
        assert [n for n, _ in net.named_parameters()] == present
        assert [live[id(p)] for p in optimizer.param_groups[0]["params"]] == present
