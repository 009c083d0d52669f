"""ResNet-18, -34, -50 and -101 for ImageNet (He et al. 2016, arXiv:1512.03385).

Parameter names, shapes and outputs equal torchvision's ``resnet18`` ... ``resnet101``, so that a ``state_dict`` of
those loads strictly. As there, the stride of a bottleneck sits on its 3x3 convolution ("ResNet v1.5").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.models._init import init_convolutions_


class BasicBlock(nn.Module):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))`` with two 3x3 convolutions."""

    expansion = 1

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, channels, H / stride, W / stride)
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = out + identity
        result: Tensor = self.relu(out)
        return result


class Bottleneck(nn.Module):
    """1x1 down to ``channels``, 3x3, 1x1 up to ``4 * channels``, plus shortcut, then ReLU."""

    expansion = 4

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, 4 * channels, H / stride, W / stride)
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + identity
        result: Tensor = self.relu(out)
        return result


Block = type[BasicBlock] | type[Bottleneck]

_ARCHITECTURES: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """Residual network for photographs: a 7x7 stem, four stages, global average pooling, linear classifier.

    Args:
        depth: 18, 34 (basic blocks), 50 or 101 (bottlenecks).
        num_classes: outputs.
        in_channels: channels of the image.
        width: channels of the stem; 64 in the paper.
        replace_stride_with_dilation: for stages 2, 3 and 4, keep the resolution and dilate instead (segmentation).

    Raises:
        ConfigError: another depth, or not three flags.

    Example:
        >>> ResNet(18, num_classes=5, width=8)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 5])
    """

    def __init__(
        self,
        depth: int = 50,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        replace_stride_with_dilation: Sequence[bool] = (False, False, False),
    ) -> None:
        super().__init__()
        if depth not in _ARCHITECTURES:
            raise ConfigError(f"depth must be one of {sorted(_ARCHITECTURES)}, got {depth}")
        if len(replace_stride_with_dilation) != 3:
            raise ConfigError(f"replace_stride_with_dilation needs 3 flags, got {replace_stride_with_dilation!r}")
        block, num_blocks = _ARCHITECTURES[depth]
        dilate2, dilate3, dilate4 = replace_stride_with_dilation
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = _Stages(block, width)
        self.layer1 = stages.next(width, num_blocks[0], stride=1, dilate=False)
        self.layer2 = stages.next(2 * width, num_blocks[1], stride=2, dilate=dilate2)
        self.layer3 = stages.next(4 * width, num_blocks[2], stride=2, dilate=dilate3)
        self.layer4 = stages.next(8 * width, num_blocks[3], stride=2, dilate=dilate4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages.channels, num_classes)
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, num_classes)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class _Stages:
    """Builds one stage after another; remembers channels and dilation in between."""

    def __init__(self, block: Block, channels: int) -> None:
        self.block = block
        self.channels = channels
        self.dilation = 1

    def next(self, channels: int, num_blocks: int, stride: int, dilate: bool) -> nn.Sequential:
        first_dilation = self.dilation
        if dilate:
            self.dilation, stride = self.dilation * stride, 1
        out_channels = channels * self.block.expansion
        downsample: nn.Module | None = None
        if stride != 1 or self.channels != out_channels:
            downsample = nn.Sequential(
                nn.Conv2d(self.channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        blocks = [self.block(self.channels, channels, stride, first_dilation, downsample)]
        self.channels = out_channels
        blocks += [self.block(out_channels, channels, 1, self.dilation, None) for _ in range(num_blocks - 1)]
        return nn.Sequential(*blocks)


def resnet18(num_classes: int = 1000) -> ResNet:
    """ResNet-18: 11.7 million parameters, 1.8 billion MACs at 224x224."""
    return ResNet(18, num_classes)


def resnet34(num_classes: int = 1000) -> ResNet:
    """ResNet-34: 21.8 million parameters, 3.7 billion MACs at 224x224."""
    return ResNet(34, num_classes)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50: 25.6 million parameters, 4.1 billion MACs at 224x224."""
    return ResNet(50, num_classes)


def resnet101(num_classes: int = 1000) -> ResNet:
    """ResNet-101: 44.5 million parameters, 7.8 billion MACs at 224x224."""
    return ResNet(101, num_classes)
