"""A resize that fails half way leaves everything as it was, and a second try then succeeds."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

import apical
from apical import DormantStore, Structure, register_module
from apical.errors import ResizeError
from apical.resizing import _resize
from apical.structure import _registry
from resizing.reference import assert_unchanged, equal_trees, snapshot, train_steps
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


@dataclass
class Scene:
    """A model that was resized before, with a block away, and trained on; the same at every call."""

    model: nn.Module
    optimizers: list[optim.Optimizer]
    store: DormantStore
    average: nn.Module
    structure: Structure

    @staticmethod
    def make(structure: Structure) -> Scene:
        torch.manual_seed(0)
        model = build()
        front = [p for n, p in model.named_parameters() if n < "2"]
        back = [p for n, p in model.named_parameters() if n >= "2"]
        optimizers = [optim.Adam(front, lr=0.01), optim.SGD(back, lr=0.05, momentum=0.9)]
        scene = Scene(model, optimizers, DormantStore(), copy.deepcopy(model), structure)
        scene.train(0)
        scene.resize({"0.0": [0, 2, 5], "3.conv1": [1, 2]}, ["1"])
        scene.train(1)
        return scene

    def train(self, seed: int) -> None:
        train_steps(self.model, self.optimizers[0], 1, SHAPE, seed=seed)
        self.optimizers[1].step()

    def resize(self, keep: dict[str, list[int]], skip: list[str]) -> None:
        apical.resize_(
            self.model, self.structure, keep, skip, optimizer=self.optimizers, store=self.store, copies=[self.average]
        )

    def photograph(self) -> list[dict[str, Any]]:
        return [snapshot(self.model, self.optimizers, self.store), snapshot(self.average)]

    def fails(self, error: type[BaseException] = ResizeError) -> BaseException:
        """The resize to NEXT raises and changes nothing.

        The store may already hold the present values, which it would read from the model anyway.
        """
        before = self.photograph()
        with pytest.raises(error) as caught:
            self.resize(*NEXT)
        for old, new in zip(before, self.photograph(), strict=True):
            old.pop("store", None)
            new.pop("store", None)
            assert_unchanged(old, new)
        return caught.value

    def goes_on_like(self, twin: Scene) -> None:
        """From here on everything is as in a twin that never failed, also what was away."""
        for round_, (keep, skip) in enumerate([NEXT, ({}, [])]):
            for scene in (self, twin):
                scene.resize(keep, skip)
                scene.train(2 + round_)
            for ours, theirs in ((self.model, twin.model), (self.average, twin.average)):
                assert str(ours) == str(theirs)
                assert equal_trees(dict(ours.state_dict()), dict(theirs.state_dict()))
            for mine, other in zip(self.optimizers, twin.optimizers, strict=True):
                assert equal_trees(mine.state_dict(), other.state_dict())


NEXT: tuple[dict[str, list[int]], list[str]] = ({"0.0": [0, 1, 5, 7], "2.conv1": [3], "3.conv1": [0, 2]}, ["3"])
BACK: tuple[dict[str, list[int]], list[str]] = ({"0.0": [0, 1, 5, 7]}, [])


@pytest.fixture
def scene(structure: Structure) -> Scene:
    return Scene.make(structure)


@pytest.fixture
def twin(structure: Structure) -> Scene:
    return Scene.make(structure)


def test_a_refresh_function_that_raises(scene: Scene, twin: Scene) -> None:
    calls = []

    def refresh(module: Residual) -> None:
        calls.append(module)
        module.note = "changed"  # an attribute that was not there before
        if len(calls) == 2:
            raise ValueError("cannot restate")

    register_module(Residual)(refresh)
    problem = scene.fails()
    assert "cannot restate" in str(problem)
    assert isinstance(problem.__cause__, ValueError)
    _registry._MODULE_REFRESH.pop(Residual)
    scene.goes_on_like(twin)


@pytest.mark.parametrize("after", range(0, 14, 2))
def test_an_assignment_that_raises_once(scene: Scene, twin: Scene, after: int) -> None:
    FUSE.left = after
    if FUSE.left is not None:
        try:
            scene.fails()
        except pytest.fail.Exception:
            assert not FUSE.burnt, "an error of the module's was swallowed"
            return
    scene.goes_on_like(twin)


def test_an_assignment_that_always_raises(structure: Structure, scene: Scene, twin: Scene) -> None:
    """The way back must not go through the door that is locked."""

    class Locked(DelicateConv):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "weight" and LOCKED:
                raise RuntimeError("locked")
            super().__setattr__(name, value)

    conv = scene.model[2].conv2
    conv.__class__ = Locked
    LOCKED.append(1)
    problem = scene.fails()
    assert "locked" in str(problem)
    LOCKED.clear()
    conv.__class__ = DelicateConv
    scene.goes_on_like(twin)


LOCKED: list[int] = []


def test_an_interrupt_from_the_keyboard(scene: Scene, twin: Scene) -> None:
    """Ctrl-C during the installation: not an error of ours, but nothing may stay half done."""
    FUSE.left, FUSE.error = 6, KeyboardInterrupt
    scene.fails(KeyboardInterrupt)
    assert FUSE.burnt
    scene.goes_on_like(twin)


def test_the_second_optimizer_fails_after_the_first_was_re_keyed(scene: Scene, twin: Scene) -> None:
    class Stubborn(dict):  # type: ignore[type-arg]
        def __setitem__(self, key: Any, value: Any) -> None:
            raise RuntimeError("no new state")

    optimizer = scene.optimizers[1]
    entries = dict(optimizer.state)
    optimizer.state = Stubborn(entries)  # type: ignore[assignment]
    problem = scene.fails()
    assert "no new state" in str(problem)
    kept = optimizer.state
    optimizer.state = defaultdict(dict, kept)
    scene.goes_on_like(twin)


def test_a_block_that_returns_with_its_state_after_a_failed_try(scene: Scene, twin: Scene) -> None:
    """Step counts of an absent block wait outside of the full-size arrays; a failure must not use them up."""
    register_module(Residual)(fail)
    before = scene.photograph()
    with pytest.raises(ResizeError, match="not today"):
        scene.resize(*BACK)
    for old, new in zip(before, scene.photograph(), strict=True):
        old.pop("store", None)
        new.pop("store", None)
        assert_unchanged(old, new)
    _registry._MODULE_REFRESH.pop(Residual)
    for s in (scene, twin):
        s.resize(*BACK)
    steps = [
        {n: float(s.optimizers[0].state[p]["step"]) for n, p in s.model.named_parameters() if n.startswith("1.")}
        for s in (scene, twin)
    ]  # fmt: skip
    assert steps[0] == steps[1]
    assert len(steps[0]) == 6
    scene.goes_on_like(twin)


def fail(module: nn.Module) -> None:
    raise RuntimeError("not today")


def test_a_copy_that_fails_undoes_the_model(scene: Scene, twin: Scene) -> None:
    """The model is installed first; the average's refusal must take it back."""
    register_module(Residual)(partial(_fails_for, {id(m) for m in scene.average.modules()}))
    assert "average" in str(scene.fails())
    _registry._MODULE_REFRESH.pop(Residual)
    scene.goes_on_like(twin)


def _fails_for(modules: set[int], module: nn.Module) -> None:
    if id(module) in modules:
        raise RuntimeError("the average does not want to")


def test_the_error_says_that_nothing_changed(scene: Scene) -> None:
    FUSE.left = 3
    assert "nothing changed" in str(scene.fails())


def test_running_out_of_memory_while_preparing(scene: Scene, twin: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = _resize.gather

    def gather(*args: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("no memory left")
        return original(*args)

    monkeypatch.setattr(_resize, "gather", gather)
    scene.fails(Exception)
    monkeypatch.undo()
    scene.goes_on_like(twin)
