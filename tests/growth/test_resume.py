"""The same seed gives the same run, and a run that was cut anywhere goes on bit for bit."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from apical import Grower
from apical.errors import CheckpointError, ResizeError
from apical.growth import ScsConfig
from growth.cases import Maker, Run, adamw, built, grown, same, sgd, step, without_seconds
from marks import quick, slow

EPOCHS = 7
LIVELY: dict[str, Any] = {  # widths that move far
    "seed_style": "small", "damping": 1.0, "max_change": 4.0, "growth_end": 0.9, "epochs": EPOCHS,
}  # fmt: skip
CHANCE: dict[str, Any] = {**LIVELY, "utility": "random"}
PAPER: dict[str, Any] = {  # blocks come and leave, too
    "config": ScsConfig(sampling="budgeted", birth="preserving", score_lr=20.0, seed_fraction=0.3, growth_end=0.9),
    "epochs": EPOCHS,
}  # fmt: skip


def begun(name: str, maker: Maker, options: dict[str, Any]) -> Run:
    """A run of a Grower."""
    return Run(name, maker, lambda model, optimizer, copies: grown(name, model, optimizer, copies=copies, **options))


def equal_runs(a: Run, b: Run) -> None:
    for name, part in a.parts.items():
        same(without_seconds(part.state_dict()), without_seconds(b.parts[name].state_dict()), name)
    grads = [[p.grad for p in r.model.parameters()] for r in (a, b)]
    assert len(grads[0]) == len(grads[1])


CONFIGS: list[tuple[str, Maker, dict[str, Any]]] = [
    ("residual", sgd, {**LIVELY, "budget": "50% macs, 40% params"}),
    ("residual", adamw, PAPER),
    ("gpt", adamw, CHANCE),
    ("lstm", sgd, LIVELY),
    ("tied", adamw, LIVELY),
    ("mlp", sgd, {"epochs": EPOCHS, "interval": 2, "growth_end": 0.9}),
    ("plain", adamw, {**LIVELY, "interval": 4, "interval_unit": "steps", "steps_per_epoch": 3}),
    ("residual", sgd, {"epochs": EPOCHS, "steps_per_epoch": 3, "growth_end": 0.8}),  # an interval of its own choice
    ("residual", sgd, {"epochs": EPOCHS, "config": ScsConfig(seed=4)}),
    ("plain", sgd, {"epochs": EPOCHS, "config": ScsConfig.random(seed=4)}),
]
IDS = [f"{name}-{maker.__name__}-{i}" for i, (name, maker, _) in enumerate(CONFIGS)]


@pytest.mark.parametrize("resumed", [(1, 4), slow((0, 2, 3, 5, 6))], ids=str)
@pytest.mark.parametrize(("name", "maker", "options"), quick(CONFIGS, [CONFIGS[i] for i in (0, 3, 6)]), ids=IDS)
def test_the_same_seed_is_the_same_run_and_so_is_one_resumed_at_any_epoch(
    name: str, maker: Maker, options: dict[str, Any], resumed: tuple[int, ...]
) -> None:
    whole = begun(name, maker, options)
    saves = [whole.saved()]
    for epoch in range(EPOCHS):
        saves.append(whole.train(epoch, epoch + 1).saved())
    equal_runs(whole, begun(name, maker, options).train(0, EPOCHS))  # saving on the way changed nothing
    if options.get("max_change") == LIVELY["max_change"]:
        assert all(sum(r[what] for r in whole.method.history) > 0 for what in ("died", "returned"))
    for epoch in resumed:
        torch.manual_seed(epoch)
        equal_runs(whole, begun(name, maker, options).load(saves[epoch]).train(epoch, EPOCHS))


def test_the_run_of_the_papers_version_loses_and_regains_units_and_blocks() -> None:
    history = begun("residual", adamw, PAPER).train(0, EPOCHS).method.history
    blocks = [set(r["skipped"]) for r in history]
    assert sum(r["died"] for r in history) > 0
    assert sum(r["returned"] for r in history) > 0
    assert any(a - b for a, b in pairwise(blocks))  # a block came
    assert any(b - a for a, b in pairwise(blocks))  # a block left


def test_a_state_can_be_loaded_into_a_run_that_went_on() -> None:
    """Rolling back to an earlier epoch, for instance after a loss that was not finite."""
    run = begun("plain", sgd, LIVELY).train(0, 2)
    saved = run.saved()
    whole = copy.deepcopy(saved)
    run.train(2, 5).load(saved).train(2, EPOCHS)
    equal_runs(run, begun("plain", sgd, LIVELY).load(whole).train(2, EPOCHS))


def test_another_seed_is_another_run() -> None:
    runs = [begun("plain", sgd, {"seed": s}).train(0, 3) for s in (0, 1)]
    assert runs[0].method.state_dict()["keep"] != runs[1].method.state_dict()["keep"]


@pytest.mark.parametrize("options", [LIVELY, PAPER], ids=["utilities", "scores"])
def test_saving_within_an_epoch(options: dict[str, Any]) -> None:
    """Also with squares, or momentum of the scores, half gathered."""
    runs = [begun("mlp", sgd, options).train(0, 2) for _ in range(2)]
    for i in range(2):
        step(runs[0].model, runs[0].optimizer, "mlp", i)
        step(runs[1].model, runs[1].optimizer, "mlp", i)
        assert runs[1].method.state_dict()["components"]["buffer"].any()
        runs[1] = begun("mlp", sgd, options).load(runs[1].saved())
    equal_runs(*(r.train(3, 5) for r in runs))


# ---- what is refused -------------------------------------------------------------------------------------------------


def foreign(grower: Grower) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Ways to spoil a state."""
    return {
        "no state": lambda s: None,
        "a list": lambda s: [s],
        "empty": lambda s: {},
        "a model's": lambda s: grower.model.state_dict(),
        "incomplete": lambda s: {k: v for k, v in s.items() if k != "store"},
    }


