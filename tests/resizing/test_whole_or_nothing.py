"""A resize that fails half way leaves everything as it was, and a second try then succeeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import apical
from apical import DormantStore, Structure, register_module
from apical.errors import ResizeError
from apical.structure import _registry
from resizing.reference import Reference, assert_unchanged, snapshot, train_steps
from structure.nets import Residual, head, unit

SHAPE = (4, 3, 8, 8)


class Fuse:
    """Counts calls, and raises at one of them."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.error: type[BaseException] = RuntimeError
        self.burnt = False

    def burn(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.burnt = True
            self.left = None
            raise self.error("the fuse has burnt")


FUSE = Fuse()


class Delicate(Residual):
    """A block of the user's whose `__setattr__` may raise."""

    def __setattr__(self, name: str, value: Any) -> None:
        FUSE.burn()
        super().__setattr__(name, value)


class DelicateConv(nn.Conv2d):
    """The same for a layer: installing its weight goes through here."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "out_channels", "in_channels"):
            FUSE.burn()
        super().__setattr__(name, value)


@pytest.fixture(autouse=True)
def _registry_and_fuse() -> Iterator[None]:
    saved = dict(_registry._MODULE_REFRESH)
    FUSE.left, FUSE.error, FUSE.burnt = None, RuntimeError, False
    yield
    FUSE.left = None
    _registry._MODULE_REFRESH.clear()
    _registry._MODULE_REFRESH.update(saved)


def build() -> nn.Module:
    net = nn.Sequential(unit(3, 8), Delicate(8, 8, 6), Residual(8, 8, 7), Delicate(8, 8, 5), head(8))
    for block in net[1:4]:
        block.conv2 = DelicateConv(block.conv1.out_channels, 8, 3, padding=1, bias=False)
    return net


@pytest.fixture(scope="module")
def structure() -> Structure:
    return apical.trace(build(), torch.zeros(SHAPE))


@pytest.fixture
def scene(structure: Structure) -> tuple[nn.Module, list[optim.Optimizer], DormantStore, Reference]:
    """A model that was already resized, with a block away, and trained on."""
    model = build()
    front = [p for n, p in model.named_parameters() if n < "2"]
    back = [p for n, p in model.named_parameters() if n >= "2"]
    optimizers = [optim.Adam(front, lr=0.01), optim.SGD(back, lr=0.05, momentum=0.9)]
    store = DormantStore()
    train_steps(model, optimizers[0], 2, SHAPE, seed=0)
    optimizers[1].step()
    apical.resize_(model, structure, {"0.0": [0, 2, 5], "3.conv1": [1, 2]}, ["1"], optimizer=optimizers, store=store)
    train_steps(model, optimizers[0], 1, SHAPE, seed=1)
    optimizers[1].step()
    reference = Reference.of(structure, build())
    return model, optimizers, store, reference


NEXT: tuple[dict[str, list[int]], list[str]] = ({"0.0": [0, 1, 5, 7], "2.conv1": [3], "3.conv1": [0, 2]}, ["3"])


def fails(structure: Structure, scene: Any, error: type[BaseException] = ResizeError, **options: Any) -> BaseException:
    """The resize to NEXT raises and changes nothing but, at most, values in the store that nobody can tell apart."""
    model, optimizers, store, _ = scene
    before = snapshot(model, optimizers, store)
    keep, skip = NEXT
    with pytest.raises(error) as caught:
        apical.resize_(model, structure, keep, skip, optimizer=optimizers, store=store, **options)
    after = snapshot(model, optimizers, store)
    before.pop("store")
    after.pop("store")
    assert_unchanged(before, after)
    return caught.value


def succeeds_like_an_undisturbed_one(structure: Structure, scene: Any, twin: Any) -> None:
    """After the failure the same resize gives what it gives to a twin that never failed; then everything comes back."""
    for keep, skip in (NEXT, ({}, [])):
        for model, optimizers, store, _ in (scene, twin):
            apical.resize_(model, structure, keep, skip, optimizer=optimizers, store=store)
        for ours, theirs in zip(scene[0].state_dict().items(), twin[0].state_dict().items(), strict=True):
            assert ours[0] == theirs[0]
            assert torch.equal(ours[1], theirs[1])
        for mine, other in zip(scene[1], twin[1], strict=True):
            a, b = mine.state_dict(), other.state_dict()
            assert a["param_groups"] == b["param_groups"]
            assert a["state"].keys() == b["state"].keys()
            for key, entries in a["state"].items():
                for name, value in entries.items():
                    assert torch.equal(torch.as_tensor(value), torch.as_tensor(b["state"][key][name]))


scene_twin = scene


@pytest.fixture
def twin(structure: Structure) -> Any:
    return scene.__wrapped__(structure) if hasattr(scene, "__wrapped__") else None
