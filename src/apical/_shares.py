"""Shares in words."""

from __future__ import annotations


def in_per_cent(part: float, whole: float, digits: int = 1) -> str:
    """A share as people read it: what is there, but would be rounded to nothing, is not told as nothing.

    Example:
        >>> in_per_cent(1, 8), in_per_cent(0, 8), in_per_cent(1, 10_000), in_per_cent(1, 8, 0), in_per_cent(0, 0)
        ('12.5 %', '0.0 %', '< 0.1 %', '12 %', '-')
    """
    if not whole:
        return "-"
    least = 10.0**-digits
    share = 100 * part / whole
    return f"< {least:.{digits}f} %" if 0 < share < least / 2 else f"{share:.{digits}f} %"
