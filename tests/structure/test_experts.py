"""Mixtures of experts: hidden units leave whatever sends tokens to experts, experts where each score is its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.errors import TraceError
from apical.structure._analyse import propose
from structure.contract import counted_macs, doubled, generic_, outputs, relative_error, zeroed
from structure.expectations import members_of, reasons_of, traced
from structure.nets import vectors

WIDTH, INNER, EXPERTS, INPUTS = 8, 6, 4, vectors(2, 7, 5)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Mixture(nn.Module):
    """A residual mixture of experts in a list, each of which gets the tokens that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        share, chosen = self.router(rows).topk(2, -1)
        return x + self.mixed(rows, share.softmax(-1), chosen).view_as(x)

    def mixed(self, rows: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        raise NotImplementedError


class Indexed(Mixture):
    def mixed(self, rows: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        total = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen == i)
            total[token] += share[token, place, None] * expert(rows[token])
        return total


class Added(Mixture):
    """As in the first Mixtral of transformers."""

    def mixed(self, rows: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        total, mask = torch.zeros_like(rows), F.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for i, expert in enumerate(self.experts):
            place, token = torch.where(mask[i])
            total.index_add_(0, token, expert(rows[token]) * share[token, place, None])
        return total


class Scattered(Mixture):
    """Every expert runs on every token, and the shares of most are zero."""

    def mixed(self, rows: Tensor, share: Tensor, chosen: Tensor) -> Tensor:
        shares = torch.zeros(rows.shape[0], EXPERTS, dtype=rows.dtype).scatter(-1, chosen, share)
        return torch.stack([shares[:, i, None] * expert(rows) for i, expert in enumerate(self.experts)]).sum(0)


class Unused(Indexed):
    """No token of the example goes to the last expert."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.router.weight[-1] = 0
            self.router.bias[-1] = -1e3


def around(mixture: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, WIDTH), mixture, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3))


@pytest.mark.parametrize("mixture", [Indexed, Added, Scattered])
def test_hidden_units_of_experts_in_a_list(mixture: type[Mixture]) -> None:
    """The number of tokens that an expert gets is that of the example, in the price too."""
    model, inputs = generic_(around(mixture())), doubled(INPUTS)
    structure = apical.trace(model, inputs)
    assert [(g.name, g.size) for g in structure.groups] == [(f"1.experts.{i}.up", INNER) for i in range(EXPERTS)]
    assert [b.name for b in structure.blocks] == ["1"]
    assert "topk over channels" in reasons_of(structure)["1.router"]
    keep = {f"1.experts.{i}.up": list(range(i, INNER)) for i in range(EXPERTS)}
    small = copy.deepcopy(model)
    apical.resize_(small, structure, keep)
    assert relative_error(outputs(small, inputs), outputs(zeroed(model, structure, keep, ()), inputs)) < 1e-10
    assert structure.macs(keep) == counted_macs(small, inputs)


def test_an_expert_without_a_token_is_followed_too() -> None:
    structure = apical.trace(around(Unused()), INPUTS)
    assert structure.group("1.experts.3.up").size == INNER


def test_sizes_that_only_weights_tell_are_refused_without_them() -> None:
    model = around(Indexed()).to("meta").eval()
    with pytest.raises(TraceError, match=r"depend on values.*not on the meta device"):
        propose(model, (INPUTS[0].to("meta"),), {})


class Stacked(nn.Module):
    """All experts run; their weights lie in one tensor each."""

    def __init__(self, scores: str, steps: int) -> None:
        super().__init__()
        self.scores, self.steps, self.router = scores, steps, nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER))
        self.down = nn.Parameter(torch.randn(EXPERTS, INNER, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        shares: Any = self.router(x)
        shares = shares.softmax(-1) if self.scores == "softmax" else shares.sigmoid()
        y = torch.einsum("btd,ndh->btnh", x, self.up).relu()
        if self.steps == 1:
            return x + torch.einsum("btn,btnh,nhd->btd", shares, y, self.down)
        return x + torch.einsum("btn,btnd->btd", shares, torch.einsum("btnh,nhd->btnd", y, self.down))


@pytest.mark.parametrize(("scores", "steps"), [("softmax", 1), ("softmax", 2), ("sigmoid", 2)])
def test_hidden_units_of_stacked_experts_whose_number_stays(scores: str, steps: int) -> None:
    structure = traced(around(Stacked(scores, steps)), INPUTS)
    assert [(g.name, g.size) for g in structure.groups] == [("1", INNER)]


def test_experts_are_units_where_a_score_depends_on_no_other_and_one_sum_takes_them_all() -> None:
    structure = traced(around(Stacked("sigmoid", 1)), INPUTS)
    assert [(g.name, g.size) for g in structure.groups] == [("1.router", EXPERTS)]
    assert members_of(structure, "1.router") == {"1.router.weight": 1, "1.router.bias": 1, "1.up": 1, "1.down": 1}


class HeadwiseRecurrence(nn.Module):
    """As xLSTM's sLSTM: a recurrent weight for each head, whose channels are normed together afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.enter, self.gates, self.norm = nn.Linear(5, 16), nn.Linear(16, 32), nn.GroupNorm(4, 16)
        self.recurrent = nn.Parameter(torch.randn(4, 4, 8) * 0.3)
        self.leave = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        state, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            own = torch.einsum("bhi,hio->bho", state.unflatten(1, (self.heads, -1)), self.recurrent)
            gate, new = (self.gates(x[:, t]) + own.unflatten(2, (2, -1)).transpose(1, 2).flatten(1)).chunk(2, -1)
            state = torch.sigmoid(gate) * torch.tanh(new)
            states.append(state)
        return self.leave(self.norm(torch.stack(states, 1).flatten(0, 1)).view_as(x) + x)


def test_heads_with_a_recurrent_weight_each_go_as_a_whole() -> None:
    torch.manual_seed(0)
    model, inputs = HeadwiseRecurrence(), vectors(2, 4, 5)
    structure = traced(model, inputs)
    assert [g.size for g in structure.groups] == [4]
    assert members_of(structure, structure.groups[0].name)["recurrent"] == 1
