"""How newborn units can begin: with readers of zero, else with gates of zero, else small. The dry run finds out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from apical.resizing._disagreement import chosen, keep_half
from apical.resizing._gates import gated_copy
from apical.resizing._install import lookup
from apical.resizing._seen import projection
from apical.resizing._testbed import Testbed, difference
from apical.structure import ChannelGroup, Structure


def with_births(structure: Structure, bed: Testbed) -> Structure:
    """The structure without readers that are not all that reads a group, and with ``silent`` decided.

    Args:
        structure: confirmed, so that a gate of zero equals the unit's absence.
        bed: what to compare on, in float32 if that is exact enough: what is heard here is no rounding error.
    """
    bed = bed.narrow or bed
    heard = {g.name for g in _heard(structure, bed, [g for g in structure.groups if _may_be_heard(g)])}
    groups = tuple(replace(g, readers=()) if g.name in heard else g for g in structure.groups)
    # while only readers are zero, what they read is not, and gives them a gradient
    stuck = _stuck(structure, bed, [g for g in groups if not g.readers])
    return replace(structure, groups=tuple(replace(g, silent=g.name not in stuck) for g in groups))


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


def _stuck(structure: Structure, bed: Testbed, groups: Sequence[ChannelGroup]) -> set[str]:
    """Names of the groups whose units get no gradient at all while their gates are zero, but do otherwise.

    A unit that is multiplied with itself (a tied decoder, a twin tower, a factorisation machine), or that a ReLU lets
    through, whose slope at 0 is 0.
    """
    if not groups:
        return set()
    keep, _ = chosen(groups, keep_half)
    gated = replace(structure, groups=tuple(groups))
    try:
        with gated_copy(bed.model, gated, keep) as model:
            asleep = {g.name for g in groups} - _awake(gated, bed, model, keep)
        with gated_copy(bed.model, gated, {}) as model:
            return asleep & _awake(gated, bed, model, keep) if asleep else set()
    except Exception:  # noqa: BLE001 (a forward pass through which no gradient can be taken, as in eval mode on a GPU)
        return set()


def _awake(structure: Structure, bed: Testbed, model: nn.Module, keep: dict[str, list[int]]) -> set[str]:
    """Names of the groups of which the units that are left out get a gradient from a weighted sum of all outputs."""
    names = {p.tensor for g in structure.groups for p in g.members if structure.tensors[p.tensor].is_parameter}
    parameters = {n: p.requires_grad_() for n in sorted(names) if (p := lookup(model, n)).is_floating_point()}
    total = projection(bed.example.run(model, grad=True))
    found: Sequence[Tensor | None] = ()
    if total is not None:
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    gradients = dict(zip(parameters, found, strict=False))
    awake = set()
    for group in structure.groups:
        gone = sorted(set(range(group.size)) - set(keep[group.name]))
        for part in group.members:
            gradient = gradients.get(part.tensor)
            if gradient is not None:
                index = part.index[gone].reshape(-1).to(gradient.device)
                if bool((gradient.index_select(part.dim, index) != 0).any()):
                    awake.add(group.name)
    return awake
