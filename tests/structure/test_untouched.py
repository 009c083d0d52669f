"""Tracing leaves the model, its gradients, its hooks and the global random state exactly as they were."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.errors import TraceError
from resizing.reference import assert_unchanged, snapshot
from structure.nets import Net, conv, head, image, tiny_resnet, unit


def photograph(model: nn.Module) -> dict[str, Any]:
    """Everything that could change, and how often each tensor was written into."""
    return {**snapshot(model), "versions": [(n, t._version) for n, t in model.state_dict(keep_vars=True).items()]}


def prepared() -> nn.Module:
    """A model in mixed modes, with gradients, frozen parts, hooks and used-up statistics."""
    model = tiny_resnet()
    model(*image()).sum().backward()
    model[0].eval()
    model[1].conv1.weight.requires_grad_(False)
    model[2].zero_grad()

    def forbidden(*_: Any) -> None:
        raise AssertionError("a hook of the user's was called")

    for module in (model, model[1]):
        module.register_forward_hook(forbidden)
        module.register_forward_pre_hook(forbidden)
        module.register_full_backward_hook(forbidden)
        module.register_state_dict_post_hook(lambda *_: None)
    return model


def test_trace_leaves_everything_as_it_was() -> None:
    model = prepared()
    before = photograph(model)
    apical.trace(model, image())
    assert_unchanged(before, photograph(model))


def test_a_failing_trace_does_too() -> None:
    model = prepared()
    before = photograph(model)
    with pytest.raises(TraceError):
        apical.trace(model, image(channels=4))
    assert_unchanged(before, photograph(model))


def test_a_trace_without_anything_to_remove_does_too() -> None:
    model = nn.Linear(3, 4)
    before = photograph(model)
    with pytest.raises(TraceError, match="nothing in Linear can be grown"):
        apical.trace(model, torch.zeros(2, 3))
    assert_unchanged(before, photograph(model))


def test_inputs_are_not_changed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        x.mul_(2.0)  # a model that writes into its input
        return m.last(m.a(x))

    x = image()[0]
    before = x.clone()
    apical.trace(Net(forward, a=unit(3, 6), last=conv(6, 2)), x)
    assert torch.equal(x, before)
    assert x.grad is None


def test_models_that_draw_random_numbers() -> None:
    net = Net(lambda m, x: m.last(m.a(x) + 0.1 * torch.randn_like(x[:, :1])), a=unit(3, 6), last=conv(6, 2))
    state = torch.get_rng_state()
    structure = apical.trace(net, image())
    assert torch.equal(torch.get_rng_state(), state)
    assert [g.name for g in structure.groups] == ["a.0"]


def test_buffers_that_the_forward_pass_updates() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.calls += 1
        return m.last(m.a(x))

    net = Net(forward, a=unit(3, 6), last=conv(6, 2), calls=torch.zeros((), dtype=torch.long))
    apical.trace(net, image())
    assert int(net.calls) == 0


def test_no_grad_and_inference_contexts() -> None:
    with torch.no_grad():
        a = apical.trace(tiny_resnet(), image())
        assert not torch.is_grad_enabled()
    assert a == apical.trace(tiny_resnet(), image())


def test_no_warnings_and_no_output(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apical.trace(nn.Sequential(unit(3, 8), head(8)), image())
        with pytest.raises(TraceError):
            apical.trace(nn.Sequential(unit(3, 8), head(8)), image(channels=5))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_what_python_froze_and_what_it_did_not() -> None:
    """The search for cycles passes over what was there before a trace while it runs, not after it."""
    net, seen = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)), []
    net.register_module("3", Counting(seen))
    gc.unfreeze()  # what the tests froze
    apical.trace(net, torch.randn(2, 3))
    assert min(seen) > 0
    assert gc.get_freeze_count() == 0
    gc.freeze()
    frozen = gc.get_freeze_count()
    try:
        apical.trace(net, torch.randn(2, 3))
        assert gc.get_freeze_count() > frozen // 2, "the caller's to thaw"
    finally:
        gc.unfreeze()


class Counting(nn.Module):
    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        vars(self)["note"] = lambda: seen.append(gc.get_freeze_count())

    def forward(self, x: Tensor) -> Tensor:
        self.note()
        return x
