"""A tiny data set in the layout of PASCAL VOC: coloured rectangles on a ground, so that it can be learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

COLOURS = ((40, 40, 40), (220, 30, 30), (30, 200, 40), (40, 60, 230))
LISTS: Mapping[str, int] = {"train": 12, "val": 4, "test": 5}


def draw(generator: np.random.Generator, size: tuple[int, int], classes: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (H, W, 3) and uint8 (H, W): a rectangle of every class, a border and some noise."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    for number in range(1, classes):
        top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
        mask[top : top + height // 2, left : left + width // 3] = number
    image = np.array(COLOURS, np.uint8)[mask] + generator.integers(0, 20, (*size, 3)).astype(np.uint8)
    mask[0, :] = 255
    return image, mask


def write_voc(
    folder: Path,
    lists: Mapping[str, int] = LISTS,
    sizes: Sequence[tuple[int, int]] = ((24, 32), (20, 28)),
    classes: int = 4,
    names: Sequence[str] | None = ("ground", "red thing", "green thing", "blue thing"),
) -> Path:
    """Write JPEGImages (as PNG would be read too), SegmentationClass and the lists; returns the folder."""
    pillow = pytest.importorskip("PIL.Image")
    generator = np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, count in lists.items():
        stems = [f"{split}_{number}" for number in range(count)]
        for number, stem in enumerate(stems):
            image, mask = draw(generator, sizes[number % len(sizes)], classes)
            pillow.fromarray(image).save(folder / "JPEGImages" / f"{stem}.jpg", quality=95)
            encoded = pillow.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
            encoded.putpalette([value for colour in COLOURS for value in colour] + 252 * [0, 0, 0])
            encoded.save(folder / "SegmentationClass" / f"{stem}.png")
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    if names is not None:
        lines = [f"{number} {name}" for number, name in enumerate(names)] + ["255 ignore"]
        (folder / "classes.txt").write_text("\n".join(lines) + "\n")
    return folder
