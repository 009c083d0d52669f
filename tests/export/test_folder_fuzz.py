"""Random damage to saved folders: either the saved model comes out, or a `LoadError` and the model as it was."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import apical
from apical.errors import LoadError
from apical.export._format import digest, file_digest
from export.folders import ARCHITECTURE, WEIGHTS, assert_same_model
from resizing.reference import assert_unchanged, snapshot
from structure.nets import image, tiny_resnet

W = "1.conv1.weight"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["3", W, "groups"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON tree."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [(tree, key) for key in keys] + [place for key in keys for place in places(tree[key])]


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[Any], None]:
    """One to three changes anywhere: another value, a neighbouring number, a deletion, an exchange, a new entry."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["replace", "nudge", "delete", "exchange", "add", "rename"]),
                st.integers(0, 2**30), st.integers(0, 2**30), JSON,
            ),
            min_size=1, max_size=3,
        )
    )  # fmt: skip

    def mutate(tree: Any) -> None:
        for how, one, two, value in steps:
            found = places(tree)
            if not found:
                return
            (box, key), (other, second) = found[one % len(found)], found[two % len(found)]
            if how == "replace":
                box[key] = value
            elif how == "nudge" and isinstance(box[key], int):
                box[key] += two % 5 - 2
            elif how == "delete":
                del box[key]
            elif how == "exchange":
                box[key], other[second] = copy.deepcopy(other[second]), copy.deepcopy(box[key])
            elif how == "add" and isinstance(box, dict):
                box[str(value)[:10]] = value
            elif how == "rename" and isinstance(box, dict):
                box[str(second)] = box.pop(key)

    return mutate


@cache
def whole(folder: Path) -> nn.Module:
    """What an undamaged folder holds."""
    return apical.load(tiny_resnet(), folder)


def load_anything(folder: Path, model: nn.Module, intact: nn.Module | None) -> None:
    """A `LoadError` and the model as it was; or a model, which must be the intact one if there is one to compare."""
    before = snapshot(model)
    try:
        apical.load(model, folder)
    except LoadError:
        assert_unchanged(before, snapshot(model))
    else:
        if intact is not None:
            assert_same_model(model, intact, image())


@pytest.mark.attack
@pytest.mark.parametrize("saved", ["original", "packed"])
@settings(max_examples=4 * settings().max_examples)
@given(mutate=mutations(), signed=st.booleans())
def test_any_edit_of_the_architecture(
    request: pytest.FixtureRequest, tmp_path: Path, saved: str, mutate: Callable[[Any], None], signed: bool
) -> None:
    """With a right digest too, nothing but a `LoadError` may come out; without one, nothing wrong may load."""
    original = request.getfixturevalue(saved)
    intact = whole(original)
    data = json.loads((original / ARCHITECTURE).read_text())
    mutate(data)
    if signed:
        data["sha256"] = digest(data)
    shutil.copy(original / WEIGHTS, tmp_path / WEIGHTS)
    (tmp_path / ARCHITECTURE).write_text(json.dumps(data))
    load_anything(tmp_path, tiny_resnet(), None if signed else intact)


@pytest.mark.attack
@pytest.mark.parametrize("saved", ["original", "packed"])
@settings(max_examples=2 * settings().max_examples)
@given(
    name=st.sampled_from([ARCHITECTURE, WEIGHTS]),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    end=st.floats(0.5, 1.2),
    signed=st.booleans(),
)
def test_any_damage_to_the_bytes(
    request: pytest.FixtureRequest, tmp_path: Path, saved: str, name: str, edits: list[tuple[float, int]], end: float,
    signed: bool,
) -> None:  # fmt: skip
    original = request.getfixturevalue(saved)
    intact = whole(original)
    for file in (ARCHITECTURE, WEIGHTS):
        shutil.copy(original / file, tmp_path / file)
    damaged = bytearray((original / name).read_bytes())
    if end < 1.0:
        damaged = damaged[: int(end * len(damaged))]
    for where, value in edits:
        damaged[min(int(where * len(damaged)), len(damaged) - 1)] = value
    (tmp_path / name).write_bytes(damaged)
    signed = signed and name == WEIGHTS
    if signed:
        data = json.loads((original / ARCHITECTURE).read_text())
        data["weights_sha256"] = file_digest(tmp_path / WEIGHTS)
        data["sha256"] = digest(data)
        (tmp_path / ARCHITECTURE).write_text(json.dumps(data))
    load_anything(tmp_path, tiny_resnet(), None if signed else intact)
