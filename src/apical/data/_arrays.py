"""Labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from apical.errors import ConfigError, DataError

_CHUNK = 1024  # images converted to float at a time
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's convert("L")


@dataclass(frozen=True, eq=False)
class ImageArrays:
    """Images of one size with a class each.

    Attributes:
        images: uint8, (N, C, H, W).
        labels: int64, (N,), from 0.
        classes: the name of every class; labels count positions in it.
        names: of every image's file; empty where they come from no files of their own.

    Raises:
        DataError: dtypes, shapes or labels contradict this.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"labels must be int64 ({len(self.images)},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if self.names and len(self.names) != len(self.images):
            raise DataError(f"names must be those of {len(self.images)} images, got {len(self.names)}")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise DataError(
                f"labels must lie in 0..{len(self.classes) - 1} ({len(self.classes)} classes), "
                f"got {int(self.labels.min())}..{int(self.labels.max())}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"ImageArrays(images={tuple(self.images.shape)}, classes={len(self.classes)})"

    def select(self, index: Tensor) -> ImageArrays:
        """The images at some positions (int64, (n,)), in that order."""
        names = tuple(self.names[i] for i in index.tolist()) if self.names else ()
        return ImageArrays(self.images[index], self.labels[index], self.classes, names)


def train_validation_split(
    arrays: ImageArrays, validation_fraction: float = 0.1, seed: int = 0
) -> tuple[ImageArrays, ImageArrays]:
    """Hold some images out, chosen at random; the same seed always chooses the same ones.

    Args:
        arrays: all training images.
        validation_fraction: share to hold out, in (0, 1); rounded to whole images, at least one each side.
        seed: of NumPy's frozen legacy generator, so that the choice does not change with versions.

    Returns:
        What is left for training, and the held-out images, both in their original order.

    Raises:
        ConfigError: the fraction is out of range, or there are fewer than two images.

    Example:
        >>> arrays = ImageArrays(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.arange(10), tuple("abcdefghij"))
        >>> train_validation_split(arrays, 0.2)
        (ImageArrays(images=(8, 1, 2, 2), classes=10), ImageArrays(images=(2, 1, 2, 2), classes=10))
    """
    if not 0 < validation_fraction < 1:
        raise ConfigError(f"validation_fraction must lie strictly between 0 and 1, got {validation_fraction}")
    if len(arrays) < 2:
        raise ConfigError(f"splitting needs at least 2 images, got {len(arrays)}")
    num_validation = min(max(1, round(validation_fraction * len(arrays))), len(arrays) - 1)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(arrays)))
    held_out, kept = order[:num_validation].sort().values, order[num_validation:].sort().values
    return arrays.select(kept), arrays.select(held_out)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel, in units of the full range (0 to 1).

    Args:
        images: uint8, (N, C, H, W).

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in images.split(_CHUNK):
        scaled = chunk.double().cpu() / 255
        total += scaled.sum(dim=(0, 2, 3))
        squares += scaled.square().sum(dim=(0, 2, 3))
    count = max(1, images.numel() // max(1, images.shape[1]))
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())


def conform(arrays: ImageArrays, size: int | None, channels: int | None) -> ImageArrays:
    """Resize square (antialiased) and convert between grey and colour, where asked and needed."""
    images = arrays.images
    if channels is not None and channels != images.shape[1]:
        images = _convert_channels(images, channels)
    if size is not None and images.shape[-2:] != (size, size):
        images = torch.cat([_resize(chunk, size) for chunk in images.split(_CHUNK)])
    return replace(arrays, images=images)


def _resize(images: Tensor, size: int) -> Tensor:
    resized = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).to(torch.uint8)


def _convert_channels(images: Tensor, channels: int) -> Tensor:
    if (images.shape[1], channels) == (1, 3):
        return images.expand(-1, 3, -1, -1).contiguous()
    if (images.shape[1], channels) == (3, 1):
        weights = torch.tensor(_LUMINANCE).reshape(1, 3, 1, 1)
        grey = [(chunk.float() * weights).sum(1, keepdim=True).round_() for chunk in images.split(_CHUNK)]
        return torch.cat(grey).to(torch.uint8)
    raise ConfigError(f"cannot convert images of {images.shape[1]} channels to {channels}; channels may be 1 or 3")
