"""The dormant store: what it holds, that it can be saved, and that a run resumes with it bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

import apical
from apical import DormantStore, Structure
from apical.errors import CheckpointError, ConfigError, ResizeError
from resizing.reference import equal_trees, train_steps
from structure.contract import random_keep
from structure.nets import image, tiny_resnet, tiny_structure

SHAPE = (4, 3, 8, 8)


class Run:
    """Model, optimizer and store of one training run."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = tiny_resnet()
        self.optimizer = optim.AdamW(self.model.parameters(), lr=0.01)
        self.store = DormantStore()

    def epoch(self, i: int) -> None:
        train_steps(self.model, self.optimizer, 2, SHAPE, seed=i)
        skip = [["3"], [], ["1", "3"], ["1"], []][i % 5]
        self.resize(random_keep(tiny_structure(), i), skip)

    def resize(self, keep: Any, skip: Any) -> None:
        apical.resize_(self.model, tiny_structure(), keep, skip, optimizer=self.optimizer, store=self.store)

    def same_as(self, other: Run) -> bool:
        return (
            str(self.model) == str(other.model)
            and equal_trees(dict(self.model.state_dict()), dict(other.model.state_dict()))
            and equal_trees(self.optimizer.state_dict(), other.optimizer.state_dict())
        )


@pytest.mark.parametrize("stop", range(1, 5))
def test_a_run_resumes_bit_for_bit(tmp_path: Path, stop: int) -> None:
    """Saved after `stop` epochs without any pickled object, and resumed in objects that were built anew."""
    whole = Run(0)
    for i in range(6):
        if i == stop:
            assert whole.store.selection is not None
            checkpoint = {
                "model": whole.model.state_dict(),
                "optimizer": whole.optimizer.state_dict(),
                "store": whole.store.state_dict(),
                "keep": {k: list(v) for k, v in whole.store.selection.keep.items()},
                "skip": sorted(whole.store.selection.skip),
            }
            torch.save(checkpoint, tmp_path / "checkpoint.pt")
        whole.epoch(i)
    resumed = Run(1)
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.resize(saved["keep"], saved["skip"])
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.store.load_state_dict(saved["store"])
    for i in range(stop, 6):
        resumed.epoch(i)
    assert resumed.same_as(whole)
    for run in (whole, resumed):
        run.resize({}, [])
    assert resumed.same_as(whole)


def test_saved_values_are_copies() -> None:
    run = Run(0)
    run.epoch(0)
    saved = run.store.state_dict()
    before = copy.deepcopy(saved)
    run.epoch(1)
    run.epoch(2)
    assert equal_trees(saved, before)
    other = DormantStore()
    other.load_state_dict(saved)
    for tensor in saved["full"].values():
        tensor.zero_()
    assert any(bool(t.any()) for t in other.state_dict()["full"].values())


@pytest.mark.parametrize(
    "state", [3, None, {}, {"order": 3}, {"order": {}, "full": {"a": 3}}, {"order": {}, "full": {}}]
)
def test_what_is_no_saved_store_is_refused_in_words(state: Any) -> None:
    store = DormantStore()
    store.load_state_dict({"full": {"a": torch.ones(2)}, "other": {}, "order": {"0": ["a"]}, "optimizers": {}})
    before = store.state_dict()
    with pytest.raises(CheckpointError, match=r"the saved dormant store does not fit .*Nothing of it was loaded"):
        store.load_state_dict(state)
    assert equal_trees(store.state_dict(), before)


def test_a_store_can_be_copied_with_its_model() -> None:
    """deepcopy of both at once: a fork of the run."""
    run = Run(0)
    run.epoch(0)
    fork = copy.deepcopy(run)
    for i in range(1, 5):
        run.epoch(i)
        fork.epoch(i)
    assert fork.same_as(run)


def test_values_wait_on_the_device_that_was_asked_for() -> None:
    store = DormantStore(device="cpu")
    model = tiny_resnet()
    before = copy.deepcopy(model.state_dict())
    apical.resize_(model, tiny_structure(), {"1.conv1": [0]}, ["3"], store=store)
    assert {t.device.type for t in store.state_dict()["full"].values()} == {"cpu"}
    apical.resize_(model, tiny_structure(), {}, store=store)
    assert equal_trees(dict(before), dict(model.state_dict()))


