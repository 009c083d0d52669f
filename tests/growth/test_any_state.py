"""Any change of a Grower's state: the project's own error, or a Grower that goes on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from apical.baselines import L1, Comparator, Taylor
from apical.errors import ApicalError, CheckpointError
from apical.growth import ScsConfig
from changed_tree import CHANGES, change
from growth.cases import adamw, begun, built, example, step, structure_of
from marks import quick

EPOCHS = 5
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "widths": ("mlp", {}),
    "blocks": ("residual", {}),
    "bits": ("mlp", {"budget": "50% macs, 20% size"}),
    "scores": ("plain", {"config": ScsConfig()}),
    "latency": ("mlp", {"budget": "95% latency, 60% macs"}),
    "l1": ("mlp", {"rule": L1(prune_at=0.25)}),
    "taylor": ("residual", {"rule": Taylor()}),
}


def trained(kind: str, epochs: int) -> tuple[Any, Any, Any]:
    name, options = KINDS[kind]
    if "rule" in options:
        model = built(name)
        optimizer = adamw(model)
        grower: Any = Comparator(options["rule"], model, optimizer, example(name), "50% macs", EPOCHS,
                                 structure=structure_of(name))  # fmt: skip
    else:
        model, optimizer, grower = begun(name, adamw, **{"epochs": EPOCHS, **options})
    for epoch in range(epochs):
        train_epoch(kind, model, optimizer, grower, epoch)
    return model, optimizer, grower


def train_epoch(kind: str, model: Any, optimizer: Any, grower: Any, epoch: int) -> None:
    step(model, optimizer, KINDS[kind][0], epoch)
    grower.end_epoch()


@pytest.fixture(scope="module", autouse=True)
def _unmeasured() -> Iterator[None]:
    """A layer's time is its size."""

    def parameters(run: Any) -> int:
        held = (
            run.args[0]
            if isinstance(run, partial)
            else next(c.cell_contents for c in run.__closure__ if isinstance(c.cell_contents, nn.Module))
        )
        return sum(p.numel() for p in held.parameters())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("apical.timing._latency_table.time_ms", lambda run, *_, **__: parameters(run) / 1e4)
        yield


@pytest.fixture(scope="module")
def saved(_unmeasured: None) -> dict[str, Any]:
    """The state of each kind after two epochs."""
    return {kind: trained(kind, 2)[2].state_dict() for kind in KINDS}


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", quick(KINDS, ["blocks", "bits", "l1"]))
@settings(max_examples=-(-settings().max_examples * 2 // 5), phases=[Phase.explicit, Phase.generate])  # they train
@given(changes=st.lists(CHANGES, min_size=1, max_size=2))
def test_any_change_of_the_state(saved: dict[str, Any], kind: str, changes: list[tuple[int, str, Any]]) -> None:
    state = copy.deepcopy(saved[kind])
    for one in changes:
        change(state, *one)
    model, optimizer, grower = trained(kind, 0)
    with suppress(ApicalError):
        grower.load_state_dict(state)
        for epoch in range(2, EPOCHS):
            train_epoch(kind, model, optimizer, grower, epoch)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("gates", "0.weight"), torch.ones(2, 2)),
        (("quantizers", "0.weight", "weight"), torch.zeros(3, 3)),
        (("quantizers", "0.weight", "planes"), 0),
        (("quantizers", "0.weight", "scale"), -1.0),
        (("plain", "_measured"), torch.zeros(2)),
    ],
)
def test_saved_bits_that_were_changed_are_refused(saved: dict[str, Any], where: tuple[str, ...], value: Any) -> None:
    state = copy.deepcopy(saved["bits"])
    assert state["bits"] is not None
    box = state["bits"]
    for key in where[:-1]:
        box = box[key]
    assert where[-1] in box
    box[where[-1]] = value
    with pytest.raises(CheckpointError, match="saved"):
        trained("bits", 0)[2].load_state_dict(state)
