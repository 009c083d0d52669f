"""Copies of model, optimizer and Grower grow on by themselves; hooks that come after the Grower's are followed."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import apical

pytestmark = pytest.mark.usefixtures("traced_once")

Three = tuple[nn.Module, torch.optim.Optimizer, apical.Grower]


def made(**options: Any) -> Three:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3)).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    example = torch.zeros(1, 4, dtype=torch.float64)
    return model, optimizer, apical.Grower(model, optimizer, example, "50% macs", 8, **options)


def train(three: Three, epochs: range) -> None:
    model, optimizer, grower = three
    for epoch in epochs:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(3):
            x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long() + (x[:, 1] > 0)).backward()
            optimizer.step()
        grower.end_epoch()


def assert_same(a: Three, b: Three) -> None:
    assert [r["widths"] for r in a[2].history] == [r["widths"] for r in b[2].history]
    assert torch.equal(a[2].components.values, b[2].components.values)
    assert a[0].state_dict().keys() == b[0].state_dict().keys()
    assert all(torch.equal(t, b[0].state_dict()[name]) for name, t in a[0].state_dict().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda three: pickle.loads(pickle.dumps(three))])
@pytest.mark.parametrize("config", [None, apical.growth.ScsConfig()])
def test_a_copy_goes_on_as_the_original(copied: Callable[[Three], Three], config: Any) -> None:
    whole, first = made(config=config), made(config=config)
    train(whole, range(8))
    train(first, range(3))
    second = copied(first)
    held = [p for group in second[1].param_groups for p in group["params"]]
    assert all(a is b for a, b in zip(held, second[0].parameters(), strict=True))
    for three in (second, first):  # neither disturbs the other
        train(three, range(3, 8))
        assert_same(three, whole)
    assert len({str(r["widths"]) for r in whole[2].history}) > 2, "the network did change"


def test_a_finished_grower_is_copied() -> None:
    three = made()
    train(three, range(8))
    three[2].finish()
    assert copy.deepcopy(three)[2].history == three[2].history


def test_the_copied_model_counts_as_shrunk() -> None:
    model, optimizer, _ = copy.deepcopy(made())
    with pytest.raises(apical.errors.ConfigError, match="already shrunk"):
        apical.Grower(model, optimizer, torch.zeros(1, 4, dtype=torch.float64), "50% macs", 8)


def test_a_hook_that_came_later_is_followed() -> None:
    """Gradients that it cleans count as cleaned, from the second step on."""
    clean = made()

    def halve(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad.mul_(0.5)

    def products(three: Three) -> torch.Tensor:
        model, optimizer, grower = three
        grower.components.buffer.zero_()
        grower._restructuring.watch()
        optimizer.zero_grad()
        x = torch.linspace(-1, 1, 64, dtype=torch.float64).view(16, 4)
        nn.functional.cross_entropy(model(x), torch.zeros(16, dtype=torch.long)).backward()
        optimizer.step()
        grower._restructuring.write_back()
        return grower.components.buffer.clone()

    clean[1].param_groups[0]["lr"] = 0.0
    clean[1].param_groups[0]["weight_decay"] = 0.0
    before = products(clean)
    clean[1].register_step_pre_hook(halve)
    products(clean)
    assert before.abs().max() > 0
    assert torch.allclose(products(clean), before / 4)


def test_the_hook_stays_where_none_came_later() -> None:
    """A compiled step would be compiled anew after every step."""
    three = made()
    hooks = three[1]._optimizer_step_pre_hooks
    train(three, range(1))
    before = list(hooks)
    train(three, range(1, 3))
    assert list(hooks) == before
