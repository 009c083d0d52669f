"""Every bad argument is its own clear error, and changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn, optim

import apical
from apical import DormantStore, Structure
from apical.errors import ApicalError, ResizeError
from resizing.reference import assert_unchanged, snapshot, train_steps
from structure.nets import Residual, head, image, tiny_resnet, tiny_structure, unit

SHAPE = (4, 3, 8, 8)


@dataclass
class Scene:
    """A trained model, its optimizer and a store that has been used."""

    model: nn.Module
    optimizer: optim.Optimizer
    structure: Structure
    store: DormantStore

    def photograph(self) -> Mapping[str, Any]:
        return snapshot(self.model, [self.optimizer], self.store)

    def refuses(self, message: str, *args: Any, model: Any = None, **options: Any) -> None:
        """A call with these arguments raises a `ResizeError` and changes nothing."""
        before = self.photograph()
        options = {"optimizer": self.optimizer, "store": self.store, **options}
        with pytest.raises(ResizeError, match=message) as caught:
            apical.resize_(self.model if model is None else model, self.structure, *args, **options)
        assert isinstance(caught.value, (ApicalError, ValueError))
        assert_unchanged(before, self.photograph())


@pytest.fixture(params=["full", "resized"])
def scene(request: pytest.FixtureRequest) -> Scene:
    model = tiny_resnet()
    optimizer, store = optim.SGD(model.parameters(), lr=0.1, momentum=0.9), DormantStore()
    train_steps(model, optimizer, 1, SHAPE, seed=0)
    if request.param == "resized":
        apical.resize_(model, tiny_structure(), {"1.conv1": [0, 4]}, ["3"], optimizer=optimizer, store=store)
        train_steps(model, optimizer, 1, SHAPE, seed=1)
    return Scene(model, optimizer, tiny_structure(), store)


# name -> (keep, skip, message)
CHOICES: dict[str, tuple[Any, Any, str]] = {
    "unknown group": ({"1.conv9": [0]}, (), r"no group is called '1\.conv9'; did you mean '1\.conv1'\?"),
    "nothing near": ({"zzz": [0]}, (), r"no group is called 'zzz'; the groups are 0\.0, 1\.conv1"),
    "key of another type": ({3: [0]}, (), "no group is called 3"),
    "unknown block": ({}, ["2"], r"no block is called '2'"),
    "empty": ({"1.conv1": []}, (), r"group '1\.conv1': at least one of its 6 units must stay"),
    "empty tensor": ({"1.conv1": torch.zeros(0, dtype=torch.long)}, (), "at least one"),
    "too large": ({"1.conv1": [0, 6]}, (), "position 6 is outside 0…5"),
    "negative": ({"1.conv1": [-1]}, (), "position -1 is outside"),
    "repeated": ({"1.conv1": [0, 2, 2]}, (), "position 2 is repeated"),
    "unsorted": ({"1.conv1": [2, 0]}, (), "ascending order"),
    "float": ({"1.conv1": [0, 1.0]}, (), r"must be integers, got float 1\.0"),
    "bool": ({"1.conv1": [True, False]}, (), "must be integers, got bool"),
    "text": ({"1.conv1": "012"}, (), "positions must be integers|expected a sequence"),
    "number": ({"1.conv1": 3}, (), "expected a sequence of positions, got int"),
    "none in a list": ({"1.conv1": [None]}, (), "must be integers, got NoneType"),
    "mask": ({"1.conv1": torch.ones(6, dtype=torch.bool)}, (), r"torch\.bool.*mask\.nonzero"),
    "float tensor": ({"1.conv1": torch.tensor([0.0, 1.0])}, (), "torch.float32"),
    "matrix": ({"1.conv1": torch.zeros(2, 2, dtype=torch.long)}, (), r"1-d integer tensor.*\(2, 2\)"),
    "scalar tensor": ({"1.conv1": torch.tensor(1)}, (), "1-d integer tensor"),
    "no mapping": ([("1.conv1", [0])], (), "keep must map group names to positions, not be a list"),
    "no mapping at all": (None, (), "keep must map group names to positions"),
    "skip of another type": ({}, [3], "no block is called 3"),
    "skip is no collection": ({}, 3, "skip"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_impossible_choices(scene: Scene, name: str) -> None:
    keep, skip, message = CHOICES[name]
    scene.refuses(message, keep, skip)


POSITIONS: list[Any] = [
    *(value[0][name] for value in CHOICES.values() if isinstance(value[0], dict) for name in value[0]), [0], [0, 1],
    range(3), (1, 3), [5], torch.tensor([0, 4]), {0: 1}, {0, 2}, iter([0, 1]), [10**30], [float("nan")], None,
]  # fmt: skip
NAMES: list[Any] = ["0.0", "1.conv1", "2.conv1", "2.conv2", "3.conv1", "1", "3", "x", 3, None]  # groups, blocks, others


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore")
@settings(phases=[Phase.explicit, Phase.generate])
@given(
    keep=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(POSITIONS), max_size=4),
    skip=st.lists(st.sampled_from(NAMES), max_size=2) | st.sampled_from([None, 3, "3", ("3", "3"), {"3": 1}, b"3"]),
)  # fmt: skip
def test_any_choice(scene: Scene, keep: Any, skip: Any) -> None:
    before, model = scene.photograph(), scene.model
    keep = {name: copy.copy(kept) for name, kept in keep.items()}  # an iterator is used up
    try:
        apical.resize_(model, scene.structure, keep, skip, optimizer=scene.optimizer, store=scene.store)
    except ApicalError:
        assert_unchanged(before, scene.photograph())
    train_steps(model, scene.optimizer, 1, SHAPE, seed=3)


def test_all_problems_are_named_at_once(scene: Scene) -> None:
    scene.refuses(r"(?s)1\.conv9.*no block is called 'x'.*group '1\.conv1'.*group '3\.conv1'",
                  {"1.conv9": [0], "3.conv1": [99], "1.conv1": []}, ["x"])  # fmt: skip


def other(kind: type[optim.Optimizer]) -> optim.Optimizer:
    return kind(tiny_resnet().parameters(), lr=0.1)  # type: ignore[call-arg]


# name -> (arguments of a scene, message)
ARGUMENTS: dict[str, tuple[Callable[[Scene], dict[str, Any]], str]] = {
    "another model's": (
        lambda s: {"optimizer": other(optim.SGD)}, "SGD passed as optimizer holds none of the model's parameters",
    ),
    "one of another model": (lambda s: {"optimizer": [s.optimizer, other(optim.Adam)]}, "Adam passed as optimizer"),
    "a name": (lambda s: {"optimizer": "sgd"}, "optimizer must be"),
    "a number": (lambda s: {"optimizer": 3}, "optimizer must be"),
    "a list of numbers": (lambda s: {"optimizer": [3]}, "optimizer must be"),
    "a layer": (lambda s: {"optimizer": nn.Linear(2, 2)}, "optimizer must be"),
    "twice": (lambda s: {"optimizer": [s.optimizer, s.optimizer]}, "twice"),
    "treatment": (lambda s: {"optimizer_state": "drop"}, "optimizer_state must be 'carry' or 'reset', got 'drop'"),
    "no module": (lambda s: {"model": {"a": 1}}, r"expected a torch\.nn\.Module, got dict"),
    "on meta": (lambda s: {"model": tiny_resnet().to("meta")}, "meta device"),
    "data parallel": (lambda s: {"model": nn.DataParallel(s.model)}, r"DataParallel: pass the inner \.module"),
    "compiled": (lambda s: {"model": torch.compile(s.model)}, r"OptimizedModule.*_orig_mod.*compile it again"),
    "compiled inside": (
        lambda s: {"model": nn.Sequential(torch.compile(s.model))}, "0 is wrapped in OptimizedModule",
    ),
    "no store": (lambda s: {"store": {}}, "store must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_impossible_arguments(scene: Scene, name: str) -> None:
    arguments, message = ARGUMENTS[name]
    scene.refuses(message, {"1.conv1": [0]}, **arguments(scene))


# ---- optimizers -----------------------------------------------------------------------------------------------------


def test_an_optimizer_that_missed_an_earlier_resize(scene: Scene) -> None:
    """It holds parameters that left the model, which nobody can map any more."""
    apical.resize_(scene.model, tiny_structure(), {"1.conv1": [1]}, store=scene.store)
    scene.refuses("(?i)optimizer.*no longer|not.*model's parameters|earlier resize", {"1.conv1": [0]})


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def _group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_group")
def test_distributed_data_parallel(scene: Scene) -> None:
    ddp = nn.parallel.DistributedDataParallel(scene.model)
    scene.refuses(r"DistributedDataParallel.*ddp\.module", {"1.conv1": [0]}, model=ddp)


def test_a_module_compiled_in_place(scene: Scene) -> None:
    """`model.compile()` leaves the class as it is; a resize must either be refused or keep working."""
    if scene.store.selection is not None:
        pytest.skip("once is enough")
    scene.model.compile(backend="eager")
    apical.resize_(scene.model, tiny_structure(), {"1.conv1": [0]}, optimizer=scene.optimizer, store=scene.store)
    expected = copy.deepcopy(scene.model)
    expected._compiled_call_impl = None
    for m in (scene.model, expected):
        m.eval()
    with torch.no_grad():
        assert torch.allclose(scene.model(image()[0]), expected(image()[0]), atol=1e-6)


def test_models_of_another_architecture(scene: Scene) -> None:
    scene.refuses(
        r"does not fit the structure.*is missing", {}, model=nn.Linear(3, 3), optimizer=None, store=DormantStore()
    )
    wider = nn.Sequential(unit(3, 16), Residual(16, 16, 6), *list(tiny_resnet())[2:])
    scene.refuses(
        r"0\.0\.weight has shape \(16, 3, 3, 3\), expected \(8, 3, 3, 3\)", {"1.conv1": [0]},
        model=wider, optimizer=None, store=DormantStore(),
    )  # fmt: skip


def test_a_model_with_something_added(scene: Scene) -> None:
    """A parameter that the structure does not know may follow any channel: it cannot be resized with care."""
    scene.model[0].register_parameter("extra", nn.Parameter(torch.zeros(8)))
    scene.refuses(r"0\.extra", {"0.0": [0, 1]})


def test_hooks_on_tensors(scene: Scene) -> None:
    handle = scene.model[1].conv1.weight.register_hook(lambda g: g)
    scene.refuses(r"1\.conv1\.weight has hooks", {"1.conv1": [0]})
    handle.remove()
    handle = scene.model[1].conv1.weight.register_post_accumulate_grad_hook(lambda p: None)
    scene.refuses(r"1\.conv1\.weight has hooks", {"1.conv1": [0]})
    handle.remove()
    apical.resize_(scene.model, tiny_structure(), {"1.conv1": [0]}, optimizer=scene.optimizer, store=scene.store)


# ---- stores ---------------------------------------------------------------------------------------------------------


def test_resized_before_without_a_store() -> None:
    model = tiny_resnet()
    apical.resize_(model, tiny_structure(), {"1.conv1": [0, 1]})
    before = snapshot(model)
    for store in (None, DormantStore()):
        for keep in ({}, {"1.conv1": [0, 1]}, {"3.conv1": [0]}):
            with pytest.raises(ResizeError, match=r"1\.conv1\.weight has shape .*(DormantStore|the store) of"):
                apical.resize_(model, tiny_structure(), keep, store=store)
    assert_unchanged(before, snapshot(model))


def test_a_store_forgotten_on_the_second_call(scene: Scene) -> None:
    if scene.store.selection is None:
        pytest.skip("needs an earlier resize")
    scene.refuses("pass the DormantStore of that resize", {"1.conv1": [0]}, store=None)


def test_a_store_of_another_structure(scene: Scene) -> None:
    other_model = nn.Sequential(unit(3, 8), head(8))
    other = apical.trace(other_model, image())
    store = DormantStore()
    apical.resize_(other_model, other, {"0.0": [0]}, store=store)
    scene.refuses("belongs to another structure", {"1.conv1": [0]}, store=store)


def test_a_store_of_another_model(scene: Scene) -> None:
    """The same structure, but this model was not the one that shrank."""
    if scene.store.selection is None:
        pytest.skip("needs an earlier resize")
    fresh = tiny_resnet()
    before = snapshot(fresh)
    scene.refuses("does not fit the structure", {}, model=fresh, optimizer=None)
    assert_unchanged(before, snapshot(fresh))


def test_something_else_as_structure(scene: Scene) -> None:
    before = scene.photograph()
    with pytest.raises(ResizeError, match="Structure"):
        apical.resize_(scene.model, scene.structure.to_dict(), {}, store=scene.store)  # type: ignore[arg-type]
    assert_unchanged(before, scene.photograph())
