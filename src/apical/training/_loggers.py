"""Where the numbers of a run go besides the terminal and the run folder: TensorBoard; `_trackers` has others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from apical._optional import import_optional
from apical.errors import ConfigError

Pixels = npt.NDArray[np.uint8]
"""An image  # (height, width, 3), 0 to 255."""


class Logger(Protocol):
    """Receives a run's numbers; a tracker of one's own needs a class of five short methods.

    Epochs count from 1. The first process of a run calls it, no other.

    Example:
        >>> class Print:
        ...     def scalars(self, values, epoch):
        ...         print(epoch, dict(values))
        ...     def histogram(self, name, values, epoch): ...
        ...     def image(self, name, pixels, epoch): ...
        ...     def text(self, name, text): ...
        ...     def close(self): ...
        >>> Print().scalars({"train/loss": 0.5}, epoch=1)
        1 {'train/loss': 0.5}
    """

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Numbers by name (`train/loss`, `cost/macs_fraction`, `width/layer1.0.conv1`)."""

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        """How many numbers are distributed, such as the shares of the full widths."""

    def image(self, name: str, pixels: Pixels, epoch: int) -> None:
        """A picture, such as the growth so far."""

    def text(self, name: str, text: str) -> None:
        """Words, such as the settings at the start and the summary at the end."""

    def close(self) -> None:
        """Nothing more will come; called once, also when the run fails."""


class TensorBoardLogger(Logger):
    """Writes event files that `tensorboard --logdir FOLDER` shows.

    Args:
        folder: of the event files; made if need be.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._writer = require_tensorboard()(str(folder))

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        self._writer.add_histogram(name, np.asarray(values, dtype=np.float64), epoch)

    def image(self, name: str, pixels: Pixels, epoch: int) -> None:
        self._writer.add_image(name, torch.from_numpy(pixels), epoch, dataformats="HWC")

    def text(self, name: str, text: str) -> None:
        """As a code block, so that it is shown as it stands."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()))

    def close(self) -> None:
        self._writer.close()


def require_tensorboard() -> Any:
    """TensorBoard's writer class.

    Raises:
        ConfigError: tensorboard, or Pillow for its images, is not installed.
    """
    needed = (("PIL", "Pillow"), ("torch.utils.tensorboard", "tensorboard"))
    _, board = (import_optional(path, package, "live", "log: TensorBoard", ConfigError) for path, package in needed)
    return board.SummaryWriter
