"""The comparators that never restructure: dense and uniform."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from apical import models, trace
from apical.baselines import Comparator, Uniform, uniform_keep
from apical.budget import BoundBudget, Budget
from apical.errors import BudgetError, CheckpointError
from apical.growth._widths import Limits, fit

pytestmark = pytest.mark.usefixtures("traced_once")

IMAGE = torch.zeros(1, 3, 16, 16)


def net() -> nn.Module:
    return models.CifarResNet(8, width=16)


@pytest.mark.parametrize("budget", ["50% macs", "20% params", "30% macs, 60% params", "1M macs"])
def test_uniform_meets_its_budget_within_one_percent(budget: str) -> None:
    model = net()
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    method = Comparator(Uniform(), model, sgd, (IMAGE,), budget, 1)
    record = method.end_epoch()
    reached = {
        "50% macs": record["macs_fraction"] / 0.5,
        "20% params": record["params_fraction"] / 0.2,
        "30% macs, 60% params": max(record["macs_fraction"] / 0.3, record["params_fraction"] / 0.6),
        "1M macs": record["macs"] / 1e6,
    }[budget]
    assert 0.99 <= reached <= 1
    assert record["num_params"] == sum(p.numel() for p in model.parameters())
    assert record["widths"] == {g.name: g.size for g in trace(model, IMAGE).groups}
    ratios = [record["widths"][g.name] / g.size for g in method.structure.groups]
    assert max(ratios) - min(ratios) < 0.15  # one step of the narrowest group


def test_uniform_trains_its_first_channels_and_its_copies_follow() -> None:
    model = net()
    twin, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    method = Comparator(Uniform(), model, sgd, IMAGE, "50% macs", 1, copies=[twin])
    width = method.end_epoch()["widths"]["conv1"]
    assert torch.equal(model.conv1.weight, before["conv1.weight"][:width])
    assert torch.equal(twin.conv1.weight, model.conv1.weight)
    assert sum(len(g["params"]) for g in sgd.param_groups) == len(list(model.parameters()))
    Comparator(Uniform(), net(), None, IMAGE, "50% macs", 1).load_state_dict(method.state_dict())
    with pytest.raises(CheckpointError, match="another budget"):
        Comparator(Uniform(), net(), None, IMAGE, "40% macs", 1).load_state_dict(method.state_dict())


def test_uniform_respects_the_divisor_or_says_that_it_cannot() -> None:
    structure = trace(models.CifarResNet(8, width=32), IMAGE)
    assert all(width % 4 == 0 for width in uniform_keep(structure, "50% macs", divisor=4).values())
    with pytest.raises(BudgetError, match="no network meets the budget"):
        uniform_keep(structure, "1% macs", divisor=16)
    assert uniform_keep(structure, "1% macs")
    with pytest.raises(BudgetError, match="no network meets the budget"):
        uniform_keep(structure, "0.001% macs")


def test_uniform_rounds_as_the_grower_does() -> None:
    """A group of fewer than two steps is not rounded: 9 units of 12 stay here under a divisor of 8, not 8."""
    model = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3))
    structure = trace(model, torch.zeros(1, 3))
    bound, sizes = BoundBudget(Budget("50% macs"), structure), [g.size for g in structure.groups]
    grown = fit(bound, Limits.of(structure, 8, 1), sizes, (), 1.0)
    assert list(uniform_keep(structure, "50% macs", 8).values()) == list(grown.counts) == [9, 24]
