"""Probes measure the loss without some units, leave the model as it is, and decide what the probed method grows."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import apical
from apical.growth import _plan
from apical.growth._controller import Controller
from apical.models import CifarResNet
from benchmark_script import random_images, script

probes, learning = script("probes"), script("learning")


def test_a_probe_is_the_loss_with_units_switched_off_less_the_loss_without() -> None:
    torch.manual_seed(0)
    model = CifarResNet(depth=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grower = apical.Grower(model, optimizer, random_images()[0][:1], "50% macs", epochs=8)
    method = grower._restructuring.method
    (observer,) = grower._growing.observers(method.components, method.reads_shifts)
    group = grower.structure.group("layer1.0.conv1")
    at = method.components.offsets[grower.structure.groups.index(group)]
    kept = grower._growing.selection.keep[group.name]
    before = copy.deepcopy(model.state_dict())
    probe = probes.Probe(model, observer, *random_images(), torch.Generator().manual_seed(1))
    rise, error = probe.rise([at + kept[0]])
    by_hand = copy.deepcopy(model).train()
    with torch.no_grad():
        by_hand.layer1[0].bn1.weight[0] = by_hand.layer1[0].bn1.bias[0] = 0.0
        losses = [
            [float(nn.functional.cross_entropy(net.train()(x), y)) for x, y in probe._batches]
            for net in (copy.deepcopy(model), by_hand)
        ]
    differences = torch.tensor(losses[1]) - torch.tensor(losses[0])
    assert rise == pytest.approx(float(differences.mean()), abs=1e-6)
    assert error > 0
    assert float(probe.rise([])[0]) == 0.0, "what was switched off is on again"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_least_useful_units_are_switched_off_and_one_more_is_worth_less_than_their_mean(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[int]] = []

    class Recorded:
        def __init__(self, *_: Any) -> None: ...

        def rise(self, entries: list[int]) -> tuple[float, float]:
            asked.append(list(entries))
            return 0.5 * len(entries), 0.0

    monkeypatch.setattr(probes, "Probe", Recorded)
    torch.manual_seed(0)
    model = CifarResNet(depth=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with probes.probed(*random_images()):
        grower = apical.Grower(model, optimizer, random_images()[0][:1], "50% macs", epochs=8)
    method = grower._restructuring.method
    c, present = method.components, grower._growing.selection
    c.age += c.live * 5
    c.values.copy_(torch.arange(len(c.values)))  # within a group, the first units are the least useful
    method._counts = [len(present.keep[group.name]) for group in grower.structure.groups]
    method._skip = ()
    method._measure()
    for i, group in enumerate(grower.structure.groups):
        live = [c.offsets[i] + k for k in sorted(present.keep[group.name])]
        off = next(entries for entries in asked if entries[0] in live)
        assert sorted(off) == live[: len(off)]
        assert 1 <= len(off) <= len(live) // 2
        # a rise of ½ for each unit, and what is left of a / n at n − k
        assert method._logs[group.name] == pytest.approx(math.log(0.5 * (len(live) - len(off)) / len(live)))


def test_the_probed_method_grows_by_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = dataclasses.replace(
        learning.SETTINGS["resnet20-16"], build=lambda: CifarResNet(depth=8), epochs=3, train=384, held_out=128,
        amp=False,
    )  # fmt: skip
    monkeypatch.setitem(learning.SETTINGS, "resnet20-16", setting)
    monkeypatch.setattr(learning, "images", random_images)
    out = tmp_path / "runs.jsonl"
    arguments = ["--setting", "resnet20-16", "--seeds", "10", "--out", str(out), "--set", "growth_end=0.7"]
    monkeypatch.setattr(sys, "argv", ["learning.py", *arguments, "--methods", "learned", "probed"])
    learning.main()
    squares, probed = [json.loads(line) for line in out.read_text().splitlines()]
    assert squares["macs_fraction"] == pytest.approx(0.5, abs=0.01)
    assert probed["macs_fraction"] == pytest.approx(0.5, abs=0.01)
    assert squares["last"]["widths"] != probed["last"]["widths"]
    assert probed["probe_seconds"] > 0
    assert squares["probe_seconds"] is None
    assert _plan.Controller is Controller, "only within the run"
