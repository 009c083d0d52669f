"""Gates kept out of the forward pass move the scores as explicit gates inside it would (float64)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical import Grower
from growth.cases import built, grown, loss_of, scores_of
from growth.gate_oracle import GatedTemplate

F64 = torch.float64


def prepared(name: str, **options: Any) -> tuple[nn.Module, nn.Module, Optimizer, Grower]:
    """The template, the live model, its optimizer and Grower, all in float64."""
    template = built(name).double()
    model = copy.deepcopy(template)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return template, model, optimizer, grown(name, model, optimizer, **options)


def loss(name: str, seed: int) -> Callable[[Any], Tensor]:
    return lambda model: loss_of(model, name, seed, F64)


def close(a: Tensor, b: Tensor) -> None:
    scale = b.abs().max()
    assert scale > 0
    assert (a - b).abs().max() <= 1e-9 * scale


@pytest.mark.parametrize("style", ["thin", "small"])
@pytest.mark.parametrize("name", ["residual", "plain", "mlp", "lstm", "tied", "gpt", "attention"])
def test_scores_follow_the_gradient_of_explicit_gates_through_growth(name: str, style: str) -> None:
    """At every step of three epochs, with two restructurings between, in what torch.optim.SGD makes of it."""
    template, model, optimizer, grower = prepared(name, seed_style=style, budget="60% macs")
    reference = nn.Parameter(scores_of(grower))
    by_torch = torch.optim.SGD([reference], lr=2.0, momentum=0.9)
    blocks_moved = False
    for epoch in range(3):
        for i in range(2):
            oracle = GatedTemplate(template, grower)
            reference.grad = oracle.score_gradient(loss(name, 10 * epoch + i))
            optimizer.zero_grad()
            value = loss_of(model, name, 10 * epoch + i, F64)
            value.backward()
            optimizer.step()
            by_torch.step()
            close(scores_of(grower), reference.detach())
            blocks = reference.grad[sum(g.size for g in grower.structure.groups) :]
            blocks_moved |= bool((blocks != 0).any())
        grower.end_epoch()
    assert blocks_moved == bool(grower.structure.blocks)
    assert sum(r["born"] for r in grower.history) > 0


def test_absent_components_get_no_gradient() -> None:
    _, model, optimizer, grower = prepared("residual", seed_style="small")
    loss_of(model, "residual", 1, F64).backward()
    optimizer.step()
    live = grower.state_dict()["components"]["live"]
    assert (scores_of(grower)[~live] == 0).all()
    assert (scores_of(grower)[live] != 0).any()


@pytest.mark.parametrize("name", ["residual", "lstm"])
def test_accumulated_gradients_move_the_scores_once(name: str) -> None:
    template, model, optimizer, grower = prepared(name)
    oracle = GatedTemplate(template, grower)
    expected = oracle.score_gradient(lambda m: (loss(name, 1)(m) + loss(name, 2)(m)) / 2)
    for seed in (1, 2):
        (loss_of(model, name, seed, F64) / 2).backward()
    optimizer.step()
    close(scores_of(grower), -2.0 * expected)


def test_clipped_gradients_move_the_scores_less() -> None:
    template, model, optimizer, grower = prepared("mlp")
    expected = GatedTemplate(template, grower).score_gradient(loss("mlp", 1))
    loss_of(model, "mlp", 1, F64).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    close(scores_of(grower), -2.0 * expected * (0.01 / (norm + 1e-6)))


def split(model: nn.Module) -> list[Optimizer]:
    """Two optimizers, between which gate sites are divided."""
    names = [n for n, _ in model.named_parameters()]
    first = [p for n, p in model.named_parameters() if names.index(n) % 2]
    second = [p for n, p in model.named_parameters() if not names.index(n) % 2]
    return [torch.optim.SGD(first, lr=0.05, momentum=0.9), torch.optim.AdamW(second, lr=0.001)]


@pytest.mark.parametrize("name", ["residual", "lstm"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_optimizers_act_as_one(name: str, order: tuple[int, int]) -> None:
    template = built(name).double()
    model = copy.deepcopy(template)
    optimizers = split(model)
    grower = grown(name, model, optimizers)
    reference = nn.Parameter(scores_of(grower))
    by_torch = torch.optim.SGD([reference], lr=2.0, momentum=0.9)
    for epoch in range(2):
        for i in range(2):
            reference.grad = GatedTemplate(template, grower).score_gradient(loss(name, 10 * epoch + i))
            model.zero_grad()
            loss_of(model, name, 10 * epoch + i, F64).backward()
            for o in order:
                optimizers[o].step()
            by_torch.step()
            close(scores_of(grower), reference.detach())
        grower.end_epoch()


def test_an_optimizer_that_sits_out_does_not_hold_the_others_up() -> None:
    """GradScaler skips each optimizer by itself: the other's gradients count, once."""
    model = built("mlp").double()
    optimizers = split(model)
    grower = grown("mlp", model, optimizers, score_momentum=0.0)
    seen = [scores_of(grower)]
    for seed in range(3):
        model.zero_grad()
        loss_of(model, "mlp", seed, F64).backward()
        optimizers[1].step()
        seen.append(scores_of(grower))
    assert all(not torch.equal(a, b) for a, b in pairwise(seen))


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_a_gradient_scaler_is_followed(options: dict[str, bool]) -> None:
    """Scaled gradients count unscaled; a step that the scaler skips, inside the optimizer or outside, moves nothing."""
    template = built("mlp")
    model, twin = copy.deepcopy(template), copy.deepcopy(template)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **options)
    plain = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    grower, expected = grown("mlp", model, optimizer), grown("mlp", twin, plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(7):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, "mlp", seed)).backward()
        before, skipped = scores_of(grower), seed in (1, 3, 4)  # (a fused SGD cannot skip its very first step)
        if skipped:
            model[0].weight.grad[0, 0] = float("inf")
        elif seed == 5:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if skipped:
            assert torch.equal(scores_of(grower), before)
        else:
            plain.zero_grad()
            loss_of(twin, "mlp", seed).backward()
            plain.step()
        torch.testing.assert_close(scores_of(grower), scores_of(expected), rtol=1e-4, atol=1e-7)
    assert scores_of(grower).abs().max() > 0


