"""How widths round: the one rule that growth, all comparators and the measurement of a divisor follow."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from math import ceil


def rounding_step(size: int, divisor: int) -> int:
    """By what the width of a group changes: by the divisor, or by 1 in a group of fewer than two such steps.

    A group that small would have one width only.

    Args:
        size: of the group in the template.
        divisor: at least 1.

    Example:
        >>> rounding_step(40, 8), rounding_step(12, 8)
        (8, 1)
    """
    return divisor if size >= 2 * divisor else 1


def least_width(size: int, units: float, divisor: int) -> int:
    """The smallest width of at least so many units, at least one, that a group can have.

    Example:
        >>> least_width(40, 10, 8), least_width(12, 10, 8), least_width(40, 99, 8)
        (16, 10, 40)
    """
    step = rounding_step(size, divisor)
    return min(size, step * ceil(max(1.0, units) / step))


def possible_widths(size: int, least: int, divisor: int) -> list[int]:
    """The widths that a group can have: the least, every multiple of its step above that, and its whole size.

    Example:
        >>> possible_widths(20, 4, 8), possible_widths(12, 10, 8)
        ([4, 8, 16, 20], [10, 11, 12])
    """
    step = rounding_step(size, divisor)
    return sorted({least, *range((least // step + 1) * step, size, step), size})


def warn_of_idle_divisor(sizes: Iterable[int], divisor: int) -> None:
    """Warn of a divisor by which no width is rounded, because all groups have fewer than two such steps."""
    largest = max(sizes, default=0)
    if divisor > 1 and 0 < largest < 2 * divisor:
        warnings.warn(
            f"divisor={divisor} rounds no width: a group needs twice as many units, and the largest has {largest}. "
            f"Widths can be any number. Give a divisor of at most {max(1, largest // 2)}, or 1.",
            stacklevel=3,  # of the constructor's caller
        )
