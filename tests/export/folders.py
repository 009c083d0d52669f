"""Small compact networks, the folders that they are saved in, and ways to damage those."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import apical
from apical.errors import ApicalError, LoadError
from apical.export._format import digest, file_digest
from resizing.reference import assert_unchanged, snapshot
from structure.contract import generic_, random_keep, random_skip
from structure.nets import (
    Attention,
    LanguageModel,
    Residual,
    SqueezeExcite,
    conv,
    head,
    image,
    recurrent,
    tiny_resnet,
    tokens,
    unit,
    vectors,
)

ARCHITECTURE, WEIGHTS = "architecture.json", "model.safetensors"
Build = Callable[[], nn.Module]


def sharing_blocks() -> nn.Module:
    """Two blocks that share a weight, so that it stays when one of them goes."""
    net = nn.Sequential(unit(3, 8), Residual(8, 8, 6), Residual(8, 8, 6), head(8))
    net[2].conv1.weight = net[1].conv1.weight
    return net


def mobile() -> nn.Module:
    return nn.Sequential(unit(3, 8), unit(8, 8, groups=8), SqueezeExcite(8, 4), conv(8, 12), nn.GroupNorm(4, 12),
                         nn.PReLU(12), nn.ConvTranspose2d(12, 6, 2, 2, groups=2), head(6))  # fmt: skip


NETS: dict[str, tuple[Build, tuple[Any, ...], tuple[int, ...]]] = {
    "resnet": (tiny_resnet, image(), ()),
    "mobile": (mobile, image(), ()),
    "sharing": (sharing_blocks, image(), ()),
    "lstm": (lambda: recurrent("LSTM", 2, True), vectors(2, 5, 3), ()),
    "gru": (lambda: recurrent("GRU"), vectors(2, 5, 3), ()),
    "tied": (lambda: LanguageModel(tied=True), tokens(), (1,)),
    "untied": (lambda: LanguageModel(tied=False, layers=2, width=7), tokens(), (1,)),
    "attention": (lambda: nn.Sequential(nn.Linear(3, 8), Attention(8, 4, 3), nn.Linear(8, 2)), vectors(2, 5, 3), ()),
    "no_children": (lambda: nn.Linear(3, 4), vectors(2, 3), ()),
}  # fmt: skip


@cache
def structure_of(name: str) -> apical.Structure:
    """Traced once."""
    build, inputs, states = NETS[name]
    with torch.random.fork_rng():
        return apical.trace(build(), inputs, state_outputs=states)


def compact(name: str, seed: int = 0, skip: tuple[str, ...] | None = None) -> tuple[nn.Module, tuple[Any, ...]]:
    """A shrunk net with generic weights in float32, in training mode."""
    build, inputs, _ = NETS[name]
    torch.manual_seed(seed)
    model = build()
    if name != "no_children":
        structure = structure_of(name)
        skip = random_skip(structure, seed) if skip is None else skip
        apical.resize_(model, structure, random_keep(structure, seed), skip)
    return generic_(model).float().train(), inputs


def fresh(name: str) -> nn.Module:
    torch.manual_seed(99)
    return NETS[name][0]()


def assert_same_model(a: nn.Module, b: nn.Module, inputs: tuple[Any, ...]) -> None:
    assert str(a) == str(b)
    ours, theirs = a.state_dict(), b.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    results = [torch.utils._pytree.tree_leaves(copy.deepcopy(m).eval()(*inputs)) for m in (a, b)]
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def small_resnet() -> nn.Module:
    torch.manual_seed(0)
    model = tiny_resnet()
    apical.resize_(
        model, structure_of("resnet"), {"0.0": [1, 2, 5, 7], "1.conv1": [0, 4], "2.conv2": [0, 2, 3, 9]}, ["3"]
    )
    return generic_(model).float()


def refused(folder: Path, message: str | None = None, model: nn.Module | None = None) -> None:
    model = tiny_resnet() if model is None else model
    before = snapshot(model)
    with pytest.raises(LoadError, match=message) as caught:
        apical.load(model, folder)
    assert isinstance(caught.value, (ApicalError, ValueError))
    assert_unchanged(before, snapshot(model))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], *, signed: bool = False) -> None:
    """Change the architecture; ``signed`` makes the digest right again, as only intent would."""
    data = json.loads((folder / ARCHITECTURE).read_text())
    change(data)
    if signed:
        data["sha256"] = digest(data)
    (folder / ARCHITECTURE).write_text(json.dumps(data))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any], *, signed: bool = False) -> None:
    """Change the weights; ``signed`` makes both digests right again."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    if signed:
        edit(folder, lambda data: data.update(weights_sha256=file_digest(folder / WEIGHTS)), signed=True)
