"""The ResNets for 32x32 images: ResNet-20, -32, -44, -56, -110 (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.models._init import init_convolutions_

Shortcut = Literal["projection", "zero_pad"]


class ZeroPadShortcut(nn.Module):
    """Parameter-free shortcut (option A of the paper): subsample, then pad the channels with zeros.

    The amounts of padding are attributes, fixed at construction: the forward pass never asks for a channel count, so
    it runs with any number of input channels.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad_before = (out_channels - in_channels) // 2
        self.pad_after = out_channels - in_channels - self.pad_before

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, out, H / stride, W / stride)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.pad_before, self.pad_after))

    def extra_repr(self) -> str:
        """Show stride and padding in ``print(model)``."""
        return f"stride={self.stride}, pad_before={self.pad_before}, pad_after={self.pad_after}"


class BasicBlock(nn.Module):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``, 3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _make_shortcut(shortcut, in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, out, H / stride, W / stride)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


def _make_shortcut(kind: Shortcut, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if kind == "zero_pad":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class CifarResNet(nn.Module):
    """Residual network for small images: three stages of (depth - 2) / 6 blocks, widths w, 2w, 4w.

    Args:
        depth: number of weighted layers, 6n + 2 (20, 32, 44, 56, 110).
        num_classes: outputs.
        in_channels: channels of the image.
        width: channels of the first stage; 16 in the paper.
        shortcut: where the shape changes, ``"projection"`` (1x1 convolution and norm, option B) or ``"zero_pad"``
            (no parameters, option A, as in the paper's CIFAR experiments).

    Raises:
        ConfigError: depth is not 6n + 2, or the shortcut has another name.

    Example:
        >>> model = CifarResNet(depth=8, width=4)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        shortcut: Shortcut = "projection",
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"depth must be 6n + 2 with n >= 1 (8, 14, 20, 32, 56, 110, ...), got {depth}")
        if shortcut not in ("projection", "zero_pad"):
            raise ConfigError(f"shortcut must be 'projection' or 'zero_pad', got {shortcut!r}")
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _make_stage(width, width, num_blocks, 1, shortcut)
        self.layer2 = _make_stage(width, 2 * width, num_blocks, 2, shortcut)
        self.layer3 = _make_stage(2 * width, 4 * width, num_blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, num_classes)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _make_stage(in_channels: int, out_channels: int, num_blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(num_blocks - 1)))


def resnet20(
    num_classes: int = 10, in_channels: int = 3, width: int = 16, shortcut: Shortcut = "projection"
) -> CifarResNet:
    """ResNet-20 for 32x32 images: 0.27 million parameters, 41 million MACs."""
    return CifarResNet(20, num_classes, in_channels, width, shortcut)


def resnet56(
    num_classes: int = 10, in_channels: int = 3, width: int = 16, shortcut: Shortcut = "projection"
) -> CifarResNet:
    """ResNet-56 for 32x32 images: 0.86 million parameters, 126 million MACs."""
    return CifarResNet(56, num_classes, in_channels, width, shortcut)