def elsewhere(store: DormantStore, optimizer: optim.Optimizer, steps: str) -> None:
    """As after a resume on a GPU: the store is on the host, the model and its optimizer's state are not.

    The device that stands in is "meta", from which nothing can be read: so only what returns with block 3 goes there,
    and the steps of the others, if they are to be ``steps``.
    """
    store.modules["3"].to("meta")
    for state in optimizer.state.values():
        state["step"] = state["step"].to(steps)


@pytest.mark.parametrize("steps", ["cpu", "meta"])
def test_state_returns_to_the_device_of_its_parameter(steps: str) -> None:
    """But a step that is no part of it goes where the optimizer keeps the others: Adam's, by default, on the host."""
    run = Run(0)
    run.optimizer = optim.AdamW(run.model.parameters(), lr=0.01, amsgrad=True)
    train_steps(run.model, run.optimizer, 1, SHAPE, seed=0)
    run.resize({}, ["3"])
    elsewhere(run.store, run.optimizer, steps)
    run.resize({"3.conv1": [0, 2]}, [])
    for parameter in run.model[3].parameters():
        state = run.optimizer.state[parameter]
        assert parameter.device.type == "meta"
        assert {k: v.device.type for k, v in state.items()} == {
            "exp_avg": "meta", "exp_avg_sq": "meta", "max_exp_avg_sq": "meta", "step": steps,
        }  # fmt: skip
        assert state["exp_avg"].shape == parameter.shape
    assert {v.device.type for k, v in run.optimizer.state[run.model[1].conv1.weight].items() if k != "step"} == {"cpu"}


def test_the_store_follows_its_tensors() -> None:
    """A buffer that was loaded to the host goes where its tensor is, unless the store has a device of its own."""
    here, there = torch.ones(2, dtype=torch.float64), torch.ones(2, device="meta")
    store = DormantStore()
    store.hold("a", (3,), here)
    store.load_state_dict(store.state_dict())
    assert store.hold("a", (3,), there).device.type == "meta"
    assert store.hold("a", (3,), there).dtype == torch.float32
    fixed = DormantStore(device="cpu")
    fixed.load_state_dict({"full": {"a": here}, "other": {}, "order": {}})
    assert fixed.hold("a", (2,), there).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"fused": True}, {"capturable": True}, {"foreach": True}])
def test_a_run_resumes_on_a_gpu_from_a_file_on_the_host(options: dict[str, bool]) -> None:
    whole, resumed = Run(0), Run(1)
    for run in (whole, resumed):
        run.model.cuda()
        run.optimizer = optim.AdamW(run.model.parameters(), lr=0.01, **options)
        for parameter in run.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
        run.resize({"1.conv1": [0, 2]}, ["3"])
    saved = [copy.deepcopy(part.state_dict()) for part in (whole.model, whole.optimizer, whole.store)]
    saved[2]["full"] = {k: v.cpu() for k, v in saved[2]["full"].items()}
    saved[2]["other"] = {k: {e: v.cpu() for e, v in other.items()} for k, other in saved[2]["other"].items()}
    for part, state in zip((resumed.model, resumed.optimizer, resumed.store), saved, strict=True):
        part.load_state_dict(state)
    for run in (whole, resumed):
        run.resize({}, [])
        for parameter in run.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        run.optimizer.step()
    assert resumed.same_as(whole)
    for parameter, twin in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        state, expected = resumed.optimizer.state[parameter], whole.optimizer.state[twin]
        assert {k: v.device for k, v in state.items()} == {k: v.device for k, v in expected.items()}
    resumed.resize({"1.conv1": [0, 2]}, ["3"])
    assert {t.device.type for t in resumed.store.state_dict()["full"].values()} == {"cuda"}


