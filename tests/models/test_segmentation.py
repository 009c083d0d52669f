"""DeepLabV3 and U-Net at reduced size."""

from __future__ import annotations

import pytest
import torch

from apical.errors import ConfigError
from apical.models import DeepLabV3, UNet


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("aux", [False, True])
def test_deeplab_trains(depth: int, aux: bool) -> None:
    model = DeepLabV3(depth, num_classes=4, aux=aux, width=4, head_width=6, rates=(2, 4))
    logits = model(torch.randn(2, 3, 33, 49))
    assert {name: tuple(tensor.shape) for name, tensor in logits.items()} == dict.fromkeys(
        ["out", "aux"] if aux else ["out"], (2, 4, 33, 49)
    )
    sum(tensor.square().mean() for tensor in logits.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_backbone_keeps_an_eighth_of_the_resolution() -> None:
    model = DeepLabV3(50, num_classes=4, width=4, head_width=6)
    features, aux = model.backbone(torch.zeros(1, 3, 64, 96))
    assert features.shape == (1, 128, 8, 12)
    assert aux.shape == (1, 64, 8, 12)


def test_unet_refuses_sizes_that_do_not_halve() -> None:
    with pytest.raises(ConfigError, match="multiples of 4, got"), torch.no_grad():
        UNet(levels=2, width=2)(torch.zeros(1, 3, 22, 24))
