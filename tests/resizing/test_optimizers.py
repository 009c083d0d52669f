"""After a resize every live parameter moves, and moves exactly as in a fresh run from the same state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import apical
from apical import DormantStore, Structure
from apical.errors import ResizeError
from marks import quick
from resizing.reference import Reference, assert_unchanged, fresh_run, snapshot, train_steps
from structure.contract import random_keep
from structure.nets import tiny_resnet

SHAPE = (4, 3, 8, 8)
Make = Callable[[Any], Optimizer]


def make(kind: str, **options: Any) -> Make:
    return lambda params: getattr(optim, kind)(params, **options)


OPTIMIZERS: dict[str, Make] = {
    "sgd": make("SGD", lr=0.05),
    "momentum": make("SGD", lr=0.05, momentum=0.9, dampening=0.1, weight_decay=1e-3),
    "nesterov": make("SGD", lr=0.05, momentum=0.9, nesterov=True),
    "adam": make("Adam", lr=0.01),
    "adam_maximize": make("Adam", lr=0.01, maximize=True),
    "adamw_amsgrad": make("AdamW", lr=0.01, amsgrad=True),
    "rmsprop": make("RMSprop", lr=0.01, centered=True, momentum=0.9),
    "adagrad": make("Adagrad", lr=0.05, initial_accumulator_value=0.1),
    "nadam": make("NAdam", lr=0.01, decoupled_weight_decay=True),
    "radam": make("RAdam", lr=0.01),
    "adadelta": make("Adadelta", lr=1.0),
    "adamax": make("Adamax", lr=0.01),
    "asgd": make("ASGD", lr=0.01, t0=2),
    "rprop": make("Rprop", lr=0.01),
    "sgd_foreach": make("SGD", lr=0.05, momentum=0.9, foreach=True),
    "adam_foreach": make("Adam", lr=0.01, foreach=True),
    "adamw_foreach": make("AdamW", lr=0.01, amsgrad=True, foreach=True),
    "rmsprop_foreach": make("RMSprop", lr=0.01, centered=True, momentum=0.9, foreach=True),
    "adagrad_foreach": make("Adagrad", lr=0.05, foreach=True),
    "adadelta_foreach": make("Adadelta", foreach=True),
    "adamax_foreach": make("Adamax", lr=0.01, foreach=True),
    "nadam_foreach": make("NAdam", lr=0.01, foreach=True),
    "radam_foreach": make("RAdam", lr=0.01, foreach=True),
    "sgd_fused": make("SGD", lr=0.05, momentum=0.9, fused=True),
    "adam_fused": make("Adam", lr=0.01, fused=True),
    "adamw_fused": make("AdamW", lr=0.01, amsgrad=True, fused=True),
    "adagrad_fused": make("Adagrad", lr=0.05, fused=True),
    "adam_tensor_lr": lambda params: optim.Adam(params, lr=torch.tensor(0.01), foreach=False),
    "adam_differentiable": make("Adam", lr=0.01, foreach=False, differentiable=False),
}


OFTEN = ("adamw_foreach", "sgd_fused", "adamw_fused")  # of those that torch computes in another way


@pytest.mark.parametrize("kind", quick(OPTIMIZERS, lambda kind: "_f" not in kind or kind in OFTEN))
def test_moves_as_a_fresh_run_from_the_same_state(structure: Structure, kind: str) -> None:
    """Shrink with a block dropped, train, regrow with the block back, train: each time against a fresh run."""
    model = tiny_resnet()
    template = tiny_resnet()
    optimizer = OPTIMIZERS[kind](model.parameters())
    store, reference = DormantStore(), Reference.of(structure, model, optimizer)
    choices: list[tuple[dict[str, list[int]], Sequence[str]]] = [
        (random_keep(structure, 0), ["3"]), (random_keep(structure, 1), []), ({}, ["1"]), ({}, []),
    ]  # fmt: skip
    for round_, (keep, skip) in enumerate(choices):
        train_steps(model, optimizer, 2, SHAPE, seed=round_)
        reference.pull(model, optimizer)
        reference.choose(keep, skip)
        apical.resize_(model, structure, keep, skip, optimizer=optimizer, store=store)
        reference.assert_matches(model, optimizer)

        def shrink(fresh: nn.Module, keep: Any = keep, skip: Any = skip) -> None:
            apical.resize_(fresh, structure, keep, skip)

        twin, twins_optimizer = fresh_run(
            reference, template, shrink, lambda groups: OPTIMIZERS[kind]([p for g in groups for p in g])
        )
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        train_steps(model, optimizer, 2, SHAPE, seed=100 + round_)
        train_steps(twin, twins_optimizer, 2, SHAPE, seed=100 + round_)
        for (name, moved), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
            assert torch.equal(moved, expected), f"{name} moves otherwise than in a fresh run"
            assert not torch.equal(moved, before[name]), f"{name} does not move"
        reference.pull(model, optimizer)


def test_all_of_torchs_optimizers_are_covered() -> None:
    """A new optimizer in torch should come with a decision here."""
    built = {type(m([nn.Parameter(torch.zeros(1))])).__name__ for m in OPTIMIZERS.values()}
    known = built | {"Adafactor", "LBFGS", "Muon", "SparseAdam", "Optimizer"}
    kinds = {n for n, v in vars(optim).items() if isinstance(v, type) and issubclass(v, Optimizer)}
    assert kinds <= known


def test_muon() -> None:
    if not hasattr(optim, "Muon"):
        pytest.skip("this torch has no Muon")
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    structure = apical.trace(model, torch.zeros(1, 3))
    optimizer, store = optim.Muon(model.parameters(), lr=0.02), DormantStore()
    train_steps(model, optimizer, 2, (4, 3), seed=0)
    reference = Reference.of(structure, model, optimizer)
    reference.pull(model, optimizer)
    for keep in ({"0": [1, 4, 6]}, {}):
        apical.resize_(model, structure, keep, optimizer=optimizer, store=store)
        reference.choose(keep)
        reference.assert_matches(model, optimizer)
        train_steps(model, optimizer, 1, (4, 3), seed=1)
        reference.pull(model, optimizer)


# ---- parameter groups -----------------------------------------------------------------------------------------------


def grouped(model: nn.Module) -> Optimizer:
    """Norms without weight decay, as everybody does it."""
    norms = [p for n, p in model.named_parameters() if p.dim() == 1]
    rest = [p for n, p in model.named_parameters() if p.dim() > 1]
    return optim.AdamW([{"params": rest, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}], lr=0.01)


def test_parameter_groups_keep_their_order_and_options(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer, store = grouped(model), DormantStore()
    reference = Reference.of(structure, model, optimizer)
    options = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    groups = [id(g) for g in optimizer.param_groups]
    for seed, skip in enumerate([["1", "3"], ["3"], ["1"], [], ["1", "3"], []]):
        train_steps(model, optimizer, 1, SHAPE, seed=seed)
        reference.pull(model, optimizer)
        keep = random_keep(structure, seed)
        apical.resize_(model, structure, keep, skip, optimizer=optimizer, store=store)
        reference.choose(keep, skip)
        reference.assert_matches(model, optimizer)
        assert [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups] == options
        assert [id(g) for g in optimizer.param_groups] == groups


def test_named_parameters_keep_their_names(structure: Structure) -> None:
    model = tiny_resnet()
    named = list(model.named_parameters())
    optimizer = optim.SGD([{"params": named[4:]}, {"params": named[:4]}], lr=0.1, momentum=0.9)
    before = [list(g["param_names"]) for g in optimizer.param_groups]
    store = DormantStore()

    def check() -> None:
        live = {id(p): n for n, p in model.named_parameters()}
        for group in optimizer.param_groups:
            assert [live[id(p)] for p in group["params"]] == group["param_names"]

    for seed, skip in enumerate([["3"], ["1", "3"], ["1"], []]):
        train_steps(model, optimizer, 1, SHAPE, seed=seed)
        apical.resize_(model, structure, random_keep(structure, seed), skip, optimizer=optimizer, store=store)
        check()
    assert [list(g["param_names"]) for g in optimizer.param_groups] == before


@pytest.mark.parametrize("named", [False, True])
def test_parameters_of_others_stay_where_they_are(structure: Structure, named: bool) -> None:
    """An optimizer that also trains a loss's own parameters."""
    model = tiny_resnet()
    extra = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]
    mixed: list[Any] = list(model.named_parameters())
    mixed[3:3] = [("temperature", extra[0]), ("offset", extra[1])]
    optimizer = optim.SGD(mixed if named else [p for _, p in mixed], lr=0.1, momentum=0.9)
    store = DormantStore()
    names = [n for n, _ in mixed]
    for skip in (["1"], ["1", "3"], []):
        train_steps(model, optimizer, 1, SHAPE, seed=0)
        extra[0].grad = torch.ones(3)
        optimizer.step()
        apical.resize_(model, structure, random_keep(structure, 0), skip, optimizer=optimizer, store=store)
        held = optimizer.param_groups[0]["params"]
        assert sum(p is extra[0] for p in held) == 1
        assert sum(p is extra[1] for p in held) == 1
        if named:
            given = optimizer.param_groups[0]["param_names"]
            assert given[[p is extra[0] for p in held].index(True)] == "temperature"
            assert given[[p is extra[1] for p in held].index(True)] == "offset"
            assert sorted(given) == sorted(n for n in names if not n.startswith(tuple(f"{b}." for b in skip)))
    assert "momentum_buffer" in optimizer.state[extra[0]]


