"""From compressed images to uint8 tensors."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apical._optional import import_optional
from apical.errors import ConfigError, DataError


@dataclass(frozen=True)
class Decode:
    """How to turn an encoded image into a tensor.

    Attributes:
        size: cut the middle ``size`` x ``size`` out; None keeps everything.
        resize: first scale the shorter side to this (antialiased bilinear); by default ``size``, if that is given.
        channels: 3 (colour; grey images are repeated, transparency is dropped) or 1 (grey).

    Raises:
        ConfigError: channels other than 1 and 3, sizes below 1, or ``resize`` smaller than ``size``.

    Example:
        >>> Decode(size=224, resize=256)
        Decode(size=224, resize=256, channels=3)
    """

    size: int | None = None
    resize: int | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"channels must be 1 or 3, got {self.channels}")
        for name, value in (("size", self.size), ("resize", self.resize)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1 pixel, got {value}")
        if self.size is not None and self.resize is not None and self.resize < self.size:
            raise ConfigError(f"resize must not be smaller than size, got resize={self.resize} and size={self.size}")

    def __call__(self, source: bytes | Path, where: str) -> Tensor:
        """Decode one image.

        Args:
            source: the encoded bytes, or the file that holds them.
            where: file or row, for the error.

        Returns:
            uint8, (channels, H, W).

        Raises:
            DataError: it is not an image that Pillow reads, is damaged, or has 16 bits or floats.
        """
        pillow = import_optional("PIL.Image", "Pillow", "data", "decoding images")
        try:
            with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.mode.startswith(("I", "F")):
                    raise DataError(f"8-bit images expected, got Pillow mode {image.mode!r}")
                pixels = np.array(self._fit(image.convert("L" if self.channels == 1 else "RGB"), pillow))
        except Exception as error:
            raise DataError(f"{where}: cannot read the image: {error}") from error
        return torch.from_numpy(pixels.reshape(*pixels.shape[:2], self.channels)).permute(2, 0, 1).contiguous()

    def _fit(self, image: Any, pillow: Any) -> Any:
        shorter = self.size if self.resize is None else self.resize
        if shorter is not None and min(image.size) != shorter:
            factor = shorter / min(image.size)
            width, height = (max(shorter, round(side * factor)) for side in image.size)
            image = image.resize((width, height), pillow.Resampling.BILINEAR)
        if self.size is None:
            return image
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return image.crop((left, top, left + self.size, top + self.size))


def decode_all(sources: Iterable[tuple[bytes | Path, str]], count: int, decode: Decode) -> Tensor:
    """Decode ``count`` images, each given with its place for errors, into one uint8 tensor (N, C, H, W)."""
    if count == 0:
        raise DataError("there are no images to read")
    images = torch.empty(0)
    for position, (source, where) in enumerate(sources):
        image = decode(source, where)
        if position == 0:
            images = torch.empty(count, *image.shape, dtype=torch.uint8)
        if image.shape != images.shape[1:]:
            expected, got = (f"{shape[-1]}x{shape[-2]}" for shape in (images.shape, image.shape))
            raise DataError(
                f"{where}: the image is {got} pixels, the first one {expected}; pass size=... to bring all to one "
                "size, or open_images(...) to read them one by one"
            )
        images[position] = image
    return images
