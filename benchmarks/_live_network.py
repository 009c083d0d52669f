"""The network that a Grower has at the moment, and what each unit owns of it.

What a Grower does not show, the present network, is read from its private attributes in `present` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import apical
from apical.resizing import Selection, TemplateMap, lookup
from apical.structure import ParamSlice


def present(grower: apical.Grower) -> Selection:
    """The network as it is now."""
    return grower._growing.selection


def live_positions(places: TemplateMap, now: Selection, part: ParamSlice, units: Tensor) -> Tensor:
    """Where present units lie along the dimension of a live tensor  # (units, positions per unit)"""
    index = places.index(part.tensor, now)
    positions = part.index[units]
    return torch.searchsorted(index[part.dim], positions) if part.dim in index else positions


def owned(grower: apical.Grower, group: int) -> Iterator[tuple[nn.Parameter, int, Callable[[Tensor], Tensor]]]:
    """The live parameters that hold a part of each unit of a group: parameter, dimension, and the positions there of
    given units, (units,) -> (units, positions per unit).
    """
    places, now = TemplateMap(grower.structure), present(grower)
    for part in grower.structure.groups[group].members:
        if grower.structure.tensors[part.tensor].is_parameter and places.present(part.tensor, now):
            parameter = lookup(grower.model, places.live_names(part.tensor, now)[0])
            assert isinstance(parameter, nn.Parameter)
            yield parameter, part.dim, lambda units, part=part: live_positions(places, now, part, units)
