"""Positions in a group, as users give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from apical.structure._types import ChannelGroup


def checked_positions(group: ChannelGroup, positions: Any) -> tuple[int, ...] | str:
    """Positions of units that are kept, or what is wrong with them."""
    where = f"group {group.name!r}"
    if isinstance(positions, Tensor):
        if positions.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8) or positions.dim() != 1:
            return (f"{where}: positions must be a 1-d integer tensor, got {positions.dtype} of shape "
                    f"{tuple(positions.shape)}; from a mask use mask.nonzero().flatten()")  # fmt: skip
        positions = positions.tolist()
    elif isinstance(positions, (str, bytes)) or not isinstance(positions, (Sequence, range)):
        try:
            positions = list(positions)
        except TypeError:
            return f"{where}: expected a sequence of positions, got {type(positions).__name__} {positions!r}"
    wrong = [p for p in positions if isinstance(p, bool) or not _is_integer(p)]
    if wrong:
        return f"{where}: positions must be integers, got {type(wrong[0]).__name__} {wrong[0]!r}"
    positions = [int(p) for p in positions]
    if not positions:
        return f"{where}: at least one of its {group.size} units must stay"
    outside = [p for p in positions if not 0 <= p < group.size]
    if outside:
        return f"{where}: position {outside[0]} is outside 0…{group.size - 1}"
    if len(set(positions)) < len(positions):
        return f"{where}: position {next(p for p in positions if positions.count(p) > 1)} is repeated"
    if sorted(positions) != positions:
        return f"{where}: positions must be in ascending order"
    return tuple(positions)


def _is_integer(value: Any) -> bool:
    return hasattr(value, "__index__")
