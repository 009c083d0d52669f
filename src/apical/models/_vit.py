"""A small vision transformer: patches, pre-norm blocks, a mean over them.

Dosovitskiy et al. 2021, "An image is worth 16x16 words"; the mean in place of a class token is Beyer et al. 2022,
"Better plain ViT baselines for ImageNet-1k".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.models._gpt import Block


class ViT(nn.Module):
    """Patches of an image as a sequence, learned positions, blocks of attention and MLP, the mean, a linear head.

    Linear layers start normal with standard deviation 0.02, biases at zero.

    Args:
        num_classes: number of logits.
        in_channels: channels of an image.
        image_size: pixels of a side; a multiple of ``patch_size``.
        patch_size: pixels of a patch's side.
        embedding_size: width of the residual stream.
        num_layers: blocks.
        num_heads: attention heads of each block, which divide ``embedding_size``.
        mlp_size: hidden width of the MLPs; by default ``4 * embedding_size``.
        dropout: probability on attention weights and branches.

    Raises:
        ConfigError: sizes do not divide one another.

    Example:
        >>> ViT(10, embedding_size=24, num_layers=2, num_heads=3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, image_size: int = 32, patch_size: int = 4,
        embedding_size: int = 192, num_layers: int = 6, num_heads: int = 6, mlp_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if image_size % patch_size or embedding_size % num_heads:
            raise ConfigError(
                f"patch_size must divide image_size and num_heads embedding_size, got {patch_size} for {image_size} "
                f"and {num_heads} for {embedding_size}"
            )
        mlp_size = 4 * embedding_size if mlp_size is None else mlp_size
        self.patches = nn.Conv2d(in_channels, embedding_size, patch_size, patch_size)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (image_size // patch_size) ** 2, embedding_size))
        head_dim = embedding_size // num_heads
        self.blocks = nn.Sequential(
            *(Block(embedding_size, num_heads, head_dim, mlp_size, dropout, causal=False) for _ in range(num_layers))
        )
        self.norm = nn.LayerNorm(embedding_size)
        self.head = nn.Linear(embedding_size, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:  # (B, in_channels, S, S) -> (B, num_classes)
        """Classify images of S = image_size pixels."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions  # (B, patches, embedding)
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


def vit_small(num_classes: int = 10, in_channels: int = 3, image_size: int = 32, **options: Any) -> ViT:
    """Six blocks of width 192 with six heads on patches of 4 pixels: 2.7 million parameters.

    Example:
        >>> sum(p.numel() for p in vit_small().parameters())
        2693194
    """
    return ViT(num_classes, in_channels, image_size, **options)
