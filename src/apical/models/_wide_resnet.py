"""Pre-activation wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.models._init import init_convolutions_


class PreActBlock(nn.Module):
    """``conv2(dropout(relu(bn2(conv1(a))))) + shortcut`` with ``a = relu(bn1(x))``.

    The shortcut is ``x`` itself where shapes agree, else a 1x1 convolution of ``a`` (not of ``x``), as in the paper's
    code.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, out, H / stride, W / stride)
        activated = F.relu(self.bn1(x))
        shortcut: Tensor = x if self.shortcut is None else self.shortcut(activated)
        out: Tensor = F.relu(self.bn2(self.conv1(activated)))
        out = self.conv2(self.dropout(out))
        return shortcut + out


class WideResNet(nn.Module):
    """Three stages of (depth - 4) / 6 pre-activation blocks, widths 16k, 32k, 64k with widening factor k.

    Args:
        depth: number of convolutions in the paper's count, 6n + 4 (16, 22, 28, 40).
        widen_factor: k.
        num_classes: outputs.
        in_channels: channels of the image.
        dropout: probability between the two convolutions of a block.
        width: channels of the stem; 16 in the paper.

    Raises:
        ConfigError: depth is not 6n + 4.

    Example:
        >>> WideResNet(depth=10, widen_factor=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        num_classes: int = 10,
        in_channels: int = 3,
        dropout: float = 0.0,
        width: int = 16,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ConfigError(f"depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, 40, ...), got {depth}")
        num_blocks = (depth - 4) // 6
        widths = [width, width * widen_factor, 2 * width * widen_factor, 4 * width * widen_factor]
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.layer1 = _make_stage(widths[0], widths[1], num_blocks, 1, dropout)
        self.layer2 = _make_stage(widths[1], widths[2], num_blocks, 2, dropout)
        self.layer3 = _make_stage(widths[2], widths[3], num_blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], num_classes)
        init_convolutions_(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, num_classes)
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = self.avgpool(F.relu(self.bn1(x)))
        logits: Tensor = self.fc(torch.flatten(x, 1))
        return logits


def _make_stage(in_channels: int, out_channels: int, num_blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = PreActBlock(in_channels, out_channels, stride, dropout)
    return nn.Sequential(first, *(PreActBlock(out_channels, out_channels, 1, dropout) for _ in range(num_blocks - 1)))


def wrn28_10(num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> WideResNet:
    """WRN-28-10: 36.5 million parameters, 5.2 billion MACs at 32x32."""
    return WideResNet(28, 10, num_classes, in_channels, dropout)
