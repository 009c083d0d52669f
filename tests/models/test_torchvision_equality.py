"""Names, shapes and outputs equal torchvision's, so that its weights load."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from apical import models
from marks import slow
from torchvision_shim import import_torchvision

pytestmark = pytest.mark.zoo


def copy_of(theirs: nn.Module, ours: nn.Module) -> None:
    """Load strictly, with norm statistics that are not the initial ones."""
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    ours.load_state_dict(theirs.state_dict(), strict=True)


@pytest.mark.parametrize("name", ["resnet18", slow("resnet34"), "resnet50", slow("resnet101")])
def test_resnet(name: str) -> None:
    torchvision = import_torchvision()
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    ours = getattr(models, name)(num_classes=7).eval()
    copy_of(theirs, ours)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize("aux", [slow(False), True])
@pytest.mark.parametrize("name", ["deeplabv3_resnet50", slow("deeplabv3_resnet101")])
def test_deeplab(name: str, aux: bool) -> None:
    torchvision = import_torchvision()
    build = getattr(torchvision.models.segmentation, name)
    theirs = build(weights=None, weights_backbone=None, num_classes=5, aux_loss=aux).eval()
    ours = getattr(models, name)(num_classes=5, aux=aux).eval()
    copy_of(theirs, ours)
    x = torch.randn(1, 3, 56, 40)
    with torch.inference_mode():
        expected, got = theirs(x), ours(x)
    assert list(got) == list(expected)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=0, atol=0)
