"""A choice of what is kept, checked against the structure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from apical.errors import ResizeError
from apical.structure import Keep, Structure
from apical.structure._positions import checked_positions
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
    def counts(self) -> dict[str, int]:
        """Number of units by group name: priced as ``keep`` is, without a look at each position."""
        return {name: len(kept) for name, kept in self.keep.items()}

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
            found = checked_positions(group, positions)
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
