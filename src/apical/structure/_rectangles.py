"""Ids over several dimensions: along which of them the units lie, found once all that is certain has been joined."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from apical.structure._atoms import depends_only_on, line, spread
from apical.structure._findings import Crossing, Rectangle
from apical.structure._walk import NOT_A_CHANNEL, Walk

SPLIT_FIXED = "a view splits channels of which some are fixed"


def resolve_rectangles(walk: Walk) -> None:
    """Join what must go together so that every view of several channel dimensions stays rectangular.

    What decides, the surest first: operations that have tied ids along a dimension (attention ties the width of a
    head); then parameters that lie along one dimension; else the last dimension holds the units.
    """
    steps: tuple[Callable[[Walk, Tensor], bool], ...] = (_join_decided_crossings, _decide_by_crossing, _decide_by_last)
    # after each decision the surer steps come first again, since it may have decided others
    while any(step(walk, walk.atoms.labels()) for step in steps):
        pass
    labels = walk.atoms.labels()
    for crossing in walk.crossings:
        walk.atoms.node = crossing.node
        if _follows(crossing, labels):
            walk.meet(line(crossing.ids, crossing.dim), crossing.vector, SPLIT_FIXED)
        else:
            walk.atoms.freeze(crossing.vector, NOT_A_CHANNEL)
    walk.atoms.node = None


def _join_decided_crossings(walk: Walk, labels: Tensor) -> bool:
    # where the units lie along the crossing's dimension already, they are those of the parameter that lies there
    changed = False
    for crossing in walk.crossings:
        ours = line(crossing.ids, crossing.dim)
        if _follows(crossing, labels) and not _equal(labels, ours, crossing.vector):
            walk.atoms.join(ours, crossing.vector)
            changed = True
    return changed


def _follows(crossing: Crossing, labels: Tensor) -> bool:
    """Whether the units lie along the crossing's dimension."""
    if bool((crossing.ids < 0).any()):
        return False
    table = labels[crossing.ids]
    return depends_only_on(table, crossing.dim) and int(table.min()) < int(table.max())


def _equal(labels: Tensor, a: Tensor, b: Tensor) -> bool:
    real = (a >= 0) & (b >= 0)
    return bool((labels[a[real]] == labels[b[real]]).all())


def _decide_by_crossing(walk: Walk, labels: Tensor) -> bool:
    decided = torch.zeros(walk.atoms.count, dtype=torch.bool, device="cpu")  # in this pass, whose labels are older
    for crossing in walk.crossings:
        if bool((crossing.ids < 0).any()) or _decided(labels[crossing.ids], fixed_first=False):
            continue
        if not bool(decided[labels[crossing.ids]].any()):
            _tie_all_but(walk, crossing.ids, crossing.dim)
            decided[labels[crossing.ids]] = True
    return bool(decided.any())


def _decide_by_last(walk: Walk, labels: Tensor) -> bool:
    # nothing says where the units lie: by convention (batch, ..., heads, width) the last dimension holds them
    open_ones = [r for r in walk.rectangles if not _settled(walk, labels, r)]
    for rectangle in open_ones:
        _tie_all_but(walk, rectangle.ids, rectangle.ids.dim() - 1)
    return bool(open_ones)


def _settled(walk: Walk, labels: Tensor, rectangle: Rectangle) -> bool:
    if bool((rectangle.ids < 0).any()):
        walk.atoms.freeze(rectangle.ids, SPLIT_FIXED)
        return True
    return _decided(labels[rectangle.ids], rectangle.fixed_first)


def _decided(table: Tensor, fixed_first: bool) -> bool:
    return any(depends_only_on(table, d) for d in range(int(fixed_first), table.dim()))


def _tie_all_but(walk: Walk, ids: Tensor, dim: int) -> None:
    walk.atoms.join(ids, spread(line(ids, dim), ids.shape, dim))
