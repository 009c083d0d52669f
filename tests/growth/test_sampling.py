"""Sampled networks: within the budget, monotone in it, rounded, and stable while noise and scores stay."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apical import Budget, Structure, models, trace
from apical.budget import BoundBudget
from apical.growth import Choice, uniform_widths
from apical.growth._sampling import TOLERANCE, Limits, Sampler
from structure.nets import Net, recurrent, tiny_resnet

WIDE = {
    "mlp": lambda: (nn.Sequential(nn.Linear(20, 600), nn.ReLU(), nn.Linear(600, 500), nn.ReLU(), nn.Linear(500, 5)),
                    torch.zeros(1, 20)),
    "residual": lambda: (models.CifarResNet(14, width=24), torch.zeros(1, 3, 8, 8)),
    "recurrent": lambda: (Net(lambda m, x: m.fc(m.b(torch.relu(m.a(x)))[0]), a=nn.Linear(4, 250),
                              b=nn.LSTM(250, 300, batch_first=True), fc=nn.Linear(300, 3)), torch.zeros(1, 3, 4)),
}  # fmt: skip
NARROW = {
    "tiny": lambda: (tiny_resnet(), torch.zeros(1, 3, 8, 8)),
    "lstm": lambda: (recurrent("LSTM"), torch.zeros(1, 5, 3)),
    "gpt": lambda: (models.GPT(13, 8, 24, 3, 4), torch.zeros(1, 8, dtype=torch.long)),
}


@cache
def structure_of(name: str) -> Structure:
    torch.manual_seed(0)
    model, example = (WIDE | NARROW)[name]()
    return trace(model, example)


def sampler_of(name: str, budget: str, divisor: int = 1, min_units: int = 1) -> Sampler:
    structure = structure_of(name)
    limits = Limits.of(structure, divisor, min_units)
    least = {g.name: n for g, n in zip(structure.groups, limits.least, strict=True)}
    return Sampler(BoundBudget(Budget(budget), structure, minimum=least), limits)


def entries(structure: Structure) -> int:
    return sum(g.size for g in structure.groups) + len(structure.blocks)


def draws(structure: Structure, seed: int, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, temperatures, noise."""
    generator = torch.Generator().manual_seed(seed)
    n = entries(structure)
    scores = spread * torch.randn(n, generator=generator, dtype=torch.float64)
    beta = 1 + 20 * torch.rand(n, generator=generator, dtype=torch.float64)
    return scores, beta, torch.rand(n, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)


def smallest(sampler: Sampler) -> float:
    least = {g.name: n for g, n in zip(sampler.structure.groups, sampler.limits.least, strict=True)}
    return sampler.bound.load(least, [b.name for b in sampler.structure.blocks])


def check_valid(sampler: Sampler, choice: Choice) -> None:
    for group, least, step in zip(sampler.structure.groups, sampler.limits.least, sampler.limits.step, strict=True):
        kept = choice.keep[group.name]
        assert kept == sorted(set(kept))
        assert set(kept) <= set(range(group.size))
        assert len(kept) >= least
        assert len(kept) == group.size or len(kept) % step == 0
    assert choice.load == pytest.approx(sampler.bound.load(choice.keep, choice.skip))


def grown_by_one(sampler: Sampler, choice: Choice) -> list[float]:
    """Loads of all networks with one step more in one group."""
    widths = {name: len(kept) for name, kept in choice.keep.items()}
    loads = []
    for group, step in zip(sampler.structure.groups, sampler.limits.step, strict=True):
        more = min(group.size, widths[group.name] + step)
        load = sampler.bound.load(widths | {group.name: more}, choice.skip)
        if load > choice.load:  # not full, nor in a block that is left out
            loads.append(load)
    return loads


seeds, spreads = st.integers(0, 2**31), st.sampled_from([0.0, 0.01, 0.3, 3.0])


@pytest.mark.parametrize("name", WIDE)
@given(seed=seeds, spread=spreads, load=st.floats(0.35, 1.0))
@example(seed=3558, spread=0.0, load=0.8125)  # all widths whole, three blocks absent: one of them must come
def test_wide_networks_cost_what_is_scheduled_within_half_a_percent(
    name: str, seed: int, spread: float, load: float
) -> None:
    sampler = sampler_of(name, "60% macs")
    choice = sampler.budgeted(*draws(sampler.structure, seed, spread), load)
    assert 0.995 * load <= choice.load <= (1 + TOLERANCE) * load


