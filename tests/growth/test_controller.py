"""The controllers alone: they choose networks and leave the model as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import apical
from apical.budget import Budget
from apical.growth import Choice, GrowthConfig, ScsConfig
from apical.growth._controller import Controller
from apical.growth._method import terms_of
from apical.growth._schedule import with_times
from apical.growth._scs import ScsController
from apical.models import GPT, CifarResNet
from apical.resizing._selection import Selection

EPOCHS = 10
AnyController = Controller | ScsController


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return CifarResNet(depth=14, width=8)


@pytest.fixture(scope="module")
def structure(model: nn.Module) -> apical.Structure:
    return apical.trace(model, (torch.zeros(1, 3, 16, 16),))


def make(model: nn.Module, structure: apical.Structure, config: Any, budget: str = "50% macs") -> Any:
    terms = terms_of(model, structure, Budget.of(budget), config)
    config, length = with_times(config, EPOCHS, None)
    if isinstance(config, ScsConfig):
        return ScsController(terms, config, EPOCHS, length)
    return Controller(model, terms, config, length)


def enter(controller: AnyController, present: Choice) -> None:
    """What the Grower does with a choice."""
    before = controller.components.live.clone() if controller.components.lived.any() else None
    controller.components.set_live(present.keep, present.skip)
    live = controller.components.live
    controller.applied(live & ~before if before is not None else live.clone())
    controller.components.watched.fill_(True)


def step(controller: AnyController, done: int, present: Choice, squares: torch.Tensor | None = None) -> Choice:
    """A restructuring after an epoch that measured these squares, by default 1 of every live unit and block."""
    c = controller.components
    if isinstance(controller, Controller):
        c.buffer.copy_(torch.where(c.live, 1.0 if squares is None else squares, 0.0))
        c.steps.fill_(1.0)
    controller.end_epoch()
    following = controller.next(done, Selection(present.keep, present.skip))
    enter(controller, following)
    return following


def started(controller: AnyController) -> Choice:
    present = controller.seed()
    enter(controller, present)
    return present


CONFIGS = [
    GrowthConfig(),
    GrowthConfig(seed_style="small"),
    GrowthConfig(utility="random"),
    GrowthConfig(growth_end=0.7),
    ScsConfig(sampling="budgeted"),
    ScsConfig.random(),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_it_walks_to_the_budget_and_never_touches_the_model(
    model: nn.Module, structure: apical.Structure, config: Any
) -> None:
    before = copy.deepcopy(model.state_dict())
    controller = make(model, structure, config)
    present = started(controller)
    scheduled, due = [controller.target_load], []
    for done in range(1, EPOCHS + 1):
        if controller.due(done):
            due.append(done)
            present = step(controller, done, present)
            scheduled.append(controller.target_load)
            assert present.load <= controller.target_load * 1.002
            assert present.load == pytest.approx(controller.terms.bound.load(present.keep, present.skip))
    assert scheduled == sorted(scheduled)
    assert scheduled[-1] == 1.0
    assert controller.frozen
    assert due == list(range(1, round(EPOCHS * controller.schedule.growth_end) + 1))
    assert 0.98 < present.load <= 1.002
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_component_of_the_papers_version_cools_by_its_own_age(model: nn.Module, structure: apical.Structure) -> None:
    controller = make(model, structure, ScsConfig(seed_fraction=0.3))
    present = started(controller)
    live = controller.components.live.clone()
    step(controller, 1, present)
    assert 0 < live.sum() < len(live)
    assert torch.equal(controller.beta > 1, live), "dormant components stay at β = 1"


def test_learned_scores_decide_which_units_of_a_group_stay(model: nn.Module, structure: apical.Structure) -> None:
    config = ScsConfig(sampling="budgeted", grow_depth=False)
    controller = make(model, structure, config)
    plain = started(controller)
    name = structure.groups[0].name
    absent = next(u for u in range(structure.groups[0].size) if u not in plain.keep[name])
    controller.components.values[absent] = 50.0
    assert absent in step(controller, 1, plain).keep[name]


def inner(structure: apical.Structure) -> list[int]:
    return [i for i, g in enumerate(structure.groups) if g.role == "inner"]


def test_a_group_that_is_worth_more_gets_more_units(model: nn.Module, structure: apical.Structure) -> None:
    """Than where all are worth the same; what it costs comes from the others."""
    config = GrowthConfig(seed_style="small", grow_depth=False, growth_end=1.0)
    twins = [i for i in inner(structure) if structure.groups[i].name.startswith(("layer2.1", "layer3.1"))]
    a, b = (structure.groups[i].name for i in twins)
    widths = []
    for rich in (*twins, None):
        controller = make(model, structure, config, "30% macs")
        present = started(controller)
        squares = torch.ones(len(controller.components.values), dtype=torch.float64)
        if rich is not None:
            squares[controller.components.entries(rich)] = 100.0
        for done in (1, 2, 3, 4):
            present = step(controller, done, present, squares)
        widths.append((len(present.keep[a]), len(present.keep[b])))
    assert widths[0][0] > widths[2][0]
    assert widths[1][1] > widths[2][1]
    assert widths[0][1] <= widths[2][1]
    assert widths[1][0] <= widths[2][0]


def test_the_units_of_a_group_that_are_worth_the_least_leave_first(
    model: nn.Module, structure: apical.Structure
) -> None:
    config = GrowthConfig(seed_style="small", seed_fraction=2.0, grow_depth=False, growth_end=1.0, damping=0.0)
    controller = make(model, structure, config)
    present = started(controller)
    generator = torch.Generator().manual_seed(0)
    worth = torch.rand(len(controller.components.values), dtype=torch.float64, generator=generator)
    for done in (1, 2, 3, 4, 5):
        before, present = present, step(controller, done, present, worth)
        if done == 1:
            continue  # the young are not judged
        for i, group in enumerate(structure.groups):
            values = worth[controller.components.entries(i)]
            stayed = present.keep[group.name]
            gone = sorted(set(before.keep[group.name]) - set(stayed))
            assert not gone or values[gone].max() <= values[stayed].min()
    assert all(len(present.keep[g.name]) < g.size for g in structure.groups)


@pytest.mark.parametrize("config", [*CONFIGS, ScsConfig(seed=3)], ids=str)
def test_a_choice_that_was_taken_back_is_made_again(model: nn.Module, structure: apical.Structure, config: Any) -> None:
    controller = make(model, structure, config, "50% macs, 40% params")
    present = step(controller, 1, started(controller))
    c = controller.components
    c.buffer.copy_(torch.where(c.live, torch.linspace(1, 2, len(c.live), dtype=torch.float64), 0.0))
    c.steps.fill_(2.0)
    before = controller.state_dict()
    state = copy.deepcopy(before)
    chosen = controller.next(2, Selection(present.keep, present.skip))
    assert str(controller.state_dict()) != str(state)
    controller.load_state_dict(before)
    assert str(controller.state_dict()) == str(state)
    assert controller.next(2, Selection(present.keep, present.skip)) == chosen


def test_a_seed_counts_what_can_grow_and_not_the_head_of_a_language_model() -> None:
    # the head alone costs two fifths of the budget: a quarter of the whole would be one unit everywhere
    model = GPT(vocab_size=600, context_length=8, embedding_size=32, num_layers=3, num_heads=8)
    structure = apical.trace(model, (torch.zeros(1, 8, dtype=torch.long),))
    controller = make(model, structure, GrowthConfig(), "80% macs")
    fixed = controller.terms.fixed_load
    assert fixed == pytest.approx(8 * 32 * 600 / (0.8 * structure.macs()))
    seed = controller.seed()
    assert controller.seed_load == pytest.approx(fixed + 0.25 * (1 - fixed))
    assert seed.load == pytest.approx(controller.seed_load, rel=0.05)
    assert max(len(kept) for kept in seed.keep.values()) > 10


def test_what_is_to_stay_whole_counts_as_fixed(model: nn.Module, structure: apical.Structure) -> None:
    assert make(model, structure, GrowthConfig()).terms.fixed_load == 0
    kept = make(model, structure, GrowthConfig(ignore=("layer1.0",))).terms
    group = next(g for g in structure.groups if g.name == "layer1.0.conv1")
    # the stream beside it counts as not there, so what stays whole costs nothing; the whole stem does
    stem = make(model, structure, GrowthConfig(ignore=("conv1",))).terms
    assert kept.whole[group.name] == group.size
    assert 0 < stem.fixed_load < 0.5
