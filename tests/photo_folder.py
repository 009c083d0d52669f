"""A folder of small generated photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_image_folder(
    root: Path, images: int, sizes: Sequence[tuple[int, int]] = ((12, 12),), classes: Sequence[str] = ("cat", "dog")
) -> None:
    """`train/CLASS/N.png` and `val/CLASS/N.png`; each class has its own brightness, sizes take turns."""
    from PIL import Image

    random = np.random.RandomState(0)
    for split in ("train", "val"):
        for position, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(images):
                height, width = sizes[number % len(sizes)]
                pixels = random.randint(0, 100, (height, width, 3)) + 100 * position
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
