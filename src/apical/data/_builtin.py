"""Data sets that need no download: scikit-learn's digits, and a generated one for tests."""

from __future__ import annotations

import numpy as np
import torch

from apical._optional import import_optional
from apical.data._arrays import ImageArrays
from apical.data._splits import Split, check_split
from apical.errors import DataError

_DIGITS_TEST = 360  # of 1,797
_NOISE = 0.15  # standard deviation in generated images, where 1 is the full range


def read_digits(split: Split = "train") -> ImageArrays:
    """Read the handwritten digits that scikit-learn carries: 1,797 real 8x8 scans in 17 levels of grey.

    They have no official split: 360 images, drawn once with a fixed seed, are the test set. The levels 0 to 16 are
    spread over 0 to 255.

    Returns:
        Images (1437, 1, 8, 8) for training, (360, 1, 8, 8) for test.
    """
    _check_train_or_test("digits", split)
    datasets = import_optional("sklearn.datasets", "scikit-learn", "demo", "the digits data set")
    digits = datasets.load_digits()
    order = np.random.RandomState(0).permutation(len(digits.target))  # NumPy never changes this legacy generator
    chosen = np.sort(order[:_DIGITS_TEST] if split == "test" else order[_DIGITS_TEST:])
    images = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    labels = digits.target[chosen].astype(np.int64)
    return ImageArrays(
        torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels), tuple(str(number) for number in range(10))
    )


def synthetic_images(
    split: Split = "train", num_images: int = 256, num_classes: int = 4, size: int = 16, seed: int = 0
) -> ImageArrays:
    """Generate images that a small network learns quickly: a smooth random pattern for each class, plus noise.

    Args:
        split: patterns agree between splits, the noise differs.
        num_images: N; classes take turns.
        num_classes: number of patterns.
        size: height and width in pixels.
        seed: of patterns and noise.

    Example:
        >>> synthetic_images(num_images=8)
        ImageArrays(images=(8, 3, 16, 16), classes=4)
    """
    _check_train_or_test("synthetic", split)
    random = np.random.RandomState(seed)
    coarse = torch.from_numpy(random.uniform(0.2, 0.8, (num_classes, 3, 4, 4)))
    patterns = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    random = np.random.RandomState((seed + 1) * 2 + (split == "test"))
    labels = torch.arange(num_images) % num_classes
    values = patterns[labels] + torch.from_numpy(random.normal(0, _NOISE, (num_images, 3, size, size)))
    images = (values * 255).round().clamp(0, 255).to(torch.uint8)
    return ImageArrays(images, labels, tuple(f"pattern {number}" for number in range(num_classes)))


def _check_train_or_test(name: str, split: str) -> None:
    check_split(split)
    if split == "validation":
        raise DataError(f"{name} has no 'validation' split; hold one out with train_validation_split")