def test_random_scores_stay_where_they_are() -> None:
    _, model, optimizer, grower = prepared("mlp", scores="random")
    loss_of(model, "mlp", 1, F64).backward()
    optimizer.step()
    assert (scores_of(grower) == 0).all()


def test_the_penalty_moves_every_score_by_its_closed_form() -> None:
    """λ = λ_base (load − 1), ∂R/∂s = λ β m (1 − m): at β = 1, s = 0 a quarter of λ, also for absent components."""
    _, model, optimizer, grower = prepared(
        "residual", sampling="lambda", lambda_channels=0.5, lambda_blocks=2.0, temperature="global", beta_final=1.0,
        score_momentum=0.0, seed_style="small", noise="fixed",
    )  # fmt: skip
    before = grower.bound.load({n: len(k) for n, k in grower.state_dict()["keep"].items()}, grower.state_dict()["skip"])
    grower.end_epoch()
    absent = ~grower.state_dict()["components"]["live"]
    optimizer.zero_grad()
    loss_of(model, "residual", 1, F64).backward()
    optimizer.step()
    units = sum(g.size for g in grower.structure.groups)
    moved = scores_of(grower)
    close(moved[:units][absent[:units]], torch.full((1,), -2.0 * 0.5 * (before - 1) / 4, dtype=F64))
    assert not absent[units:].any() or torch.allclose(
        moved[units:][absent[units:]], torch.tensor(-2.0 * 2.0 * (before - 1) / 4, dtype=F64)
    )