def test_it_holds_only_what_ever_changed() -> None:
    store, model = DormantStore(), tiny_resnet()
    apical.resize_(model, tiny_structure(), {"1.conv1": [0]}, store=store)
    names = {k for k in store.state_dict()["full"] if not k.startswith("optimizer")}
    assert names == {
        "1.conv1.weight",
        "1.conv2.weight",
        *(f"1.bn1.{t}" for t in ("weight", "bias", "running_mean", "running_var")),
    }


def test_selection_says_what_is_present() -> None:
    store, model = DormantStore(), tiny_resnet()
    assert store.selection is None
    apical.resize_(model, tiny_structure(), {"1.conv1": [0, 3]}, ["3"], store=store)
    assert store.selection is not None
    assert store.selection.keep["1.conv1"] == (0, 3)
    assert store.selection.keep["2.conv2"] == tuple(range(12))
    assert store.selection.skip == frozenset({"3"})


def test_values_that_are_changed_in_the_store_come_back_changed() -> None:
    """As a birth does that lets readers start from zero."""
    store, model = DormantStore(), tiny_resnet()
    apical.resize_(model, tiny_structure(), {"1.conv1": [0, 3]}, store=store)
    held = store.full("1.conv2.weight")
    assert held is not None
    with torch.no_grad():
        held[:, [1, 2, 4, 5]] = 0.0
    x = image()[0]
    model.eval()
    expected = model(x)
    apical.resize_(model, tiny_structure(), {}, store=store)
    assert torch.allclose(model(x), expected, atol=1e-6)
    assert bool((model[1].conv2.weight[:, [1, 2, 4, 5]] == 0).all())
    assert bool((model[1].conv1.weight[[1, 2, 4, 5]] != 0).all())


def test_an_equal_structure_that_was_read_from_json_fits() -> None:
    store, model = DormantStore(), tiny_resnet()
    apical.resize_(model, tiny_structure(), {"1.conv1": [0, 3]}, store=store)
    again = Structure.from_dict(tiny_structure().to_dict())
    apical.resize_(model, again, {}, store=store)
    assert str(model) == str(tiny_resnet())


def test_a_store_that_never_held_a_tensor_says_so() -> None:
    """Resumed without its values: what is absent cannot come back."""
    run = Run(0)
    run.epoch(0)
    empty = copy.deepcopy(run.store)
    empty.load_state_dict({"full": {}, "other": {}, "order": {}})
    before = copy.deepcopy(run.model.state_dict())
    with pytest.raises(ResizeError, match=r"never held|DormantStore"):
        apical.resize_(run.model, tiny_structure(), {}, optimizer=run.optimizer, store=empty)
    assert equal_trees(dict(before), dict(run.model.state_dict()))


def test_moments_and_values_by_name() -> None:
    run = Run(0)
    train_steps(run.model, run.optimizer, 1, SHAPE, seed=0)
    run.resize({"1.conv1": [0, 3]}, [])
    assert len(run.store.moments("1.conv1.weight")) == 2  # exp_avg and exp_avg_sq
    assert [t.shape for t in run.store.named("1.conv1.weight")] == [(6, 8, 3, 3)]
    assert run.store.named("6.bias") == []


def test_modules_that_wait_do_not_train_and_do_not_count() -> None:
    run = Run(0)
    run.resize({}, ["3"])
    waiting = run.store.modules["3"]
    assert isinstance(waiting, nn.Module)
    before = copy.deepcopy(waiting.state_dict())
    train_steps(run.model, run.optimizer, 2, SHAPE, seed=0)
    assert equal_trees(dict(before), dict(waiting.state_dict()))
    assert not {id(p) for p in waiting.parameters()} & {id(p) for g in run.optimizer.param_groups for p in g["params"]}


@pytest.mark.parametrize("device", ["gpux", "cuda:-1", 3, [1], 1.5, "meta", torch.device("meta")])
def test_a_store_waits_on_a_device_with_values(device: Any) -> None:
    with pytest.raises(ConfigError, match="device must be one that holds values"):
        DormantStore(device)


def test_a_store_knows_the_state_of_structures_only() -> None:
    with pytest.raises(ResizeError, match=r"structure must be the Structure .* got 3"):
        DormantStore().current(3)  # type: ignore[arg-type]
