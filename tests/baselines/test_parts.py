"""What each comparator computes, against slow and obviously right versions of its paper's formula."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.baselines import (
    L1,
    Comparator,
    Dense,
    Final,
    Rule,
    Slimming,
    Subject,
    Taylor,
    uniform_keep,
)
from apical.baselines._choose import by_threshold, fewest, strongest
from apical.baselines._scores import filter_norms, gate_products
from apical.budget import BoundBudget, Budget
from apical.errors import ApicalError, ConfigError
from apical.resizing._gates import zero_gates_
from growth.cases import built, example, sgd, step, structure_of

IMAGE = torch.zeros(1, 3, 8, 8)


def compared(rule: Rule, model: nn.Module, name: str, epochs: int, optimizer: Optimizer | None = None) -> Comparator:
    """On a network of the cases, with half of its MACs."""
    optimizer = optimizer or sgd(model)
    return Comparator(rule, model, optimizer, example(name), "50% macs", epochs, structure=structure_of(name))


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 16, 4),
    )  # fmt: skip


# ---- choosing -------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.25, 0.5, 0.9]), st.sampled_from([1, 2, 4]))
def test_one_threshold_separates_kept_from_removed_units(seed: int, share: float, divisor: int) -> None:
    structure = structure_of("plain")
    generator = torch.Generator().manual_seed(seed)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in structure.groups}
    least = fewest(structure, 0.1, divisor)
    bound = BoundBudget(Budget(macs=share), structure, minimum=least)
    keep = by_threshold(bound, scores, least, 1.0, divisor)
    assert 0.9 <= bound.load(keep) <= 1.002
    for group in structure.groups:
        kept = keep[group.name]
        assert least[group.name] <= len(kept)
        assert len(kept) % divisor == 0 or len(kept) == group.size
        gone = sorted(set(range(group.size)) - set(kept))
        assert not gone or scores[group.name][kept].min() >= scores[group.name][gone].max()
    if divisor == 1:  # no two groups could trade: the weakest kept unit and the strongest removed one
        free = [g.name for g in structure.groups if len(keep[g.name]) > least[g.name]]
        weakest = min((scores[n][keep[n]].min().item(), n) for n in free)
        for group in structure.groups:
            gone = sorted(set(range(group.size)) - set(keep[group.name]))
            if gone and scores[group.name][gone].max() > weakest[0]:
                wider = {n: len(k) for n, k in keep.items()}
                wider[group.name] += 1
                assert bound.load(wider) > 1.002  # better, but too dear


def test_absent_units_stay_away_and_loads_above_one_are_met() -> None:
    structure = structure_of("plain")
    bound = BoundBudget(Budget("50% macs"), structure)
    scores = {g.name: torch.arange(g.size).double() for g in structure.groups}
    for values in scores.values():
        values[-3:] = -torch.inf
    keep = by_threshold(bound, scores, dict.fromkeys(scores, 1), load=1.5)
    assert 1.4 < bound.load(keep) <= 1.503
    assert all(max(kept) < len(scores[name]) - 3 for name, kept in keep.items())
    name, size = structure.groups[0].name, structure.groups[0].size
    equal = torch.tensor([1.0, 3.0, 3.0, 2.0, *[0.0] * (size - 4)])
    assert strongest({name: equal}, {name: 2}) == {name: [1, 2]}


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_filter_norms_are_those_of_the_rows() -> None:
    net = plain_net()
    subject = Subject(net, None, IMAGE)
    norms = filter_norms(subject)
    assert torch.allclose(norms["0"], net[0].weight.double().abs().sum((1, 2, 3)))
    subject.resize_({"0": [1, 4, 5], "3": [0, 2]})
    norms = filter_norms(subject)
    assert torch.allclose(norms["3"][[0, 2]], net[3].weight.double().flatten(1).abs().sum(1))
    assert norms["3"].isinf().tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("name", ["residual", "plain", "lstm", "gpt"])
def test_gate_products_are_the_derivative_to_explicit_gates(name: str) -> None:
    model = built(name).double()
    structure = structure_of(name)
    inputs = example(name, model)
    subject = Subject(model, None, inputs, structure=structure)

    def loss(net: nn.Module) -> Tensor:
        out = torch.func.functional_call(net, dict(net.named_parameters()), (inputs,))
        return (out[0] if isinstance(out, tuple) else out).square().mean()

    loss(model.eval()).backward()
    products = gate_products(subject)
    for group in structure.groups:
        gates = torch.ones(group.size, dtype=torch.float64, requires_grad=True)
        gated = {n: p.detach() for n, p in model.named_parameters()}
        for part in group.gate_site:
            tensor = gated[part.tensor]
            factor = torch.ones(tensor.shape[part.dim], dtype=torch.float64)
            positions = part.index
            factor = factor.index_copy(
                0, positions.reshape(-1), gates.repeat_interleave(positions.shape[1]).to(torch.float64)
            )
            shape = [-1 if d == part.dim else 1 for d in range(tensor.dim())]
            gated[part.tensor] = tensor * factor.view(shape)
        out = torch.func.functional_call(model, gated, (inputs,))
        ((out[0] if isinstance(out, tuple) else out).square().mean()).backward()
        assert gates.grad is not None
        assert torch.allclose(products[group.name], gates.grad, rtol=1e-8, atol=1e-12), group.name


# ---- l1 -------------------------------------------------------------------------------------------------------------


def test_l1_keeps_the_largest_filters_and_its_controls_others() -> None:
    kept = {}
    for order in ("smallest", "largest", "random"):
        model = built("plain")
        method = compared(L1(order=order), model, "plain", 2)
        norms = filter_norms(method.subject)
        method.end_epoch()
        kept[order] = {n: set(k) for n, k in method.subject.selection.keep.items()}
        assert method.end_epoch()["macs_fraction"] == pytest.approx(0.5, rel=0.01)
    for name, norm in norms.items():
        every = set(range(len(norm)))
        assert norm[sorted(kept["smallest"][name])].min() >= norm[sorted(every - kept["smallest"][name])].max()
        assert norm[sorted(kept["largest"][name])].max() <= norm[sorted(every - kept["largest"][name])].min()
    assert kept["random"] != kept["smallest"]


# ---- slimming and taylor --------------------------------------------------------------------------------------------


def test_the_slimming_penalty_is_the_l1_norm_of_the_scales() -> None:
    model, reference = built("residual"), built("residual")
    optimizer, other = sgd(model), sgd(reference)
    method = compared(Slimming(penalty=0.01), model, "residual", 4, optimizer)
    scales = [m.weight for m in reference.modules() if isinstance(m, nn.BatchNorm2d)]
    for i in range(3):
        step(model.train(), optimizer, "residual", i)
        reference.train()
        inputs = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        labels = torch.randint(5, (4,), generator=torch.Generator().manual_seed(i + 1))
        loss = F.cross_entropy(reference(inputs), labels) + 0.01 * sum(s.abs().sum() for s in scales)
        other.zero_grad()
        loss.backward()
        other.step()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    method.finish()
    assert not optimizer._optimizer_step_pre_hooks


def test_slimming_removes_the_channels_with_the_smallest_scales() -> None:
    model = plain_net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.9, 0.01, 0.8, 0.02, -0.7, 0.03]))
        model[4].weight.copy_(torch.tensor([0.5, 0.6, -0.04, 0.7, 0.8]))
    method = Comparator(Slimming(), model, sgd(model), IMAGE, "48% macs", 2)
    method.end_epoch()
    kept = method.subject.selection.keep
    assert kept["0"] == (0, 2, 4)
    assert kept["3"] == (0, 1, 3, 4)


def test_taylor_scores_a_removal_by_its_first_order_effect() -> None:
    """With a loss that is linear in the gates the estimate is exact: I = (loss without − loss)²."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.randn(7, 3, dtype=torch.float64)
    method = Comparator(Taylor(0.0, 0.25), model, optimizer, torch.zeros(1, 3).double(), "50% macs", 4)
    model(x).mean().backward()
    optimizer.step()
    before = model(x).mean()
    exact = []
    for unit in range(6):
        twin = copy.deepcopy(model)
        zero_gates_(twin, method.structure, {"0": [u for u in range(6) if u != unit]})
        exact.append((twin(x).mean() - before).square().item())
    squares = gate_products(method.subject)["0"].square()
    assert torch.allclose(squares, torch.tensor(exact, dtype=torch.float64), rtol=1e-9)
    method.end_epoch()
    assert set(method.subject.selection.keep["0"]) == set(sorted(range(6), key=lambda unit: -exact[unit])[:3])


