"""The dry run sees every part: what dead units or a fading signal hide is compared apart, with other weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.resizing import _testbed
from apical.resizing._disagreement import keep_half
from apical.resizing._seen import unseen
from structure.nets import Net, vectors

SEQUENCE = vectors(2, 5, 3)


def heads(x: Tensor, n: int) -> Tensor:
    return x.view(*x.shape[:2], n, -1).transpose(1, 2)


def grouped_queries(m: Any, x: Tensor) -> Tensor:
    """Attention in which two heads each read one key and value: a proposal for its heads is wrong."""
    q, k, v = heads(m.q(x), 4), heads(m.k(x), 2), heads(m.v(x), 2)
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2)


def with_grouped_queries(read: Callable[[Any, Tensor], Tensor], seed: int, **parts: nn.Module) -> nn.Module:
    torch.manual_seed(seed)
    own = {"q": nn.Linear(3, 8), "k": nn.Linear(3, 4), "v": nn.Linear(3, 4), "b": nn.Linear(8, 5)}
    return Net(lambda m, x: read(m, m.b(grouped_queries(m, x))), **own, last=nn.Linear(5, 2), **parts)


@pytest.mark.parametrize(
    "seed",
    [pytest.param(33, id="the kept hidden units are dead"), pytest.param(45, id="all hidden units are dead")],
)
def test_dead_units_hide_no_wrong_group(seed: int) -> None:
    net = with_grouped_queries(lambda m, h: m.last(F.relu(h)), seed)
    assert [g.name for g in apical.trace(net, SEQUENCE).groups] == ["b"]


def test_a_signal_that_fades_hides_no_wrong_group() -> None:
    """Batch normalisations that remember a large variance, as those of a fresh network do: mean 0 and variance 1."""

    def faded(m: Any, h: Tensor) -> Tensor:
        for norm in m.norms:
            h = norm(h.mT).mT
        return m.last(torch.tanh(h))

    norms = nn.ModuleList(nn.BatchNorm1d(5) for _ in range(4))
    for norm in norms:
        norm.running_var.fill_(1e8)
    structure = apical.trace(with_grouped_queries(faded, 0, norms=norms), SEQUENCE)
    assert [g.name for g in structure.groups] == ["b"]


def test_unseen_names_what_lies_before_dead_units() -> None:
    net = Net(lambda m, x: m.last(F.relu(m.b(F.relu(m.a(x))))), a=nn.Linear(3, 4), b=nn.Linear(4, 6),
              last=nn.Linear(6, 2))  # fmt: skip
    structure = apical.trace(net, SEQUENCE)
    seen, _ = _testbed.testbeds(net, _testbed.Example(SEQUENCE, {}))
    assert unseen(structure, seen, structure.groups, keep_half) == []
    seen.model.b.bias.data.fill_(-100)
    assert [g.name for g in unseen(structure, seen, structure.groups, keep_half)] == ["a", "b"]
    (a, _) = structure.groups
    seen.model.b.bias.data.fill_(0)
    assert unseen(structure, seen, [a], keep_half) == []


def test_outputs_without_a_gradient_end_the_search() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            return m.last(F.relu(m.a(x)))

    net = Net(forward, a=nn.Linear(3, 4), last=nn.Linear(4, 2))
    structure = apical.trace(net, SEQUENCE)
    assert [g.name for g in structure.groups] == ["a"]
    assert (
        unseen(structure, _testbed.testbeds(net, _testbed.Example(SEQUENCE, {}))[0], structure.groups, keep_half) == []
    )