def test_several_optimizers_over_one_model(structure: Structure) -> None:
    model = tiny_resnet()
    front = [p for n, p in model.named_parameters() if n.startswith(("0", "1"))]
    back = [p for n, p in model.named_parameters() if not n.startswith(("0", "1"))]
    optimizers = [optim.SGD(front, lr=0.1, momentum=0.9), optim.Adam(back, lr=0.01)]
    store = DormantStore()
    references = [Reference.of(structure, model, o) for o in optimizers]
    for seed, skip in enumerate([["1"], ["3"], ["1", "3"], []]):
        train_steps(model, optimizers[0], 1, SHAPE, seed=seed)
        optimizers[1].step()
        keep = random_keep(structure, seed)
        for reference, optimizer in zip(references, optimizers, strict=True):
            reference.pull(model, optimizer)
            reference.choose(keep, skip)
        apical.resize_(model, structure, keep, skip, optimizer=optimizers, store=store)
        for reference, optimizer in zip(references, optimizers, strict=True):
            reference.assert_matches(model, optimizer)


def test_frozen_parameters_in_and_out_of_the_optimizer(structure: Structure) -> None:
    model = tiny_resnet()
    for name, p in model.named_parameters():
        p.requires_grad_(not name.startswith("1."))
    optimizer = optim.SGD([p for n, p in model.named_parameters() if n != "6.bias"], lr=0.1, momentum=0.9)
    store = DormantStore()
    for skip in ([], ["1"], ["3"], []):
        train_steps(model, optimizer, 1, SHAPE, seed=0)
        apical.resize_(model, structure, random_keep(structure, 3), skip, optimizer=optimizer, store=store)
        assert all(p.requires_grad != n.startswith("1.") for n, p in model.named_parameters())
        held = {id(p) for g in optimizer.param_groups for p in g["params"]}
        assert held == {id(p) for n, p in model.named_parameters() if n != "6.bias"}


