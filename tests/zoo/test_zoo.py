"""Every network of the zoo through the whole contract: trace, remove, price, train a step, regrow."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from apical.errors import TraceError
from apical.structure import Structure
from apical.structure._cost import lies_in
from resizing.reference import assert_unchanged, snapshot
from structure.contract import Keep, check_contract, doubled, random_keep, random_skip

from .checks import mix_flags_, timed_trace
from .models import ZOO, ZooModel
from .randomise import randomise_

# Of the image networks these are tried on every change, the others by `make test-all`; small nets are always tried.
OFTEN = {
    *("own_resnet20_projection", "own_resnet20_zero_pad", "own_vgg16_narrow", "own_wrn10_2", "own_unet"),
    *("resnet18", "mobilenet_v3_small", "shufflenet_v2_x1_0", "vit_small", "convnext_atto"),
}


def _marks(entry: ZooModel) -> list[pytest.MarkDecorator]:
    marks = []
    image_net = entry.tags & {"own", "torchvision", "timm"} and "sequence" not in entry.tags
    if entry.slow or (image_net and entry.name not in OFTEN):
        marks.append(pytest.mark.slow)
    for library in {"torchvision", "timm"} & entry.tags:
        missing = importlib.util.find_spec(library) is None
        marks += [pytest.mark.zoo, pytest.mark.skipif(missing, reason=f"{library} is not installed")]
    return marks


def _named(*, refused: bool) -> list[Any]:
    entries = [entry for entry in ZOO.values() if ("refused" in entry.tags) == refused]
    return [pytest.param(entry.name, marks=_marks(entry)) for entry in entries]


def _choices(structure: Structure) -> list[tuple[Keep, tuple[str, ...]]]:
    """Every group shrinks and no block is left out; all blocks are left out; something between."""
    outermost = [
        b.name for b in structure.blocks if not any(lies_in(b.name, o.name) for o in structure.blocks if o != b)
    ]
    return [
        (random_keep(structure, 0, all_shrink=True), ()),
        (random_keep(structure, 1), tuple(outermost)),
        (random_keep(structure, 2), random_skip(structure, 2)),
    ]


@pytest.mark.parametrize("name", _named(refused=False))
def test_contract(name: str, request: pytest.FixtureRequest) -> None:
    entry = ZOO[name]
    inputs = doubled(entry.inputs())
    model = randomise_(entry.build(), inputs, seed=1)
    mix_flags_(model)
    before = snapshot(model)
    structure, _ = timed_trace(model, inputs, entry.state_outputs)
    assert_unchanged(before, snapshot(model))
    large = entry.slow or entry.tags & {"torchvision", "timm"} or request.config.option.markexpr
    choices = _choices(structure)[: 2 if large else 3]  # two for the larger networks, and on every change for all
    check_contract(model.eval(), structure, inputs, choices, entry.state_outputs)


@pytest.mark.parametrize("name", _named(refused=True))
def test_a_network_without_removable_parts_is_refused_with_reasons(name: str) -> None:
    model = ZOO[name].build()
    before = snapshot(model)
    with pytest.raises(TraceError, match="nothing in"):
        timed_trace(model, ZOO[name].inputs())
    assert_unchanged(before, snapshot(model))
