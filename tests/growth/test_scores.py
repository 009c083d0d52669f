"""The paper's closed forms against autograd through explicit gates, and the properties that sampling relies on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from apical.errors import TrainingError
from apical.growth._scores import (
    age_temperature,
    critical_shift,
    draw_noise,
    penalty_gradient,
    penalty_weight,
    score_gradient,
)

finite = st.floats(-20, 20)


def vectors(elements: st.SearchStrategy[float], size: int | None = None) -> st.SearchStrategy[Tensor]:
    lists = st.lists(elements, min_size=size or 1, max_size=size or 12)
    return lists.map(lambda values: torch.tensor(values, dtype=torch.float64))


def exist(scores: Tensor, beta: float, noise: Tensor, shift: float = 0.0) -> Tensor:
    return critical_shift(scores, beta, noise) < shift


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

    mask = torch.sigmoid(betas * scores.detach())
    effective = {**theta, "scale": (mask * theta["scale"]), "bias": (mask * theta["bias"])}
    effective = {name: value.clone().requires_grad_() for name, value in effective.items()}
    F.cross_entropy(explicit_forward(x, effective, torch.ones(units, dtype=double)), target).backward()
    products = sum(effective[name].detach() * effective[name].grad for name in ("scale", "bias"))
    found = score_gradient(scores.detach(), betas, products)
    torch.testing.assert_close(found, scores.grad, rtol=1e-10, atol=0)


def test_score_gradient_of_a_reader_s_columns() -> None:
    """A site without a norm: the gate multiplies columns, given units first."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    (x @ (weight * torch.sigmoid(3 * scores)).T).square().sum().backward()
    effective = (weight * torch.sigmoid(3 * scores.detach())).requires_grad_()
    (x @ effective.T).square().sum().backward()
    products = (effective.detach() * effective.grad).sum(0)
    found = score_gradient(scores.detach(), 3.0, products)
    torch.testing.assert_close(found, scores.grad, rtol=1e-10, atol=0)


@given(vectors(finite), st.floats(0.1, 50), st.floats(-3, 3))
def test_penalty_gradient_equals_autograd(scores: Tensor, beta: float, weight: float) -> None:
    leaf = scores.clone().requires_grad_()
    (weight * torch.sigmoid(beta * leaf).sum()).backward()
    torch.testing.assert_close(penalty_gradient(scores, beta, weight), leaf.grad, rtol=1e-9, atol=1e-12)


def test_temperature_runs_from_one_to_its_end_and_old_is_harder() -> None:
    beta = age_temperature(torch.arange(11), total=10, beta_0=200.0)
    assert beta[0] == 1
    assert beta[-1].item() == pytest.approx(200)
    assert (beta.diff() > 0).all()
    assert beta[3].item() == pytest.approx(200**0.3)


def test_penalty_weight_rewards_growth_below_the_budget() -> None:
    assert penalty_weight(0.1, 0.2, 0.5) < 0 < penalty_weight(0.1, 0.8, 0.5)
    assert penalty_weight(0.1, 0.5, 0.5) == 0


def test_fresh_noise_follows_the_bernoulli_probability() -> None:
    generator, scores = torch.Generator().manual_seed(0), torch.tensor([-1.0, 0.0, 0.7])
    draws = torch.stack([exist(scores, 2.0, draw_noise(3, generator)) for _ in range(4000)])
    torch.testing.assert_close(draws.float().mean(0), torch.sigmoid(2.0 * scores), atol=0.025, rtol=0)


def test_noise_is_repeatable_and_open() -> None:
    first, second = (draw_noise(1000, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.min() > 0
    assert first.max() < 1


@given(vectors(finite, 6), vectors(st.floats(1e-9, 1 - 1e-9), 6), st.floats(0.1, 50), st.floats(-30, 30))
def test_sampling_is_the_published_comparison(scores: Tensor, noise: Tensor, beta: float, shift: float) -> None:
    argument = beta * scores + shift
    clear = (argument - torch.logit(noise)).abs() > 1e-6  # away from rounding
    published = noise < torch.sigmoid(argument)
    clear &= argument.abs() < 30
    assert torch.equal(exist(scores, beta, noise, shift)[clear], published[clear])


@given(vectors(finite, 6), vectors(st.floats(1e-9, 1 - 1e-9), 6), finite, st.floats(0, 10))
def test_a_larger_shift_only_adds(scores: Tensor, noise: Tensor, shift: float, more: float) -> None:
    before = exist(scores, 1.0, noise, shift)
    after = exist(scores, 1.0, noise, shift + more)
    assert not (before & ~after).any()


def test_infinite_scores_pin_components() -> None:
    scores, noise = torch.tensor([math.inf, -math.inf]), torch.tensor([0.999, 0.001])
    for shift in (-1e6, 0.0, 1e6):
        assert exist(scores, 1.0, noise, shift).tolist() == [True, False]


def test_a_score_that_is_no_number_is_named() -> None:
    with pytest.raises(TrainingError, match=r"first positions: \[1\]"):
        exist(torch.tensor([0.0, math.nan]), 1.0, torch.tensor([0.5, 0.5]))