def test_before_the_first_step_there_is_no_state(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer, store = optim.Adam(model.parameters(), lr=0.01), DormantStore()
    apical.resize_(model, structure, random_keep(structure, 0), ["3"], optimizer=optimizer, store=store)
    assert not optimizer.state
    train_steps(model, optimizer, 1, SHAPE, seed=0)
    apical.resize_(model, structure, {}, optimizer=optimizer, store=store)
    for name, p in model.named_parameters():
        if name.startswith("3."):
            assert p not in optimizer.state, "a block that never trained has no state"
        else:
            assert float(optimizer.state[p]["step"]) == 1
    train_steps(model, optimizer, 2, SHAPE, seed=1)


def test_channels_that_were_absent_return_with_the_moments_they_left_with(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer, store = optim.Adam(model.parameters(), lr=0.01), DormantStore()
    train_steps(model, optimizer, 2, SHAPE, seed=0)
    left = optimizer.state[model[1].conv1.weight]["exp_avg"][4].clone()
    apical.resize_(model, structure, {"1.conv1": [0, 1]}, optimizer=optimizer, store=store)
    train_steps(model, optimizer, 2, SHAPE, seed=1)
    apical.resize_(model, structure, {"1.conv1": [1, 4]}, optimizer=optimizer, store=store)
    assert torch.equal(optimizer.state[model[1].conv1.weight]["exp_avg"][1], left)


def test_without_a_store_state_is_sliced(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train_steps(model, optimizer, 2, SHAPE, seed=0)
    reference = Reference.of(structure, model, optimizer)
    reference.pull(model, optimizer)
    keep = random_keep(structure, 5)
    apical.resize_(model, structure, keep, ["1"], optimizer=optimizer)
    reference.choose(keep, ["1"])
    reference.assert_matches(model, optimizer)


def test_state_dict_of_the_optimizer_stays_loadable(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer, store = grouped(model), DormantStore()
    train_steps(model, optimizer, 2, SHAPE, seed=0)
    apical.resize_(model, structure, random_keep(structure, 2), ["3"], optimizer=optimizer, store=store)
    train_steps(model, optimizer, 1, SHAPE, seed=1)
    twin = tiny_resnet()
    apical.resize_(twin, structure, random_keep(structure, 2), ["3"])
    twin.load_state_dict(model.state_dict())
    other = grouped(twin)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for o, m in ((optimizer, model), (other, twin)):
        train_steps(m, o, 2, SHAPE, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


# ---- state that does not follow the channels -------------------------------------------------------------------------


def lbfgs(params: Any) -> Optimizer:
    return optim.LBFGS(params, lr=0.1, max_iter=2)


REFUSED: dict[str, Make] = {"Adafactor": make("Adafactor", lr=0.01), "LBFGS": lbfgs}


def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_advice_and_nothing_changed(structure: Structure, kind: str) -> None:
    model = tiny_resnet()
    optimizer, store = REFUSED[kind](model.parameters()), DormantStore()
    step(model, optimizer, 0)
    before = snapshot(model, [optimizer])
    with pytest.raises(ResizeError, match=rf"{kind}.*optimizer_state='reset'"):
        apical.resize_(model, structure, random_keep(structure, 1), ["3"], optimizer=optimizer, store=store)
    assert_unchanged(before, snapshot(model, [optimizer]))


@pytest.mark.parametrize("kind", REFUSED)
def test_reset_on_request_and_reported(structure: Structure, kind: str) -> None:
    model = tiny_resnet()
    optimizer, store = REFUSED[kind](model.parameters()), DormantStore()
    for round_, (keep, skip) in enumerate(
        [(random_keep(structure, 1), ["3"]), (random_keep(structure, 2), []), ({}, [])]
    ):
        step(model, optimizer, round_)
        report = apical.resize_(
            model, structure, keep, skip, optimizer=optimizer, store=store, optimizer_state="reset"
        )  # fmt: skip
        assert report.reset, "what was dropped must be named"
        assert "optimizer state reset for" in str(report)
        live = {id(p) for p in model.parameters()}
        assert {id(p) for g in optimizer.param_groups for p in g["params"]} == live
        assert {id(p) for p in optimizer.state} <= live
        before = [p.detach().clone() for p in model.parameters()]
        step(model, optimizer, 10 + round_)
        step(model, optimizer, 20 + round_)
        assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_reset_leaves_state_that_can_follow(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer = optim.Adam(model.parameters(), lr=0.01)
    train_steps(model, optimizer, 2, SHAPE, seed=0)
    report = apical.resize_(model, structure, {"1.conv1": [0]}, optimizer=optimizer, optimizer_state="reset")
    assert report.reset == ()
    assert all(float(optimizer.state[p]["step"]) == 2 for p in model.parameters())


def test_lbfgs_history_of_untouched_parameters_is_dropped_too(structure: Structure) -> None:
    """LBFGS keeps one flat history under its first parameter: a resize of any other makes it wrong."""
    model = tiny_resnet()
    optimizer = lbfgs(model.parameters())
    step(model, optimizer, 0)
    assert next(iter(model.parameters())) in optimizer.state
    with pytest.raises(ResizeError, match="LBFGS"):
        apical.resize_(model, structure, {"3.conv1": [0, 1]}, optimizer=optimizer)
    report = apical.resize_(model, structure, {"3.conv1": [0, 1]}, optimizer=optimizer, optimizer_state="reset")
    assert report.reset
    step(model, optimizer, 1)
