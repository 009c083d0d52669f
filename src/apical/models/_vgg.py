"""VGG-16 with batch normalisation for 32x32 images (Simonyan and Zisserman 2015, arXiv:1409.1556)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.models._init import init_convolutions_

# Channels of the 13 convolutions as multiples of the first; 0 stands for max-pooling.
_LAYOUT = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8)


class CifarVGG16(nn.Module):
    """Thirteen 3x3 convolutions with norm and ReLU, four max-poolings, global average pooling, classifier.

    The last pooling is a global average (Liu et al. 2017, arXiv:1708.06519), so inputs of 16 pixels and more run; at
    32 pixels it averages 2x2.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width: channels of the first convolution; the last ones have eight times as many.
        head: ``"linear"``, one linear layer (14.7 million parameters), or ``"mlp"``, 512-512 with norm and ReLU before
            it (15.0 million; Li et al. 2017, arXiv:1608.08710).

    Raises:
        ConfigError: the head has another name.

    Example:
        >>> CifarVGG16(width=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, width: int = 64, head: Literal["linear", "mlp"] = "linear"
    ) -> None:
        super().__init__()
        if head not in ("linear", "mlp"):
            raise ConfigError(f"head must be 'linear' or 'mlp', got {head!r}")
        self.features = _make_features(in_channels, width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        features = _LAYOUT[-1] * width
        layers: list[nn.Module] = []
        if head == "mlp":
            layers = [nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU()]
        self.classifier = nn.Sequential(*layers, nn.Linear(features, num_classes))
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, num_classes)
        x = self.avgpool(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(x, 1))
        return logits


def _make_features(in_channels: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for multiple in _LAYOUT:
        if multiple == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        out_channels = multiple * width
        layers += [
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
        in_channels = out_channels
    return nn.Sequential(*layers)


def vgg16(
    num_classes: int = 10, in_channels: int = 3, width: int = 64, head: Literal["linear", "mlp"] = "linear"
) -> CifarVGG16:
    """VGG-16 with batch norm for 32x32 images: 14.7 million parameters, 313 million MACs."""
    return CifarVGG16(num_classes, in_channels, width, head)
