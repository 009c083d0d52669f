"""A choice of what is kept, checked against the structure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from apical.errors import ResizeError
from apical.structure import ChannelGroup, Keep, Structure
from apical.structure._structure import block_names, unknown


@dataclass(frozen=True)
class Selection:
    """Which units of each group are present, and which blocks are left out; positions count in the template.

    Attributes:
        keep: sorted positions by group name; every group of the structure is named.
        skip: names of the blocks that are left out.
    """

    keep: Mapping[str, tuple[int, ...]]
    skip: frozenset[str]

    def gone(self, group: str, size: int) -> Tensor:
        """Which units of a group are left out  # (size,) bool"""
        if group not in self._gone:
            mask = torch.ones(size, dtype=torch.bool, device="cpu")
            mask[list(self.keep[group])] = False
            self._gone[group] = mask
        return self._gone[group]

    @cached_property
    def _gone(self) -> dict[str, Tensor]:
        return {}

    @staticmethod
    def full(structure: Structure) -> Selection:
        """Everything present."""
        return Selection({g.name: tuple(range(g.size)) for g in structure.groups}, frozenset())


def check_selection(structure: Structure, keep: Keep, skip: Iterable[str]) -> Selection:
    """The selection that ``keep`` and ``skip`` describe.

    Raises:
        ResizeError: with every problem found: unknown names, wrong types, positions out of range, repeated or not
            sorted, groups left empty.
    """
    problems: list[str] = []
    names = [g.name for g in structure.groups]
    blocks = [b.name for b in structure.blocks]
    if not isinstance(keep, Mapping):
        raise ResizeError(f"keep must map group names to positions, not be a {type(keep).__name__}")
    problems += [unknown("group", name, names) for name in keep if name not in names]
    if not isinstance(skip, Iterable):
        raise ResizeError(f"skip must list block names, not be a {type(skip).__name__}")
    skip = block_names(skip)
    problems += [unknown("block", name, blocks) for name in skip if name not in blocks]
    chosen: dict[str, tuple[int, ...]] = {}
    for group in structure.groups:
        positions = keep.get(group.name)
        if positions is None:
            chosen[group.name] = tuple(range(group.size))
        else:
            found = _positions(group, positions)
            if isinstance(found, str):
                problems.append(found)
            else:
                chosen[group.name] = found
    if problems:
        raise ResizeError("the model was not changed, because\n" + "\n".join(f"  - {p}" for p in problems))
    return Selection(chosen, frozenset(skip))


def first_units(rankings: Mapping[str, Sequence[int]], counts: Mapping[str, int]) -> dict[str, list[int]]:
    """The first so many units of each group.

    Args:
        rankings: the units of each group, the one that stays longest first.
        counts: how many stay, by group.

    Returns:
        Kept positions by group name.
    """
    return {name: sorted(rankings[name][:n]) for name, n in counts.items()}


def _positions(group: ChannelGroup, positions: Any) -> tuple[int, ...] | str:
    """Checked positions, or what is wrong with them."""
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
