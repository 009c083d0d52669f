"""The paper's scores: gates kept out of the forward pass move them as explicit gates inside it would (float64)."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from apical import Grower
from apical.growth import ScsConfig
from growth import gate_oracle
from growth.cases import CASES, loss_of, scores_of
from growth.gate_oracle import GatedTemplate, close, loss
from marks import quick

F64 = torch.float64
LR = 2.0


def config(**options: Any) -> ScsConfig:
    """Samples that cost what is scheduled, so that every network has enough to measure."""
    return ScsConfig(**{"sampling": "budgeted", "score_lr": LR, "seed_fraction": 0.25, **options})


def prepared(name: str, budget: str = "50% macs", **options: Any) -> tuple[nn.Module, nn.Module, Optimizer, Grower]:
    return gate_oracle.prepared(name, budget=budget, config=config(**options))


@pytest.mark.parametrize("birth", ["random", "preserving"])
@pytest.mark.parametrize("name", quick(CASES, ["residual", "lstm"]))
def test_scores_follow_the_gradient_of_explicit_gates_through_growth(name: str, birth: str) -> None:
    """At every step of three epochs, with two restructurings between, in what torch.optim.SGD makes of it."""
    template, model, optimizer, grower = prepared(name, "60% macs", birth=birth, lambda_base=0.0)
    reference = nn.Parameter(scores_of(grower))
    by_torch = torch.optim.SGD([reference], lr=LR, momentum=0.9)
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


def test_gradients_that_are_not_finite_move_no_score() -> None:
    _, model, optimizer, grower = prepared("mlp")
    loss_of(model, "mlp", 0, F64).backward()
    optimizer.step()
    before = grower.state_dict()["components"]
    model[0].weight.grad[0, 0] = float("nan")
    optimizer.step()
    after = grower.state_dict()["components"]
    assert all(torch.equal(before[name], after[name]) for name in ("values", "buffer"))
    assert before["buffer"].any()


def test_a_step_without_any_gradient_moves_no_score_and_zeroed_gradients_let_the_momentum_run_out() -> None:
    _, model, optimizer, grower = prepared("mlp")
    seen = [scores_of(grower)]
    for zeroed in (None, False, True):
        optimizer.zero_grad(set_to_none=zeroed is not False)
        if zeroed is None:
            loss_of(model, "mlp", 0, F64).backward()
        optimizer.step()
        seen.append(scores_of(grower))
    close(seen[2] - seen[1], 0.9 * (seen[1] - seen[0]))
    assert torch.equal(seen[3], seen[2])


def test_random_scores_stay_where_they_are() -> None:
    _, model, optimizer, grower = prepared("mlp", scores="random")
    loss_of(model, "mlp", 1, F64).backward()
    optimizer.step()
    assert (scores_of(grower) == 0).all()


def test_the_penalty_moves_every_score_by_its_closed_form() -> None:
    """s ← s − λ_base (u − u_target) β m (1 − m) · interval / length, also of absent components, which have β = 1."""
    share, base = 0.25, 3.0
    _, _, _, grower = prepared("residual", sampling="lambda", lambda_base=base, seed_fraction=share, growth_end=0.9)
    state = grower.state_dict()
    first, absent = scores_of(grower), ~state["components"]["live"]
    assert absent.any()
    assert torch.allclose(first, torch.tensor(log(share / (1 - share)), dtype=F64))
    used = grower.structure.macs(state["keep"], state["skip"]) / grower.structure.macs()
    grower.end_epoch()
    moved = scores_of(grower) - first
    push = -base * (used - 0.5) * share * (1 - share) / grower.epochs
    close(moved[absent], torch.full((1,), push, dtype=F64))
    units = len(moved) - len(grower.structure.blocks)
    beta = grower.state_dict()["beta"][:units][~absent[:units]]
    gate = torch.sigmoid(beta * first[0])
    assert (beta > 1).all()
    close(moved[:units][~absent[:units]], -base * (used - 0.5) / grower.epochs * beta * gate * (1 - gate))
