"""Keep-all changes nothing, and every walk through sizes is what full-size arrays with positions say."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import apical
from apical import DormantStore, Structure
from resizing.reference import Reference, assert_unchanged, snapshot, train_steps
from structure.contract import random_keep, random_skip
from structure.nets import (
    Net,
    PreActivation,
    SqueezeExcite,
    ZeroPadShortcut,
    conv,
    head,
    recurrent,
    tiny_resnet,
    unit,
)

Build = Callable[[], nn.Module]


def zero_pad_net() -> nn.Module:
    return nn.Sequential(unit(3, 4), ZeroPadShortcut(4, 8, 6), head(8))


def mobile_net() -> nn.Module:
    """Depthwise, squeeze-excite, grouped convolutions, pixel shuffle."""
    return nn.Sequential(
        unit(3, 8),
        unit(8, 8, groups=8),
        SqueezeExcite(8, 4),
        unit(8, 12, groups=4),
        unit(12, 8, 1),
        nn.PixelShuffle(2),
        head(2),
    )


def pre_activation_net() -> nn.Module:
    return nn.Sequential(conv(3, 8), PreActivation(8, 6), PreActivation(8, 5), nn.BatchNorm2d(8), nn.ReLU(), head(8))


def shared_net() -> nn.Module:
    """A weight under two names, and one module called twice."""
    net = Net(
        lambda m, x: m.fc(m.b(m.c(m.b(m.a(x))))),
        a=unit(3, 6), b=unit(6, 6), c=nn.Sequential(conv(6, 6, bias=False), nn.ReLU()), fc=head(6),
    )  # fmt: skip
    net.c[0].weight = net.b[0].weight
    return net


IMAGES = (4, 3, 8, 8)
SEQUENCES = (2, 5, 3)
NETS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "resnet": (tiny_resnet, IMAGES),
    "zero_pad": (zero_pad_net, IMAGES),
    "mobile": (mobile_net, IMAGES),
    "pre_activation": (pre_activation_net, IMAGES),
    "shared": (shared_net, IMAGES),
    "lstm": (lambda: recurrent("LSTM", 2, True), SEQUENCES),
    "gru": (lambda: recurrent("GRU"), SEQUENCES),
}


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


@cache
def structure_of(name: str) -> Structure:
    """Traced once."""
    build, shape = NETS[name]
    with torch.random.fork_rng():
        return apical.trace(build(), torch.zeros(shape))


@pytest.mark.parametrize("name", NETS)
def test_keep_all_changes_nothing(name: str) -> None:
    build, shape = NETS[name]
    model, structure = build(), structure_of(name)
    optimizer = sgd(model)
    train_steps(model, optimizer, 2, shape, seed=0)
    before = snapshot(model, [optimizer])
    everything = {g.name: range(g.size) for g in structure.groups}
    for keep, store in itertools.product(({}, everything), (None, DormantStore())):
        report = apical.resize_(model, structure, keep, optimizer=optimizer, store=store)
        assert report.changed == ()
        assert report.attributes == {}
        assert report.sizes == {g.name: g.size for g in structure.groups}
    assert_unchanged(before, snapshot(model, [optimizer]))


def test_the_same_choice_again_changes_nothing() -> None:
    model = tiny_resnet()
    optimizer, store = sgd(model), DormantStore()
    structure = structure_of("resnet")
    train_steps(model, optimizer, 2, IMAGES, seed=0)
    keep, skip = random_keep(structure, 1), ["3"]
    apical.resize_(model, structure, keep, skip, optimizer=optimizer, store=store)
    before = snapshot(model, [optimizer], store)
    report = apical.resize_(model, structure, keep, skip, optimizer=optimizer, store=store)
    assert report.changed == report.dropped == report.restored == ()
    assert_unchanged(before, snapshot(model, [optimizer], store))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", NETS)
def test_a_walk_with_training_in_between(name: str, seed: int) -> None:
    """Six choices at random, two training steps at each: values, statistics and moments as the reference says."""
    torch.manual_seed(seed)
    build, shape = NETS[name]
    model, structure, store = build(), structure_of(name), DormantStore()
    optimizer: Optimizer = AdamW(model.parameters(), lr=0.01, amsgrad=True) if seed else sgd(model)
    reference = Reference.of(structure, model, optimizer)
    for round_ in range(6):
        train_steps(model, optimizer, 2, shape, seed=round_)
        reference.pull(model, optimizer)
        keep, skip = random_keep(structure, 10 * seed + round_), random_skip(structure, 10 * seed + round_)
        apical.resize_(model, structure, keep, skip, optimizer=optimizer, store=store)
        reference.choose(keep, skip)
        reference.assert_matches(model, optimizer)
    train_steps(model, optimizer, 1, shape, seed=99)
    reference.pull(model, optimizer)
    apical.resize_(model, structure, {}, optimizer=optimizer, store=store)
    reference.choose({}, ())
    reference.assert_matches(model, optimizer)


def test_untouched_tensors_stay_the_same_objects(structure: Structure) -> None:
    model = tiny_resnet()
    before = dict(model.named_parameters())
    report = apical.resize_(model, structure, {"1.conv1": [0, 3]})
    changed = {c.name for c in report.changed}
    assert changed == {
        "1.conv1.weight",
        "1.conv2.weight",
        *(f"1.bn1.{t}" for t in ("weight", "bias", "running_mean", "running_var")),
    }
    for name, parameter in model.named_parameters():
        assert (parameter is before[name]) == (name not in changed)


def test_what_is_returned_says_what_happened(structure: Structure) -> None:
    model, store = tiny_resnet(), DormantStore()
    report = apical.resize_(model, structure, {"1.conv1": [0, 3]}, ["3"], store=store)
    (change,) = [c for c in report.changed if c.name == "1.conv1.weight"]
    assert (change.before, change.after) == ((6, 8, 3, 3), (2, 8, 3, 3))
    assert report.dropped == ("3",)
    assert report.restored == ()
    assert report.attributes == {"1.conv1.out_channels": 2, "1.bn1.num_features": 2, "1.conv2.in_channels": 2}
    assert report.sizes["1.conv1"] == 2
    assert report.seconds > 0
    assert "dropped 3" in str(report)
    report = apical.resize_(model, structure, {}, store=store)
    assert report.restored == ("3",)
    assert "restored 3" in str(report)


def test_positions_in_every_form() -> None:
    template = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    structure = apical.trace(template, torch.zeros(1, 3))
    texts = set()
    forms: list[Any] = [[1, 5], (1, 5), range(1, 6, 4), torch.tensor([1, 5]), torch.tensor([1, 5], dtype=torch.int32)]
    forms += [np.array([1, 5]), (np.int64(1), np.int64(5))]
    for positions in forms:
        model = copy.deepcopy(template)
        apical.resize_(model, structure, {"0": positions})
        texts.add(str(model))
        assert torch.equal(model[0].weight, template[0].weight[[1, 5]])
        assert torch.equal(model[2].weight, template[2].weight[:, [1, 5]])
    assert len(texts) == 1
