"""The closed forms against autograd through explicit gates, and the properties that the method relies on."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from apical import gates
from apical.errors import BudgetError, ConfigError, TrainingError

finite = st.floats(-20, 20)


def vectors(elements: st.SearchStrategy[float], size: int | None = None) -> st.SearchStrategy[Tensor]:
    lists = st.lists(elements, min_size=size or 1, max_size=size or 12)
    return lists.map(lambda values: torch.tensor(values, dtype=torch.float64))


def explicit_forward(x: Tensor, weights: dict[str, Tensor], mask: Tensor) -> Tensor:
    """The oracle: conv - norm - relu - linear with the mask multiplying the norm's scale and shift in the forward."""
    h = F.conv2d(x, weights["conv"])
    h = F.batch_norm(h, None, None, mask * weights["scale"], mask * weights["bias"], training=True)
    return F.linear(F.relu(h).mean((2, 3)), weights["head"])


@pytest.mark.parametrize("beta", [1.0, 7.5, "per unit"])
def test_score_gradient_equals_autograd_through_explicit_gates(beta: float | str) -> None:
    torch.manual_seed(3)
    units, double = 6, torch.float64
    betas = torch.rand(units, dtype=double) * 20 + 0.5 if beta == "per unit" else torch.tensor(beta, dtype=double)
    x, target = torch.randn(5, 3, 6, 6, dtype=double), torch.randint(4, (5,))
    theta = {
        "conv": torch.randn(units, 3, 3, 3, dtype=double),
        "scale": torch.randn(units, dtype=double),
        "bias": torch.randn(units, dtype=double),
        "head": torch.randn(4, units, dtype=double),
    }
    scores = (torch.randn(units, dtype=double) * 0.3).requires_grad_()
    F.cross_entropy(explicit_forward(x, theta, torch.sigmoid(betas * scores)), target).backward()

    mask = gates.relax(scores.detach(), betas)
    effective = {**theta, "scale": (mask * theta["scale"]), "bias": (mask * theta["bias"])}
    effective = {name: value.clone().requires_grad_() for name, value in effective.items()}
    F.cross_entropy(explicit_forward(x, effective, torch.ones(units, dtype=double)), target).backward()
    members = [(effective[name], effective[name].grad) for name in ("scale", "bias")]
    found = gates.score_gradient(scores.detach(), betas, gates.unit_products(members))
    torch.testing.assert_close(found, scores.grad, rtol=1e-10, atol=0)


