"""MobileNetV1: depthwise separable convolutions (Howard et al. 2017, arXiv:1704.04861)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.models._init import init_convolutions_

# (output channels, stride) of the 13 separable convolutions, table 1 of the paper.
_LAYOUT = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


class SeparableConv(nn.Module):
    """3x3 depthwise convolution, then 1x1 convolution, each with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, out, H / stride, W / stride)
        x = self.relu(self.bn1(self.depthwise(x)))
        out: Tensor = self.relu(self.bn2(self.pointwise(x)))
        return out


class MobileNetV1(nn.Module):
    """A strided convolution and 13 separable convolutions, global average pooling, linear classifier.

    Args:
        num_classes: outputs.
        in_channels: channels of the image.
        width_mult: factor on all widths (the paper's alpha); every width is rounded to at least 1 channel.
        dropout: probability before the classifier.

    Raises:
        ConfigError: ``width_mult`` is not positive.

    Example:
        >>> MobileNetV1(num_classes=5, width_mult=0.125)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 5])
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, width_mult: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if width_mult <= 0:
            raise ConfigError(f"width_mult must be positive, got {width_mult}")
        channels = max(1, round(32 * width_mult))
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        blocks = []
        for out_channels, stride in _LAYOUT:
            scaled = max(1, round(out_channels * width_mult))
            blocks.append(SeparableConv(channels, scaled, stride))
            channels = scaled
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, num_classes)
        x = self.blocks(self.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.fc(self.dropout(torch.flatten(self.avgpool(x), 1)))
        return logits


def mobilenet_v1(num_classes: int = 1000, width_mult: float = 1.0) -> MobileNetV1:
    """MobileNetV1: 4.2 million parameters, 569 million MACs at 224x224."""
    return MobileNetV1(num_classes, width_mult=width_mult)
