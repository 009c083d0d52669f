"""Copies of the model (moving averages) that come later, and lists of parameters that were made before."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from apical import Grower
from apical.errors import ConfigError, ResizeError
from growth.cases import built, grown

EPOCHS = 8


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(torch.randn(8, 3, 8, 8)), torch.randint(5, (8,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


Started = tuple[nn.Module, torch.optim.Optimizer, Grower]


@pytest.fixture
def started() -> Started:
    model = built("residual")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, grown("residual", model, optimizer, EPOCHS, seed=0)


@pytest.mark.parametrize("when", [0, 2, 3])
def test_a_copy_that_is_added_later_follows_every_resize(started: Started, when: int) -> None:
    model, optimizer, grower = started
    average: AveragedModel | None = None
    for epoch in range(EPOCHS):
        train(model, optimizer)
        if epoch == when:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
            grower.add_copy(average)
        if average is not None:
            average.update_parameters(model)
        grower.end_epoch()
        if average is not None:
            shapes = [{n: tuple(p.shape) for n, p in m.state_dict().items()} for m in (model, average.module)]
            assert shapes[0] == shapes[1]
    assert average is not None
    assert torch.isfinite(average(torch.randn(2, 3, 8, 8))).all()


def test_what_is_born_in_a_later_copy_is_what_is_born_in_the_model(started: Started) -> None:
    """Without a step in between, copy and model stay equal to the last bit."""
    model, optimizer, grower = started
    train(model, optimizer)
    grower.end_epoch()
    optimizer.zero_grad()
    twin = copy.deepcopy(model)
    grower.add_copy(twin)
    for _ in range(EPOCHS - 1):
        grower.end_epoch()
        for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
            assert torch.equal(a, b), name


def test_a_copy_of_another_shape_and_one_that_is_known_are_refused(started: Started) -> None:
    model, _, grower = started
    with pytest.raises(ResizeError, match=r"the copy does not fit.*copy\.deepcopy\(model\)"):
        grower.add_copy(built("residual"))
    with pytest.raises(ConfigError, match="the model itself"):
        grower.add_copy(model)
    twin = copy.deepcopy(model)
    grower.add_copy(twin)
    with pytest.raises(ConfigError, match="resized already"):
        grower.add_copy(twin)


def test_a_list_of_parameters_from_before_a_resize_is_loud(started: Started) -> None:
    model, optimizer, grower = started
    params = list(model.parameters())
    train(model, optimizer)
    nn.utils.clip_grad_norm_(params, 1.0)  # nothing was resized in between
    grower.end_epoch()
    train(model, optimizer)
    with pytest.raises(ResizeError, match=r"clip_grad_norm_\(model\.parameters\(\), 1\.0\)"):
        nn.utils.clip_grad_norm_(params, 1.0)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    replaced = [p for p in params if id(p) not in {id(q) for q in model.parameters()}]
    assert replaced
    for parameter in replaced:
        assert torch.isfinite(parameter.detach()).all()  # its values can still be read
        with pytest.raises(ResizeError, match="no longer the model's"):
            parameter.grad = None


def test_an_optimizer_that_was_not_given_is_loud_once_the_model_was_resized(started: Started) -> None:
    model, optimizer, grower = started
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    grower.end_epoch()
    with pytest.raises(ResizeError, match="make every optimizer before the Grower"):
        other.zero_grad()


def test_finishing_twice_is_finishing_once(started: Started, recwarn: pytest.WarningsRecorder) -> None:
    grower = started[2]
    for _ in range(EPOCHS):
        grower.end_epoch()
    grower.finish()
    present = grower.history[-1]["widths"]
    grower.finish()
    assert not recwarn.list
    assert grower.history[-1]["widths"] == present


def test_a_target_network_inside_of_a_model_follows_the_online_one() -> None:
    """As in BYOL and mean teachers."""
    online = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model = nn.ModuleDict({"online": online, "target": copy.deepcopy(online).requires_grad_(False)})
    optimizer = torch.optim.SGD(model["online"].parameters(), lr=0.1)
    x = torch.randn(8, 8)
    grower = Grower(model["online"], optimizer, x[:1], "50% macs", 4, copies=[model["target"]])
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.mse_loss(model["online"](x), model["target"](x)).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(model["target"].parameters(), model["online"].parameters(), strict=True):
                slow.lerp_(fast, 0.1)
        grower.end_epoch()
    shapes = [[tuple(p.shape) for p in model[name].parameters()] for name in ("online", "target")]
    assert shapes[0] == shapes[1]
    assert shapes[0][0] == (8, 8)
