"""A small U-Net: encoder and decoder joined by concatenation (Ronneberger et al. 2015, arXiv:1505.04597)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.models._init import init_convolutions_


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Encoder of ``levels`` double convolutions, a bottom, and a decoder that concatenates the encoder's features.

    Convolutions are padded and followed by batch norm (the paper has neither), so outputs have the input's size.

    Args:
        num_classes: outputs per pixel.
        in_channels: channels of the image.
        width: channels of the first level; each level below has twice as many.
        levels: number of poolings; height and width must be multiples of ``2 ** levels``.

    Raises:
        ConfigError: fewer than one level, or (on a call) height or width that does not halve that often.

    Example:
        >>> UNet(num_classes=4, width=4, levels=2)(torch.zeros(1, 3, 24, 32)).shape
        torch.Size([1, 4, 24, 32])
    """

    def __init__(self, num_classes: int = 2, in_channels: int = 3, width: int = 32, levels: int = 3) -> None:
        super().__init__()
        if levels < 1:
            raise ConfigError(f"levels must be at least 1, got {levels}")
        widths = [width * 2**level for level in range(levels + 1)]
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList(
            _double_conv(inputs, outputs) for inputs, outputs in zip([in_channels, *widths], widths[:-1], strict=False)
        )
        self.bottom = _double_conv(widths[-2], widths[-1])
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        for channels in reversed(widths[:-1]):
            self.up.append(nn.ConvTranspose2d(2 * channels, channels, 2, stride=2))
            self.merge.append(_double_conv(2 * channels, channels))
        self.head = nn.Conv2d(width, num_classes, 1)
        init_convolutions_(self)

    def forward(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, num_classes, H, W)
        multiple = 2 ** len(self.down)
        if x.shape[-2] % multiple or x.shape[-1] % multiple:
            raise ConfigError(f"height and width must be multiples of {multiple}, got {tuple(x.shape[-2:])}")
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits
