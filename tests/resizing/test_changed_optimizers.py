"""Optimizers that hold more or less than at the last resize, and new ones with the same store: nothing gets lost."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import nn, optim
from torch.optim import Optimizer

import apical
from apical import DormantStore, Grower
from apical.errors import ResizeError
from apical.growth import ScsConfig
from resizing.reference import assert_unchanged, equal_trees, snapshot, train_steps
from structure.nets import image, tiny_resnet, tiny_structure

SHAPE = (4, 3, 8, 8)


def held(model: nn.Module, optimizer: Optimizer) -> list[list[str]]:
    """The names of what each group holds, "gone" for what the model does not have."""
    names = {id(p): n for n, p in model.named_parameters()}
    return [[names.get(id(p), "gone") for p in group["params"]] for group in optimizer.param_groups]


def groups(model: nn.Module) -> list[dict[str, object]]:
    """Matrices with weight decay, vectors without."""
    wide, flat = [p for p in model.parameters() if p.dim() > 1], [p for p in model.parameters() if p.dim() == 1]
    return [{"params": wide, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}]


def without_block(
    optimizer: type[Optimizer], two_groups: bool = False, **options: object
) -> tuple[nn.Module, Optimizer, DormantStore]:
    """A model that has trained and whose block 3 is away."""
    model, store = tiny_resnet(), DormantStore()
    first = optimizer(groups(model) if two_groups else model.parameters(), lr=0.05, **options)  # type: ignore[call-arg, arg-type]
    train_steps(model, first, 2, SHAPE, seed=0)
    resize(model, first, store, ["3"])
    return model, first, store


def resize(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    store: DormantStore,
    skip: Sequence[str],
    keep: dict[str, list[int]] | None = None,
) -> None:
    apical.resize_(model, tiny_structure(), keep or {}, skip, optimizer=optimizer, store=store)


# ---- the same optimizer, with other parameters -----------------------------------------------------------------------


def test_what_was_added_to_a_group_stays_in_it() -> None:
    """Gradual unfreezing: the head joins after the first resize."""
    model, store = tiny_resnet(), DormantStore()
    optimizer = optim.SGD([p for n, p in model.named_parameters() if not n.startswith("6.")], lr=0.1, momentum=0.9)
    resize(model, optimizer, store, ["1", "3"])
    optimizer.param_groups[0]["params"].extend(model[6].parameters())
    train_steps(model, optimizer, 1, SHAPE, seed=0)
    resize(model, optimizer, store, ["3"])
    resize(model, optimizer, store, [])
    assert held(model, optimizer) == [[n for n, _ in model.named_parameters()]]
    assert "momentum_buffer" in optimizer.state[model[6].bias]


def test_a_grower_keeps_a_head_that_was_unfrozen() -> None:
    torch.manual_seed(0)
    model = tiny_resnet()
    model[6].requires_grad_(False)
    optimizer = optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    grower = Grower(model, optimizer, image(), "90% macs", epochs=4, config=ScsConfig.random(seed_fraction=0.1))
    model[6].requires_grad_(True)
    optimizer.param_groups[0]["params"].extend(model[6].parameters())
    absent = len(list(tiny_resnet().parameters())) - len(list(model.parameters()))
    assert absent, "no block was away"
    for epoch in range(4):
        train_steps(model, optimizer, 2, SHAPE, seed=epoch)
        grower.end_epoch()
        assert sorted(held(model, optimizer)[0]) == sorted(n for n, _ in model.named_parameters())
    assert grower.history[-1]["skipped"] == [], "no block came back"


def test_what_was_added_as_a_group_stays_in_it() -> None:
    model, store = tiny_resnet(), DormantStore()
    optimizer = optim.Adam([p for n, p in model.named_parameters() if not n.startswith(("3.", "6."))], lr=0.1)
    optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 0.01})
    train_steps(model, optimizer, 1, SHAPE, seed=0)
    left = copy.deepcopy(optimizer.state[model[3].conv1.weight])
    resize(model, optimizer, store, ["3"])
    optimizer.add_param_group({"params": list(model[6].parameters()), "lr": 0.02})
    resize(model, optimizer, store, [], {"1.conv1": [0, 2]})
    assert [{n.partition(".")[0] for n in names} for names in held(model, optimizer)] == [{"0", "1", "2"}, {"3"}, {"6"}]
    assert equal_trees(optimizer.state[model[3].conv1.weight], left)


def test_what_was_taken_out_stays_out() -> None:
    model, store = tiny_resnet(), DormantStore()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    resize(model, optimizer, store, ["1"])
    kept = {id(p) for n, p in model.named_parameters() if not n.startswith("3.")}
    optimizer.param_groups[0]["params"][:] = [p for p in optimizer.param_groups[0]["params"] if id(p) in kept]
    resize(model, optimizer, store, ["3"], {"3.conv1": [0]})
    resize(model, optimizer, store, [])
    assert held(model, optimizer) == [[n for n, _ in model.named_parameters() if not n.startswith("3.")]]


def test_a_block_that_was_never_in_it_stays_out() -> None:
    """A head alone is trained, and nothing is frozen."""
    model, store = tiny_resnet(), DormantStore()
    optimizer = optim.SGD(model[6].parameters(), lr=0.1)
    for skip in (["3"], [], ["1"], []):
        resize(model, optimizer, store, skip)
        assert held(model, optimizer) == [["6.weight", "6.bias"]]
    again = optim.SGD(model[6].parameters(), lr=0.1)
    for skip in (["3"], [], ["1"], []):
        resize(model, again, store, skip)
        assert held(model, again) == [["6.weight", "6.bias"]]


# ---- another optimizer -----------------------------------------------------------------------------------------------


def test_from_two_groups_to_one() -> None:
    model, _, store = without_block(optim.SGD, two_groups=True)
    new = optim.SGD(model.parameters(), lr=0.1)
    resize(model, new, store, [])
    assert sorted(held(model, new)[0]) == sorted(n for n, _ in model.named_parameters())


@pytest.mark.parametrize("early", [False, True])
def test_the_same_groups_in_another_optimizer(early: bool) -> None:
    """What returns goes to its own group, whether the new optimizer saw a resize before or not."""
    model, _, store = without_block(optim.SGD, two_groups=True)
    new = optim.AdamW(groups(model), lr=0.01)
    if early:
        resize(model, new, store, ["3"], {"1.conv1": [0]})
    resize(model, new, store, [])
    dims = {n: p.dim() for n, p in model.named_parameters()}
    assert held(model, new) == [[n for n, d in dims.items() if d > 1], [n for n, d in dims.items() if d == 1]]


def test_from_one_optimizer_to_two_and_back() -> None:
    model, _, store = without_block(optim.SGD, two_groups=True)
    wide, flat = groups(model)
    two = [optim.SGD([flat], lr=0.1), optim.Adam([wide], lr=0.1)]
    resize(model, two, store, [])
    names = [n for n, _ in model.named_parameters()]
    assert sorted(held(model, two[0])[0] + held(model, two[1])[0]) == sorted(names)
    assert "3.bn1.weight" in held(model, two[0])[0]
    resize(model, two, store, ["1"])
    one = optim.SGD(model.parameters(), lr=0.1)
    resize(model, one, store, [])
    assert sorted(held(model, one)[0]) == sorted(names)


@pytest.mark.parametrize("new", [optim.AdamW, optim.SGD])
def test_state_of_another_optimizer_does_not_come_back(new: type[Optimizer]) -> None:
    """Neither with a block nor with channels, also if it is of the same class; and training goes on."""
    model, _, store = without_block(optim.SGD, momentum=0.9)
    options = {"momentum": 0.9} if new is optim.SGD else {}
    optimizer = new(model.parameters(), lr=0.01, **options)  # type: ignore[call-arg]
    train_steps(model, optimizer, 1, SHAPE, seed=1)
    resize(model, optimizer, store, ["3"], {"1.conv1": [0, 1]})
    resize(model, optimizer, store, [])
    assert not any(p in optimizer.state for p in model[3].parameters())
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train_steps(model, optimizer, 2, SHAPE, seed=2)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_dormant_channels_return_to_a_new_optimizer_without_moments() -> None:
    model, store = tiny_resnet(), DormantStore()
    old = optim.Adam(model.parameters(), lr=0.01)
    train_steps(model, old, 1, SHAPE, seed=0)
    resize(model, old, store, [], {"1.conv1": [0, 1]})
    new = optim.Adam(model.parameters(), lr=0.01)
    train_steps(model, new, 1, SHAPE, seed=0)
    resize(model, new, store, [])
    for entry in ("exp_avg", "exp_avg_sq"):
        moment = new.state[model[1].conv1.weight][entry]
        assert bool(moment[:2].any())
        assert not bool(moment[2:].any())


def test_after_a_failed_try_with_a_new_one_the_old_one_finds_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    model, optimizer, store = without_block(optim.Adam)
    saved = store.state_dict()
    new = optim.AdamW(model.parameters(), lr=0.01)
    with monkeypatch.context() as patch:
        patch.setattr("apical.resizing._resize.rekey_", lambda *_: 1 / 0)
        with pytest.raises(ResizeError, match="nothing changed"):
            resize(model, new, store, [])
    assert equal_trees(store.state_dict(), saved)
    resize(model, optimizer, store, [])
    assert all(float(optimizer.state[p]["step"]) == 2 for p in model[3].parameters())


def test_groups_that_do_not_tell_where_a_block_goes_are_refused() -> None:
    """One group before, two now: with or without weight decay, that is not for us to guess."""
    model, _, store = without_block(optim.SGD)
    split = optim.SGD(groups(model), lr=0.1)
    resize(model, split, store, ["3"], {"1.conv1": [0]})
    before = snapshot(model, [split])
    with pytest.raises(ResizeError, match=r"3\.conv1\.weight \(and 5 more\) comes back.*SGD \(parameter groups: 2\)"):
        resize(model, split, store, [])
    assert_unchanged(before, snapshot(model, [split]))
    one = optim.SGD(model.parameters(), lr=0.1)
    resize(model, one, store, [])
    assert sorted(held(model, one)[0]) == sorted(n for n, _ in model.named_parameters())


def test_an_optimizer_made_while_a_block_was_away_gets_it() -> None:
    model, store = tiny_resnet(), DormantStore()
    model[1].requires_grad_(False)
    apical.resize_(model, tiny_structure(), {}, ["1", "3"], store=store)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    resize(model, optimizer, store, ["1", "3"], {"3.conv1": [0]})
    resize(model, optimizer, store, [])
    assert set(held(model, optimizer)[0]) == {n for n, p in model.named_parameters() if p.requires_grad}


# ---- stores that were saved or copied --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["loaded", "of an older version", "copied"])
def test_a_store_without_its_objects_knows_the_optimizer_by_its_class(way: str) -> None:
    for kind in (optim.Adam, optim.AdamW):
        model, _, store = without_block(optim.Adam, two_groups=True)
        if way == "copied":
            model, store = copy.deepcopy((model, store))
        else:
            saved = store.state_dict()
            if way != "loaded":
                del saved["optimizers"], saved["order"]["none"]
            store.load_state_dict(saved)
        new = kind(groups(model), lr=0.01)
        resize(model, new, store, [])
        restored = [p in new.state for p in model[3].parameters()]
        assert restored == [kind is optim.Adam or way == "of an older version"] * len(restored)
        assert [len(names) for names in held(model, new)] == [len(g["params"]) for g in groups(tiny_resnet())]  # type: ignore[arg-type]


def test_after_a_load_the_first_optimizer_is_the_one() -> None:
    model, first, store = without_block(optim.Adam)
    store.load_state_dict(store.state_dict())
    resize(model, first, store, ["3"], {"1.conv1": [0]})
    second = optim.Adam(model.parameters(), lr=0.01)
    resize(model, second, store, [])
    assert not any(p in second.state for p in model[3].parameters())