def test_taylor_adds_up_the_steps_of_an_epoch() -> None:
    """A unit that matters in the first step only outweighs one that matters a little in the second."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[1].weight.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = Comparator(Taylor(0.0, 0.25), model, optimizer, torch.zeros(1, 2), "50% macs", 4)
    for x in ([0.0, 3.0], [1.0, 0.0]):
        optimizer.zero_grad()
        model(torch.tensor([x])).sum().backward()
        optimizer.step()
    method.end_epoch()
    assert method.subject.selection.keep["0"] == (1,)


def test_taylor_falls_from_the_whole_model_to_the_budget_and_never_rises() -> None:
    model = built("residual")
    optimizer = sgd(model)
    method = compared(Taylor(), model, "residual", 10, optimizer)
    macs = []
    for epoch in range(10):
        step(model.train(), optimizer, "residual", epoch)
        macs.append(method.end_epoch()["macs_fraction"])
    assert macs[0] == 1
    assert all(a >= b for a, b in pairwise(macs))
    assert len(set(macs)) == 7
    assert macs[6:] == [pytest.approx(0.5, rel=0.01)] * 4


# ---- final and uniform -----------------------------------------------------------------------------------------------


def test_final_repeats_widths_and_blocks_and_refuses_those_of_another_model() -> None:
    model = built("residual")
    structure = structure_of("residual")
    widths = {g.name: max(1, g.size // 3) for g in structure.groups}

    def final(name: str, *shape: Any, model: nn.Module | None = None) -> Comparator:
        subject = built(name) if model is None else model
        return Comparator(Final(*shape), subject, None, example(name), "50% macs", 2, structure=structure_of(name))

    method = final("residual", widths, ("layer1.1",), model=model)
    record = method.end_epoch()
    there = {name: width for name, width in widths.items() if name != "layer1.1.conv1"}
    assert (record["widths"], record["skipped"]) == (there, ["layer1.1"])
    assert isinstance(model.layer1[1], nn.Identity)
    again = final("residual", there, ("layer1.1",))
    assert again.end_epoch() == record  # a record names no group that is absent
    with pytest.raises(ConfigError, match="another model"):
        final("residual", there)
    with pytest.raises(ConfigError, match="another model"):
        final("plain", widths)
    with pytest.raises(ConfigError, match="another model"):
        final("residual", {**widths, "conv1": 99})
    for wrong in ({"conv1": "5"}, {"conv1": 5.0}, {"conv1": True}, None, 3):
        with pytest.raises(ConfigError, match=r"method final: widths=.*expected a whole number for each name"):
            Final(wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="skip='layer1', expected names"):
        Final({}, "layer1")  # type: ignore[arg-type]


@pytest.mark.parametrize(("budget", "epochs", "match"), [("rubbish", 3, "rubbish"), ("50% macs", "x", "epochs"),
                                                         ("50% macs", 0, "epochs"), (None, 3, "budget")])  # fmt: skip
def test_a_rule_that_looks_at_no_budget_is_given_a_right_one_all_the_same(budget: Any, epochs: Any, match: str) -> None:
    with pytest.raises(ApicalError, match=match):
        Comparator(Dense(), built("mlp"), None, example("mlp"), budget, epochs)


def test_uniform_widths_of_a_shallower_network_use_the_same_budget() -> None:
    structure = structure_of("residual")
    skip = [b.name for b in structure.blocks][:2]
    shallow = uniform_keep(structure, "50% macs", skip=skip)
    assert structure.macs(shallow, skip) == pytest.approx(0.5 * structure.macs(), rel=0.02)
    assert sum(shallow.values()) > sum(uniform_keep(structure, "50% macs").values())


@pytest.mark.parametrize(("make", "message"), [
    (lambda: L1(prune_at=0.0, order="biggest"), "prune_at=0.0.*order='biggest'"),
    (lambda: Slimming(penalty=-1.0, least_fraction=1.0), "penalty=-1.0.*least_fraction=1.0"),
    (lambda: Taylor(prune_from=0.7), "prune_from=0.7 and prune_until=0.6"),
])  # fmt: skip
def test_every_wrong_option_is_named(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_a_finished_comparator_cannot_be_resized() -> None:
    model = built("plain")
    subject = Subject(model, None, example("plain"), structure=structure_of("plain"))
    subject.release()
    with pytest.raises(ConfigError, match="is released"):
        subject.resize_({})
