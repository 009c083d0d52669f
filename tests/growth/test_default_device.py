"""`torch.set_default_device`: tensors that a user's script makes follow it, those of the library's bookkeeping do not.

The device "meta" stands in for "cuda": its tensors hold no values, so whatever strays there breaks or changes a result.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._device import _device_constructors

from apical import DormantStore, Grower, Structure, resize_, resize_state, trace
from apical.growth import ScsConfig
from apical.growth._scores import critical_shift, draw_noise
from growth.cases import CASES, built, example, logits_of, sgd, structure_of
from marks import quick, slow

SOURCE = Path(__file__).resolve().parents[2] / "src" / "apical"
FACTORIES = {factory.__name__ for factory in _device_constructors()}


@contextmanager
def default_device(name: str | None) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def unnamed(path: Path) -> list[str]:
    """The calls of a file that make a tensor without saying where."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [
        f"{path.name}:{call.lineno}: {ast.unparse(call)}"
        for call in calls
        if ast.unparse(call.func) in {f"torch.{name}" for name in FACTORIES}
        and "device" not in [keyword.arg for keyword in call.keywords]
    ]


@pytest.mark.parametrize("package", ["structure", "resizing", "growth", "budget"])
def test_every_new_tensor_is_told_its_device(package: str) -> None:
    files = sorted((SOURCE / package).glob("*.py"))
    assert files
    assert [call for file in files for call in unnamed(file)] == []


@pytest.mark.parametrize("name", quick(CASES, ["residual", "lstm", "attention"]))
def test_a_model_is_traced_alike(name: str) -> None:
    model, inputs, expected = built(name), example(name), structure_of(name)
    with default_device("meta"):
        assert trace(model, inputs, state_outputs=CASES[name].state_outputs) == expected


def test_groups_by_hand_are_traced_alike() -> None:
    model, inputs = built("mlp"), example("mlp")
    groups = {"hidden": {"0.weight": 0, "0.bias": 0, "2.weight": 1}}
    expected = trace(model, inputs, groups=groups)
    with default_device("meta"):
        assert trace(model, inputs, groups=groups) == expected


def shrunk_and_regrown(device: str | None) -> list[dict[str, Tensor]]:
    model, structure, store = built("residual"), structure_of("residual"), DormantStore()
    optimizer = sgd(model)
    logits_of(model(example("residual"))).sum().backward()
    found = []
    with default_device(device):
        optimizer.step()
        keep = {group.name: range(0, group.size, 2) for group in structure.groups}
        for part, skip in ((keep, [structure.blocks[0].name]), ({}, [])):
            resize_(model, structure, part, skip, optimizer, store)
            moments = {f"moment {i}": state["momentum_buffer"] for i, state in enumerate(optimizer.state.values())}
            found.append({name: t.clone() for name, t in {**model.state_dict(), **moments}.items()})
    return found


def test_a_model_is_resized_alike() -> None:
    for got, expected in zip(shrunk_and_regrown("meta"), shrunk_and_regrown(None), strict=True):
        assert_alike(got, expected)


def assert_alike(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(got) == list(expected)
    for name in got:
        assert torch.equal(got[name], expected[name]), name


def test_a_recurrent_state_is_resized_alike() -> None:
    structure, state = structure_of("lstm"), built("lstm")(example("lstm"))[1]
    after = {group.name: range(0, group.size, 3) for group in structure.groups}
    expected = resize_state(state, structure, {}, after)
    with default_device("meta"):
        got = resize_state(state, structure, {}, after)
    pairs = zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(expected), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def grown(name: str, device: str | None, options: dict[str, Any]) -> tuple[Structure, list[Any], dict[str, Tensor]]:
    """The structure, the networks of all epochs, and the final weights, of a script that sets a default device."""
    model: nn.Module = built(name)
    generator = torch.Generator().manual_seed(0)
    inputs = [CASES[name].inputs(seed) for seed in range(2)]
    shape = logits_of(model(inputs[0])).flatten(0, -2).shape[:1]
    batches = [(x, torch.randint(CASES[name].classes, shape, generator=generator)) for x in inputs]
    with default_device(device):
        optimizer = sgd(model)
        steps = {"steps_per_epoch": 2} if options.get("interval_unit") == "steps" else {}
        grower = Grower(model, optimizer, inputs[0], "50% macs", 4, **steps, **options)
        networks: list[Any] = []
        for _ in range(grower.epochs):
            for x, y in batches:
                loss = F.cross_entropy(logits_of(model(x)).flatten(0, -2), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                grower.end_step()
            grower.end_epoch()
            networks.append((grower.keep, grower.history[-1]["next_load"]))
        grower.load_state_dict(grower.state_dict())
        grower.finish()
    return grower.structure, networks, model.state_dict()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("residual", {}),
        slow("residual", {"seed_style": "pretrained", "utility": "random"}),
        slow("residual", {"config": ScsConfig(sampling="budgeted", score_lr=2.0, ignore=("fc",))}),
        slow("residual", {"config": ScsConfig.random()}),
        slow("mlp", {"interval_unit": "steps", "interval": 2, "divisor": 4}),
        ("lstm", {"seed_style": "small", "damping": 1.0}),
    ],
)
def test_a_model_grows_alike(name: str, options: dict[str, Any]) -> None:
    structure, networks, weights = grown(name, "meta", options)
    expected_structure, expected_networks, expected_weights = grown(name, None, options)
    assert structure == expected_structure
    assert networks == expected_networks
    assert len({str(keep) for keep, _ in networks}) > 1
    assert_alike(weights, expected_weights)


def test_what_is_measured_is_measured_on_the_models_device() -> None:
    model = nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4))
    inputs = torch.randn(64, 64)  # large enough for the time to depend on the widths
    with default_device("meta"):
        grower = Grower(model, sgd(model), inputs, "80% latency, 60% macs", 4, divisor="auto")
    assert grower.latency is not None
    assert grower.latency.device == grower.divisor_choice.device == "cpu"


def test_scores_decide_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.zeros(4)
    with default_device("meta"):
        noise = draw_noise(4, generator)
        assert noise.device.type == critical_shift(scores, 2.0, noise).device.type == "cpu"