@pytest.mark.parametrize("kind", ["no state", "a list", "empty", "a model's", "incomplete"])
def test_what_is_no_state_is_refused_before_anything_changes(kind: str) -> None:
    run = begun("mlp", sgd, {})
    before = copy.deepcopy(run.model.state_dict())
    with pytest.raises(CheckpointError, match=r"no state of a Grower|incomplete: store is missing"):
        run.method.load_state_dict(foreign(run.method)[kind](run.method.state_dict()))
    same(run.model.state_dict(), before)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("plain", {}, "another model: its channel groups are 0 .64., 2 .48., those of this model 0.0"),
        ("mlp", {"budget": "40% macs"}, "budget was '50% macs' and is '40% macs'"),
        ("mlp", {"epochs": 9}, "epochs was 6 and is 9"),
        ("mlp", {"divisor": 4}, "divisor was 1 and is 4"),
        ("mlp", {"damping": 0.5, "grow_depth": False}, "damping was 0.35 and is 0.5; grow_depth was True and is False"),
        ("mlp", {"steps_per_epoch": 9}, "steps_per_epoch was None and is 9; .*interval_unit was 'epochs'"),
        ("mlp", {"config": ScsConfig()}, "method was 'GrowthConfig' and is 'ScsConfig'"),
    ],
)
def test_states_of_other_runs_are_refused_before_anything_changes(
    name: str, options: dict[str, Any], message: str
) -> None:
    state = begun("mlp", sgd, {}).train(0, 2).method.state_dict()
    other = begun(name, sgd, options)
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(CheckpointError, match=message):
        other.method.load_state_dict(state)
    same(other.model.state_dict(), before)
    other.train(0, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("store", {"full": {}, "other": {}, "order": {"0/0": 1}}),
        ("store", {"full": {}, "other": {}, "order": {"0/0": [["a"]]}}),
        ("components", {"values": torch.zeros(3, device="meta")}),
        ("keep", 3),
        ("identity", {"groups": torch.zeros(2)}),
        ("history", 3),
        ("relative", None),
        ("frozen", "no"),
        ("epoch", "2"),
        ("spent", [1]),
        ("changes", {"born": None}),
        ("target_load", float("nan")),
    ],
)
def test_a_state_that_was_changed_is_refused_in_words(name: str, value: Any) -> None:
    run = begun("mlp", sgd, {}).train(0, 2)
    state = run.method.state_dict()
    if name == "identity":
        value = {**state["identity"], **value}
    with pytest.raises((CheckpointError, ResizeError)):
        run.method.load_state_dict({**state, name: value})


@pytest.mark.parametrize("optimizers", [sgd, adamw])
def test_an_optimizers_state_that_is_loaded_before_the_growers_is_refused_in_words(optimizers: Any) -> None:
    def fresh() -> tuple[nn.Module, Optimizer, Grower]:
        model = built("mlp")
        optimizer = optimizers(model)
        return model, optimizer, grown("mlp", model, optimizer)

    model, optimizer, grower = fresh()
    for _ in range(3):
        step(model, optimizer, "mlp", 0)
        grower.end_epoch()
    states = [copy.deepcopy(part.state_dict()) for part in (grower, model, optimizer)]
    step(model, optimizer, "mlp", 1)
    model, optimizer, grower = fresh()
    optimizer.load_state_dict(states[2])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"before the Grower's: .* load the Grower's state first"):
        grower.load_state_dict(states[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_groups_of_other_sizes_are_refused() -> None:
    wide = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 2))
    narrow = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 2))
    growers = [Grower(m, sgd(m), torch.zeros(1, 4), "50% macs", 3) for m in (wide, narrow)]
    with pytest.raises(CheckpointError, match=r"another model: its channel groups are 0 \(30\)"):
        growers[1].load_state_dict(growers[0].state_dict())


def test_states_hold_nothing_that_lives_on() -> None:
    """A state that was taken does not change while training goes on, nor when it is loaded and trained on."""
    run = begun("residual", adamw, LIVELY).train(0, 2)
    state, weights = run.method.state_dict(), copy.deepcopy(run.model.state_dict())
    before = copy.deepcopy(state)
    run.train(2, EPOCHS)
    same(state, before)
    other = begun("residual", adamw, LIVELY)
    other.method.load_state_dict(state)
    other.model.load_state_dict(weights)
    other.train(2, EPOCHS)
    same(state, before)


def test_dormant_values_of_another_shape_are_refused() -> None:
    run = begun("mlp", sgd, {}).train(0, 2)
    state = run.method.state_dict()
    key = next(k for k, v in state["store"]["full"].items() if v.dim())
    state["store"]["full"][key] = state["store"]["full"][key][:-1]
    with pytest.raises(ResizeError, match=rf"{re.escape(key)} of the saved store has shape .*, expected "):
        run.method.load_state_dict(state)
