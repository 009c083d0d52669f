"""How newborn units can begin: with readers of zero, else with gates of zero. The dry run finds out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from apical.resizing._disagreement import chosen, keep_half
from apical.resizing._gates import gated_copy
from apical.resizing._testbed import Testbed, difference
from apical.structure import ChannelGroup, Structure


def with_births(structure: Structure, bed: Testbed) -> Structure:
    """The structure without readers that are not all that reads a group; readers are zero at births.

    Args:
        structure: confirmed, so that a gate of zero equals the unit's absence.
        bed: what to compare on, in float32 if that is exact enough: what is heard here is no rounding error.
    """
    bed = bed.narrow or bed
    heard = {g.name for g in _heard(structure, bed, [g for g in structure.groups if _may_be_heard(g)])}
    groups = tuple(replace(g, readers=()) if g.name in heard else g for g in structure.groups)
    return replace(structure, groups=groups)


def _may_be_heard(group: ChannelGroup) -> bool:
    """Whether readers of zero may be another thing than a gate of zero, which they are not if they hold the gate."""
    readers = {(part.tensor, part.dim) for part in group.readers}
    return group.exact and bool(readers) and not {(part.tensor, part.dim) for part in group.gate_site} <= readers


def _heard(structure: Structure, bed: Testbed, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups of which something is heard while all their readers are zero, found by halving."""
    if not groups or _are_unheard(structure, bed, groups):
        return []
    if len(groups) == 1:
        return list(groups)
    half = len(groups) // 2
    return [*_heard(structure, bed, groups[:half]), *_heard(structure, bed, groups[half:])]


def _are_unheard(structure: Structure, bed: Testbed, groups: Sequence[ChannelGroup]) -> bool:
    """Whether zeros in the readers of half of the units of each group do the same as zeros at their gates."""
    keep, _ = chosen(groups, keep_half)
    gated = replace(structure, groups=tuple(groups))
    unread = replace(structure, groups=tuple(replace(g, gate_site=g.readers) for g in groups))
    modes = bed.modes[:1] if bed.same_modes else bed.modes
    try:
        for training in modes:
            with gated_copy(bed.model, gated, keep) as model:
                expected = bed.example.run(model, training)
            with gated_copy(bed.model, unread, keep) as model:
                found = bed.example.run(model, training)
            if difference(expected, found, bed.tolerance) is not None:
                return False
    except Exception:  # noqa: BLE001 (whatever the user's forward pass raises at weights of zero)
        return False
    return True