def test_score_gradient_of_a_reader_s_columns() -> None:
    """A site without a norm: the gate multiplies columns, given units first."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (x @ (weight * torch.sigmoid(3 * scores)).T).square().sum().backward()
    effective = (weight * torch.sigmoid(3 * scores.detach())).requires_grad_()
    (x @ effective.T).square().sum().backward()
    products = gates.unit_products([(effective.T, effective.grad.T)])
    found = gates.score_gradient(scores.detach(), 3.0, products)
    torch.testing.assert_close(found, scores.grad, rtol=1e-10, atol=0)


@given(vectors(finite), st.floats(0.1, 50), st.floats(-3, 3))
def test_penalty_gradient_equals_autograd(scores: Tensor, beta: float, weight: float) -> None:
    leaf = scores.clone().requires_grad_()
    gates.penalty(leaf, beta, weight).backward()
    torch.testing.assert_close(gates.penalty_gradient(scores, beta, weight), leaf.grad, rtol=1e-9, atol=1e-12)


def test_the_mask_is_half_at_zero_and_hardens_with_temperature() -> None:
    scores = torch.tensor([-0.1, 0.0, 0.1])
    assert gates.relax(torch.zeros(3), 123.0).tolist() == [0.5, 0.5, 0.5]
    masks = torch.stack([gates.relax(scores, beta) for beta in (1.0, 10.0, 100.0, 1000.0)])
    assert (masks[:, 0].diff() < 0).all()
    assert (masks[:, 2].diff() > 0).all()
    assert masks[-1].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)


def test_temperature_runs_from_one_to_its_end_and_old_is_harder() -> None:
    beta = gates.age_temperature(torch.arange(11), total=10, beta_0=200.0)
    assert beta[0] == 1
    assert beta[-1].item() == pytest.approx(200)
    assert (beta.diff() > 0).all()
    assert beta[3].item() == pytest.approx(200**0.3)


@pytest.mark.parametrize(("total", "beta_0"), [(0, 10.0), (-1, 10.0), (10, 0.5), (10, math.nan)])
def test_temperature_refuses_what_cannot_work(total: float, beta_0: float) -> None:
    with pytest.raises(ConfigError, match="beta_0 >= 1"):
        gates.age_temperature(torch.zeros(2), total, beta_0)


def test_penalty_weight_rewards_growth_below_the_budget() -> None:
    assert gates.penalty_weight(0.1, 0.2, 0.5) < 0 < gates.penalty_weight(0.1, 0.8, 0.5)
    assert gates.penalty_weight(0.1, 0.5, 0.5) == 0


def test_fresh_noise_follows_the_bernoulli_probability() -> None:
    generator, scores = torch.Generator().manual_seed(0), torch.tensor([-1.0, 0.0, 0.7])
    draws = torch.stack([gates.sample_indicators(scores, 2.0, gates.draw_noise(3, generator)) for _ in range(4000)])
    torch.testing.assert_close(draws.float().mean(0), gates.relax(scores, 2.0), atol=0.025, rtol=0)


def test_noise_is_repeatable_and_open() -> None:
    first, second = (gates.draw_noise(1000, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.min() > 0
    assert first.max() < 1


@given(vectors(finite, 6), vectors(st.floats(1e-9, 1 - 1e-9), 6), st.floats(0.1, 50), st.floats(-30, 30))
def test_sampling_is_the_published_comparison(scores: Tensor, noise: Tensor, beta: float, shift: float) -> None:
    argument = beta * scores + shift
    clear = (argument - torch.logit(noise)).abs() > 1e-6  # away from rounding
    published = noise < torch.sigmoid(argument)
    clear &= argument.abs() < 30
    assert torch.equal(gates.sample_indicators(scores, beta, noise, shift)[clear], published[clear])


@given(vectors(finite, 6), vectors(st.floats(1e-9, 1 - 1e-9), 6), finite, st.floats(0, 10))
def test_a_larger_shift_only_adds(scores: Tensor, noise: Tensor, shift: float, more: float) -> None:
    before = gates.sample_indicators(scores, 1.0, noise, shift)
    after = gates.sample_indicators(scores, 1.0, noise, shift + more)
    assert not (before & ~after).any()


def test_infinite_scores_pin_components() -> None:
    scores, noise = torch.tensor([math.inf, -math.inf]), torch.tensor([0.999, 0.001])
    for shift in (-1e6, 0.0, 1e6):
        assert gates.sample_indicators(scores, 1.0, noise, shift).tolist() == [True, False]


def test_a_score_that_is_no_number_is_named() -> None:
    with pytest.raises(TrainingError, match=r"first positions: \[1\]"):
        gates.sample_indicators(torch.tensor([0.0, math.nan]), 1.0, torch.tensor([0.5, 0.5]))


@given(
    vectors(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 3.0]), 7),
    vectors(st.sampled_from([0.1, 0.5, 0.9]), 7),
    vectors(st.floats(0, 10), 7),
    st.floats(-5, 80),
)
def test_the_shift_is_the_best_that_exhaustive_search_finds(
    scores: Tensor, noise: Tensor, prices: Tensor, target: float
) -> None:
    def cost(q: Tensor) -> float:
        return float(prices[q].sum())

    shifts = gates.critical_shift(scores, 2.0, noise)
    found, critical = gates.shift_for_cost(shifts, cost, target), shifts.tolist()
    candidates = [min(critical) - 1, max(critical) + 1]
    candidates += [(a + b) / 2 for a, b in itertools.pairwise(sorted(set(critical)))]
    costs = [cost(gates.sample_indicators(scores, 2.0, noise, mu)) for mu in candidates]
    affordable = [c for c in costs if c <= target]
    assert found.cost == (max(affordable) if affordable else min(costs))
    assert found.cost == cost(gates.sample_indicators(scores, 2.0, noise, found.shift))
    assert found.reached == (min(costs) <= target <= max(costs))
    assert found.evaluations <= 2 + math.ceil(math.log2(len(critical) + 1))


def test_neighbouring_floats_are_still_told_apart() -> None:
    one = torch.tensor(1.0, dtype=torch.float64)
    scores = -torch.stack([one, torch.nextafter(one, one * 2)])
    critical = gates.critical_shift(scores, 1.0, torch.full((2,), 0.5))
    found = gates.shift_for_cost(critical, lambda q: float(q.sum()), 1.0)
    assert found.cost == 1
    assert gates.sample_indicators(scores, 1.0, torch.full((2,), 0.5), found.shift).tolist() == [True, False]


@pytest.mark.parametrize(("target", "limit", "cost"), [(0.5, "lower", 1.0), (9.0, "upper", 3.0), (3.0, "none", 3.0)])
def test_a_target_out_of_reach_gives_the_nearest_network_and_says_so(target: float, limit: str, cost: float) -> None:
    found = gates.shift_for_cost(torch.tensor([-1.4, 1.4]), lambda q: 1.0 + float(q.sum()), target)
    assert (found.limit, found.cost) == (limit, cost)


def test_no_component_at_all_is_fine() -> None:
    found = gates.shift_for_cost(torch.zeros(0), lambda q: 4.0, 9.0)
    assert (found.limit, found.cost) == ("upper", 4.0)


def test_what_is_always_there_or_never_has_an_infinite_shift() -> None:
    critical = torch.tensor([-math.inf, 1.0, math.inf, 2.0])
    found = gates.shift_for_cost(critical, lambda q: float(q.sum()), 2.0)
    assert (critical < found.shift).tolist() == [True, True, False, False]
    assert (found.cost, found.reached) == (2.0, True)
    assert gates.shift_for_cost(critical, lambda q: float(q.sum()), 99.0).cost == 3.0
    assert gates.shift_for_cost(critical, lambda q: float(q.sum()), 0.0).cost == 1.0


def test_costs_that_fall_and_targets_that_are_no_number_are_refused() -> None:
    with pytest.raises(BudgetError, match="never falls"):
        gates.shift_for_cost(torch.tensor([-1.4, 1.4]), lambda q: -float(q.sum()), 1.0)
    with pytest.raises(BudgetError, match="not a number"):
        gates.shift_for_cost(torch.tensor([-1.4, 1.4]), lambda q: 1.0, math.nan)


@pytest.mark.parametrize(
    "members",
    [
        [],
        [(torch.zeros(3, 2), torch.zeros(3, 1))],
        [(torch.zeros(3), torch.zeros(3)), (torch.zeros(4), torch.zeros(4))],
        [(torch.tensor(1.0), torch.tensor(1.0))],
    ],
)
def test_slices_that_do_not_fit_are_refused(members: list[tuple[Tensor, Tensor]]) -> None:
    with pytest.raises(ConfigError, match="unit_products"):
        gates.unit_products(members)


def test_scores_of_another_group_are_refused() -> None:
    with pytest.raises(ConfigError, match="one score per unit"):
        gates.score_gradient(torch.zeros(2), 1.0, torch.zeros(3))


def test_half_precision_members_are_summed_in_single() -> None:
    theta = torch.ones(1, 4096, dtype=torch.bfloat16)
    assert gates.unit_products([(theta, theta)]).item() == 4096
