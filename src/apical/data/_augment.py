"""Random changes to whole batches, on whatever device the batch lives.

All take and return uint8 images (N, C, H, W) and draw from the given generator (from the device of the generator, so
one on the CPU gives the same augmentation on every device); None stands for torch's global one, which a DataLoader
seeds in each of its workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.errors import ConfigError

#: A change to a batch that draws from a generator.
Augment = Callable[[Tensor, torch.Generator | None], Tensor]

_ATTEMPTS = 10  # boxes drawn until one fits, as in torchvision

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _draw_boxes(
    num_images: int,
    height: int,
    width: int,
    generator: torch.Generator | None,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Tensor:
    """Boxes (N, 4) as left, top, width, height in pixels: of some draws the first that fits, else the largest."""
    area, shape, x, y = _rand((4, _ATTEMPTS, num_images), generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = torch.exp(low + (high - low) * shape)
    box_width, box_height = (area * shape).sqrt(), (area / shape).sqrt()  # (attempts, N)
    fits = (box_width <= width) & (box_height <= height)
    first = fits.int().argmax(dim=0, keepdim=True)
    box_width, box_height, x, y = (values.gather(0, first)[0] for values in (box_width, box_height, x, y))
    limited = min(max(width / height, ratio[0]), ratio[1])
    none_fits = ~fits.any(dim=0)
    box_width = torch.where(none_fits, torch.tensor(min(width, height * limited)), box_width)
    box_height = torch.where(none_fits, torch.tensor(min(height, width / limited)), box_height)
    x, y = x.masked_fill(none_fits, 0.5), y.masked_fill(none_fits, 0.5)
    return torch.stack([x * (width - box_width), y * (height - box_height), box_width, box_height], dim=1)


def _rand(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, device=None if generator is None else generator.device)


def _randint(high: int, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return torch.randint(high, shape, generator=generator, device=None if generator is None else generator.device)


@dataclass(frozen=True)
class RandomCrop:
    """Pads every side with zeros, then cuts the original size out at a random place, drawn for each image.

    Attributes:
        padding: pixels on each side.

    Example:
        >>> RandomCrop(1)(torch.ones(2, 1, 4, 4, dtype=torch.uint8), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 4, 4])
    """

    padding: int = 4

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ConfigError(f"padding must not be negative, got {self.padding}")

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Crop a batch  # (N, C, H, W)"""
        padding, (num_images, _, height, width) = self.padding, images.shape
        offsets = _randint(2 * padding + 1, (2, num_images), generator).to(images.device, non_blocking=True)
        padded = F.pad(images, (padding,) * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # view: (N, C, 2p + 1, 2p + 1, H, W)
        return windows[torch.arange(num_images, device=images.device), :, offsets[0], offsets[1]]


@dataclass(frozen=True)
class RandomFlip:
    """Mirrors left and right, decided for each image."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"probability must lie in 0..1, got {self.probability}")

    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Flip a batch."""
        flipped = (_rand((len(images),), generator) < self.probability).to(images.device, non_blocking=True)
        return torch.where(flipped[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts a random box of random shape out of each image, and resizes it square.

    Batches are resized bilinear and not antialiased: for images that are at most about twice as large as ``size``. For
    larger ones use this as the transform of a data set: a single image (C, H, W) is cut to whole pixels and
    antialiased.

    Attributes:
        size: height and width of the result.
        scale: least and largest share of the image's area.
        ratio: least and largest width / height, uniform on a logarithmic scale.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size must be at least 1 pixel, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ranges must be (low, high) and positive, got scale={self.scale}, ratio={self.ratio}")

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Crop and resize a batch, or one image."""
        if images.ndim == 4:
            return self._of_batch(images, generator)
        height, width = images.shape[-2:]
        box = _draw_boxes(1, height, width, generator, self.scale, self.ratio)[0].round().int().tolist()
        left, top, box_width, box_height = (
            min(box[0], width - 1),
            min(box[1], height - 1),
            max(1, box[2]),
            max(1, box[3]),
        )
        cut = images[None, :, top : top + box_height, left : left + box_width].float()
        out = F.interpolate(cut, size=(self.size, self.size), mode="bilinear", antialias=True)
        return out[0].round_().clamp_(0, 255).to(torch.uint8)

    def _of_batch(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        num_images, channels, height, width = images.shape
        boxes = _draw_boxes(num_images, height, width, generator, self.scale, self.ratio)
        boxes = boxes.to(images.device, non_blocking=True)
        left, top, box_width, box_height = boxes.unbind(1)
        theta = torch.zeros(num_images, 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 0, 2] = box_width / width, (2 * left + box_width) / width - 1
        theta[:, 1, 1], theta[:, 1, 2] = box_height / height, (2 * top + box_height) / height - 1
        grid = F.affine_grid(theta, [num_images, channels, self.size, self.size], align_corners=False)
        out = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
        return out.round_().clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Normalize:
    """``(images / 255 - mean) / std`` for each channel, as float.

    Attributes:
        mean: of each channel, where 1 is the full range.
        std: likewise, positive.
        dtype: of the result.

    Raises:
        ConfigError: lengths differ, or a deviation is not positive.

    Example:
        >>> Normalize((0.5,), (0.5,))(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).item()
        1.0
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ConfigError(
                f"mean and std need one number a channel, std above 0, got mean={self.mean}, std={self.std}"
            )

    def __call__(self, images: Tensor) -> Tensor:  # uint8 (N, C, H, W) -> float (N, C, H, W)
        """Normalise a batch."""
        mean = _per_channel(self.mean, images.device, self.dtype)
        std = _per_channel(self.std, images.device, self.dtype)
        return images.to(self.dtype).sub_(mean).div_(std)


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Put ``values`` on the scale of bytes and on the device, once."""
    return torch.tensor([255 * value for value in values], dtype=dtype, device=device).reshape(-1, 1, 1)