@pytest.mark.parametrize("name", [*WIDE, *NARROW])
@given(
    seed=seeds, spread=spreads, load=st.floats(0.01, 1.0), divisor=st.sampled_from([1, 2, 4, 8]),
    min_units=st.integers(1, 3), budget=st.sampled_from(["90% macs", "90% params", "95% params, 90% macs"]),
)  # fmt: skip
@settings(max_examples=20)
def test_every_network_is_valid_and_as_large_as_the_schedule_allows(
    name: str, seed: int, spread: float, load: float, divisor: int, min_units: int, budget: str
) -> None:
    """Never dearer than scheduled (unless nothing is cheaper), and no further step would fit."""
    sampler = sampler_of(name, budget, divisor, min_units)
    choice = sampler.budgeted(*draws(sampler.structure, seed, spread), load)
    check_valid(sampler, choice)
    assert choice.load <= max((1 + TOLERANCE) * load, smallest(sampler) * (1 + 1e-12))
    assert all(more > (1 + TOLERANCE) * load for more in grown_by_one(sampler, choice))


@pytest.mark.parametrize("name", ["mlp", "residual", "tiny", "gpt"])
@given(seed=seeds, spread=spreads, divisor=st.sampled_from([1, 4]))
@settings(max_examples=10)
def test_the_cost_rises_with_the_schedule(name: str, seed: int, spread: float, divisor: int) -> None:
    sampler = sampler_of(name, "80% macs", divisor)
    drawn = draws(sampler.structure, seed, spread)
    loads = [sampler.budgeted(*drawn, 0.05 * i).load for i in range(1, 21)]
    assert all(b >= a * (1 - TOLERANCE) for a, b in pairwise(loads))


