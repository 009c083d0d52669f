"""Where growth leads: blocks that are left out from the start, and balanced widths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import apical
from apical.budget import BoundBudget, Budget
from apical.errors import ConfigError
from apical.growth._balance import balanced_widths
from apical.growth._depth import compound_skip, dearest_first
from apical.growth._sampling import uniform_widths
from apical.models import GPT, CifarResNet, vgg16

IMAGE = (torch.zeros(1, 3, 32, 32),)


@pytest.fixture(scope="module")
def resnet20() -> apical.Structure:
    return apical.trace(CifarResNet(depth=20), IMAGE)


@pytest.fixture(scope="module")
def vgg() -> apical.Structure:
    return apical.trace(vgg16(), IMAGE)


def bound(structure: apical.Structure, budget: str) -> BoundBudget:
    return BoundBudget(Budget.of(budget), structure)


@pytest.mark.parametrize(("budget", "share", "expected"), [
    ("50% macs", 0.0, []),
    ("50% macs", 0.5, ["layer1.2", "layer1.1", "layer1.0"]),
    ("50% macs", 1.0, ["layer1.2", "layer1.1", "layer1.0", "layer2.2"]),
    ("50% params", 1.0, ["layer1.2", "layer3.2", "layer2.2", "layer1.1"]),
])  # fmt: skip
def test_stages_that_are_dear_give_up_their_blocks_first_and_equal_ones_in_turn(
    resnet20: apical.Structure, budget: str, share: float, expected: list[str]
) -> None:
    assert list(compound_skip(bound(resnet20, budget), share, ())) == expected


def test_the_order_keeps_the_most_parameters_for_the_budget(resnet20: apical.Structure) -> None:
    """No other choice of as many blocks has as few MACs and more parameters."""
    for count in range(1, 7):
        chosen = list(dearest_first(bound(resnet20, "50% macs")))[:count]
        macs, params = resnet20.macs({}, chosen), resnet20.num_params({}, chosen)
        for other in itertools.combinations([block.name for block in resnet20.blocks], count):
            assert resnet20.macs({}, other) > macs or resnet20.num_params({}, other) <= params, other


def test_blocks_of_one_stream_leave_from_the_last_although_they_differ_in_price() -> None:
    """Attention costs more for a parameter than the layers between; a transformer must not lose all of it first."""
    model = GPT(32, context_length=64, embedding_size=16, num_layers=3, num_heads=2)
    structure = apical.trace(model, (torch.zeros(1, 64, dtype=torch.long),))
    names = [block.name for block in structure.blocks]
    assert list(dearest_first(bound(structure, "50% macs"))) == names[::-1]


def test_what_depth_leaves_is_nearest_to_its_share(resnet20: apical.Structure) -> None:
    budget = bound(resnet20, "40% macs")
    chosen = compound_skip(budget, 0.7, ())
    goal = 0.4**0.7
    costs = [budget.load({}, chosen[:k]) / budget.load({}) for k in range(len(chosen) + 1)]
    assert min(costs, key=lambda c: abs(math.log(c / goal))) == costs[-1]


def test_blocks_that_stay_are_not_left_out(resnet20: apical.Structure) -> None:
    names = [block.name for block in resnet20.blocks]
    assert "layer1.2" not in compound_skip(bound(resnet20, "50% macs"), 1.0, ["layer1.2"])
    assert compound_skip(bound(resnet20, "50% macs"), 1.0, names) == ()


def test_a_whole_budget_leaves_out_nothing(resnet20: apical.Structure) -> None:
    assert compound_skip(bound(resnet20, "100% macs"), 1.0, ()) == ()


def test_balanced_widths_use_both_of_two_limits_where_one_ratio_wastes_one(vgg: apical.Structure) -> None:
    budget = bound(vgg, "13.6% macs, 5% params")
    least = {g.name: 1 for g in vgg.groups}
    one_ratio = budget.loads(uniform_widths(budget))
    balanced = budget.loads(balanced_widths(budget, least))
    assert min(one_ratio) < 0.4
    assert min(balanced) > 0.75
    assert max(balanced) <= 1


def test_no_exchange_between_balanced_widths_pays(vgg: apical.Structure) -> None:
    budget = bound(vgg, "30% macs")
    widths = balanced_widths(budget, {g.name: 1 for g in vgg.groups})
    full = {g.name: g.size for g in vgg.groups}

    def loss(w: dict[str, int]) -> float:
        return sum(full[n] / w[n] for n in w)

    for a in widths:
        for b in widths:
            trial = {**widths, a: round(0.9 * widths[a]), b: min(full[b], round(1.1 * widths[b]))}
            if a != b and budget.load(trial) <= budget.load(widths):
                assert loss(trial) > loss(widths) - 0.15, (a, b)


def test_balanced_widths_keep_to_what_is_fixed_and_to_the_least(vgg: apical.Structure) -> None:
    budget = bound(vgg, "10% params")
    names = [g.name for g in vgg.groups]
    least = {g.name: 16 for g in vgg.groups}
    widths = balanced_widths(budget, least, (), {names[0]: 64, names[-1]: 512})
    assert (widths[names[0]], widths[names[-1]]) == (64, 512)
    assert min(widths.values()) >= 16
    assert budget.load(widths) <= 1


def test_equal_scores_grow_to_the_balanced_widths() -> None:
    torch.manual_seed(0)
    model = vgg16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grower = apical.Grower(model, optimizer, IMAGE, "13.6% macs, 5% params", 4, widths="balanced", score_lr=0.0)
    goal = balanced_widths(grower.bound, {g.name: 1 for g in grower.structure.groups})
    for _ in range(4):
        record = grower.end_epoch()
    for name, width in record["widths"].items():
        assert abs(width - goal[name]) <= 0.06 * goal[name] + 1
    assert 0.99 <= record["params_fraction"] / 0.05 <= 1.003


def test_streams_are_moved_to_the_nearest_multiple_and_inner_widths_use_up_the_budget() -> None:
    torch.manual_seed(0)
    model = CifarResNet(depth=20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    grower = apical.Grower(model, optimizer, IMAGE, "50% macs", 4, depth_share=0.5, divisor=8, score_lr=0.0)
    streams = {g.name: len(grower.keep[g.name]) for g in grower.structure.groups if g.role == "stream"}
    assert list(streams.values()) == [16, 32, 56]
    for _ in range(4):
        record = grower.end_epoch()
    assert 0.98 <= record["macs_fraction"] / 0.5 <= 1.003
    assert all(width % 8 == 0 for width in record["widths"].values())
    assert record["blocks"] == 4


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_depth_share_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match=r"depth_share must be in \[0, 1\]"):
        apical.GrowthConfig(depth_share=value)


def test_balanced_widths_need_noise_that_is_drawn_once() -> None:
    with pytest.raises(ConfigError, match="drawn once, got noise='fresh'"):
        apical.GrowthConfig.scs(widths="balanced")
