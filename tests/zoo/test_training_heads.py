"""A network with heads that only training uses: they are shrunk with the rest, and train on."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import apical
from torchvision_shim import import_torchvision


@pytest.mark.slow
@pytest.mark.zoo
@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_the_auxiliary_heads_of_googlenet_follow() -> None:
    models = import_torchvision().models
    model = models.googlenet(weights=None, num_classes=5, aux_logits=True, init_weights=False).train()
    x = torch.randn(2, 3, 64, 64)
    structure = apical.trace(model, x)
    assert not structure.notes
    heads = {m.tensor.split(".")[0] for g in structure.groups for m in g.readers}
    assert {"aux1", "aux2"} <= heads, "what the auxiliary heads read is in the groups"
    apical.resize_(model, structure, {g.name: range((g.size + 1) // 2) for g in structure.groups})
    for output in model(x):
        assert output.shape == (2, 5)