@pytest.mark.parametrize("name", ["residual", "tiny", "gpt"])
@given(seed=seeds, load=st.floats(0.2, 1.0))
@settings(max_examples=15)
def test_small_changes_of_the_scores_change_nothing(name: str, seed: int, load: float) -> None:
    sampler = sampler_of(name, "70% macs")
    scores, beta, noise = draws(sampler.structure, seed, 0.3)
    critical = torch.sort(torch.logit(noise) - beta * scores).values
    tiny = float(torch.diff(critical).min()) / 50
    nudge = tiny * (2 * torch.rand(len(scores), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)
    before = sampler.budgeted(scores, beta, noise, load)
    after = sampler.budgeted(scores + nudge, beta, noise, load)
    assert (before.keep, before.skip) == (after.keep, after.skip)


@pytest.mark.parametrize("name", ["residual", "tiny", "gpt"])
@given(seed=seeds, load=st.floats(0.2, 1.0), which=st.integers(0, 2**31), change=st.floats(-2, 2))
@settings(max_examples=15)
def test_one_moved_score_exchanges_no_others(name: str, seed: int, load: float, which: int, change: float) -> None:
    """With fixed noise the others come or go in their own order: their kept sets are nested."""
    sampler = sampler_of(name, "70% macs")
    scores, beta, noise = draws(sampler.structure, seed, 0.3)
    moved = scores.clone()
    moved[which % len(scores)] += change
    before, after = (sampler.budgeted(s, beta, noise, load) for s in (scores, moved))
    offset = 0
    for group in sampler.structure.groups:
        kept = [set(choice.keep[group.name]) - {which % len(scores) - offset} for choice in (before, after)]
        assert kept[0] <= kept[1] or kept[1] <= kept[0]
        offset += group.size


@given(seed=seeds, load=st.floats(0.35, 1.0), pinned=st.sets(st.integers(0, 13), min_size=1, max_size=4))
@settings(max_examples=15)
def test_pinned_components_stay_or_stay_away(seed: int, load: float, pinned: set[int]) -> None:
    sampler = sampler_of("residual", "70% macs")
    structure = sampler.structure
    scores, beta, noise = draws(structure, seed, 1.0)
    offset, width, name = 0, 5, structure.groups[3].name
    for i, group in enumerate(structure.groups):
        if i == 3:
            scores[offset : offset + group.size] = -float("inf")
            scores[offset : offset + width] = float("inf")
        offset += group.size
    chosen = [i for i in sorted(pinned) if i < len(structure.blocks)]
    for i in chosen:
        scores[offset + i] = float("inf") if i % 2 else -float("inf")
    choice = sampler.budgeted(scores, beta, noise, load)
    assert choice.keep[name] == list(range(width))
    for i in chosen:
        assert (structure.blocks[i].name in choice.skip) == (i % 2 == 0)
    independent = sampler.independent(scores, beta, noise)
    assert independent.keep[name] == list(range(width))


@given(seed=seeds)
@settings(max_examples=15)
def test_independent_samples_follow_each_score(seed: int) -> None:
    sampler = sampler_of("mlp", "70% macs")
    scores, beta, noise = draws(sampler.structure, seed, 0.5)
    present = (noise < torch.sigmoid(beta * scores)).split([g.size for g in sampler.structure.groups])
    choice = sampler.independent(scores, beta, noise)
    assert list(choice.keep.values()) == [p.nonzero().flatten().tolist() for p in present]


def test_equal_scores_share_the_budget_in_proportion() -> None:
    """Stratified noise: every group keeps the same fraction, within one unit."""
    sampler = sampler_of("mlp", "50% macs")
    noise = torch.cat([(torch.randperm(g.size).double() + 0.5) / g.size for g in sampler.structure.groups])
    choice = sampler.budgeted(torch.zeros_like(noise), torch.ones_like(noise), noise, 1.0)
    first, second = (len(choice.keep[g.name]) / g.size for g in sampler.structure.groups)
    assert abs(first - second) < 0.01


def test_limits_round_as_documented() -> None:
    structure = structure_of("tiny")
    sizes = [g.size for g in structure.groups]
    assert sizes == [8, 6, 10, 12, 7]
    limits = Limits.of(structure, divisor=4, min_units=3)
    assert limits.step == (4, 1, 4, 4, 1)  # groups smaller than two steps are not rounded
    assert limits.least == (4, 3, 4, 4, 3)
    assert limits.rounded([7, 5, 10, 11, 1], sizes) == [4, 5, 10, 8, 3]
    assert Limits.of(structure, divisor=4, min_units=6).least == (8, 6, 8, 8, 6)
    assert Limits.of(structure, divisor=1, min_units=99).least == tuple(sizes)


@pytest.mark.parametrize("name", [*WIDE, "tiny"])
def test_uniform_widths_share_one_ratio(name: str) -> None:
    sampler = sampler_of(name, "50% macs")
    widths = uniform_widths(sampler.bound)
    assert sampler.bound.load(widths) <= 1 + TOLERANCE
    full = {g.name: g.size for g in sampler.structure.groups}
    ratios = [widths[n] / full[n] for n in full]
    assert max(ratios) - min(ratios) <= max(1 / size for size in full.values()) + 0.1
    assert uniform_widths(sampler_of(name, "100% macs").bound) == full


def test_the_nearest_multiple_is_within_half_a_step() -> None:
    limits = Limits(least=(4, 1, 8), step=(4, 1, 8))
    assert limits.nearest([5, 3, 3], [16, 5, 20]) == [4, 3, 8]
    assert limits.nearest([6, 5, 17], [16, 5, 20]) == [8, 5, 16]
    assert limits.nearest([14, 1, 19], [15, 5, 20]) == [15, 1, 16]  # never above the size
    assert limits.nearest([15, 1, 20], [15, 5, 20]) == [15, 1, 20]  # whole groups stay whole


@pytest.mark.parametrize("name", ["mlp", "residual", "tiny"])
@given(seed=seeds, load=st.floats(0.3, 1.0), divisor=st.sampled_from([1, 4, 16]))
@settings(max_examples=15)
def test_an_exact_sample_exchanges_one_step_at_most_and_comes_nearer(
    name: str, seed: int, load: float, divisor: int
) -> None:
    sampler = sampler_of(name, "70% macs", divisor)
    drawn = draws(sampler.structure, seed, 0.3)
    plain, exact = sampler.budgeted(*drawn, load), sampler.budgeted(*drawn, load, exact=True)
    check_valid(sampler, exact)
    assert plain.skip == exact.skip
    assert plain.load <= exact.load <= max(plain.load, (1 + TOLERANCE) * load)
    if plain.load >= load * 0.995:
        assert exact == plain
    changed = [n for n in plain.keep if plain.keep[n] != exact.keep[n]]
    steps = [s for g, s in zip(sampler.structure.groups, sampler.limits.step, strict=True) if g.name in changed]
    assert len(changed) in (0, 2)
    assert all(abs(len(plain.keep[n]) - len(exact.keep[n])) == s for n, s in zip(changed, steps, strict=True))


def test_pinned_groups_are_not_exchanged() -> None:
    sampler = sampler_of("tiny", "50% macs")
    for seed in range(20):
        scores, beta, noise = draws(sampler.structure, seed, 0.3)
        scores[:8] = float("inf")
        scores[4:8] = -float("inf")
        choice = sampler.budgeted(scores, beta, noise, 1.0, exact=True)
        assert choice.keep[sampler.structure.groups[0].name] == [0, 1, 2, 3]
