"""A structure of which some parts are frozen: what they had is fixed in all that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from apical.structure._cost import CostTerm, SizeAxis
from apical.structure._structure import Structure
from apical.structure._types import ChannelGroup, Frozen, SkippableBlock

Part = ChannelGroup | SkippableBlock
Key = tuple[type, str]  # a group and a block may have the same name


def key_of(part: Part) -> Key:
    """What tells a part from all others of its structure."""
    return type(part), part.name


def without(structure: Structure, refuted: Mapping[Key, str]) -> Structure:
    """The structure with some groups and blocks frozen.

    Args:
        structure: with all of them.
        refuted: why each of them is, by its key.
    """
    if not refuted:
        return structure
    groups = tuple(g for g in structure.groups if key_of(g) not in refuted)
    index = {g.name: i for i, g in enumerate(groups)}
    where = [index.get(g.name) for g in structure.groups]

    def axis(a: SizeAxis) -> SizeAxis:
        fixed = sum(n * structure.groups[g].size for g, n in a.counts if where[g] is None)
        return SizeAxis(a.base + fixed, tuple((w, n) for g, n in a.counts if (w := where[g]) is not None))

    def term(t: CostTerm) -> CostTerm:
        return CostTerm(t.coefficient, tuple(axis(a) for a in t.axes), t.modules)

    frozen = [Frozen(g.name, g.size, refuted[key_of(g)]) for g in structure.groups if key_of(g) in refuted]
    notes = [f"block {b.name} stays: {refuted[key_of(b)]}" for b in structure.blocks if key_of(b) in refuted]
    return replace(
        structure,
        groups=groups,
        blocks=tuple(b for b in structure.blocks if key_of(b) not in refuted),
        frozen=(*structure.frozen, *frozen),
        attributes=tuple(replace(a, axis=axis(a.axis)) for a in structure.attributes if axis(a.axis).counts),
        terms=tuple(term(t) for t in structure.terms),
        param_axes=tuple(term(t) for t in structure.param_axes),
        notes=(*structure.notes, *notes),
        states=tuple(s for s in structure.states if s.group in index),
    )
