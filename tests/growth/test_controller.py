"""The controller alone: it chooses networks and leaves the model as it is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import apical
from apical.budget import Budget
from apical.growth import GrowthConfig
from apical.growth._controller import Controller
from apical.growth._sampling import Choice
from apical.models import CifarResNet
from apical.resizing import Selection

EPOCHS = 10


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return CifarResNet(depth=14, width=8)


@pytest.fixture(scope="module")
def structure(model: nn.Module) -> apical.Structure:
    return apical.trace(model, (torch.zeros(1, 3, 16, 16),))


def make(model: nn.Module, structure: apical.Structure, config: GrowthConfig) -> Controller:
    return Controller(model, structure, Budget.of("50% macs"), config, EPOCHS, EPOCHS)


def step(controller: Controller, done: int, present: Choice) -> Choice:
    """A restructuring after an epoch that taught nothing."""
    controller.components.set_live(present.keep, present.skip)
    controller.components.age += controller.components.live.double()
    return controller.next(done, done, Selection(present.keep, present.skip))


@pytest.mark.parametrize("config", [GrowthConfig(), GrowthConfig(seed_style="small"), GrowthConfig.scs()])
def test_it_walks_to_the_budget_and_never_touches_the_model(
    model: nn.Module, structure: apical.Structure, config: GrowthConfig
) -> None:
    before = copy.deepcopy(model.state_dict())
    controller = make(model, structure, config)
    present = controller.seed()
    scheduled, due = [controller.target_load], []
    for done in range(1, EPOCHS + 1):
        if controller.due(done):
            due.append(done)
            present = step(controller, done, present)
            scheduled.append(controller.target_load)
    assert scheduled == sorted(scheduled)
    assert scheduled[-1] == 1.0
    assert controller.frozen
    assert due == list(range(1, round(EPOCHS * config.freeze) + 1))
    assert 0.98 < present.load <= 1.002
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_component_cools_by_its_own_age(model: nn.Module, structure: apical.Structure) -> None:
    controller = make(model, structure, GrowthConfig())
    step(controller, 1, controller.seed())
    live = controller.components.live
    assert 0 < live.sum() < len(live)
    assert torch.equal(controller.beta > 1, live), "dormant components stay at β = 1"


def test_learned_scores_decide_which_units_of_a_group_stay(model: nn.Module, structure: apical.Structure) -> None:
    config = GrowthConfig(seed_style="small", grow_depth=False)
    controller = make(model, structure, config)
    plain = controller.seed()
    name = structure.groups[0].name
    absent = next(u for u in range(structure.groups[0].size) if u not in plain.keep[name])
    controller.components.scores[absent] = 50.0
    assert absent in step(controller, 1, plain).keep[name]


def test_a_saved_controller_goes_on_as_the_first(model: nn.Module, structure: apical.Structure) -> None:
    config = replace(GrowthConfig.scs(), seed=3)
    first = make(model, structure, config)
    present = step(first, 1, first.seed())
    second = make(model, structure, config)
    second.load_state_dict(first.state_dict(), config)
    second.components.set_live(present.keep, present.skip)
    for done in (2, 3, 9):
        a, b = step(first, done, present), step(second, done, present)
        assert (a, first.target_load) == (b, second.target_load)
        assert torch.equal(first.beta, second.beta)
        assert torch.equal(first.penalty, second.penalty)
        present = a
