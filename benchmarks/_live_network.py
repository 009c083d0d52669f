"""The network that a Grower has at the moment: its gates, where they sit, and what each unit owns.

What a Grower does not show, the scores within an epoch, the temperatures, the present network and whether growth has
ended, is read from its private attributes in `gates_of`, `present` and `has_ended` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import apical
from apical.resizing import Selection, TemplateMap, lookup
from apical.structure import ParamSlice


def gates_of(grower: apical.Grower) -> tuple[Tensor, Tensor]:
    """Scores and temperatures of all components as they are after the last step  # (entries,), (entries,)"""
    grower._updates.write_back()
    return grower.components.scores.clone(), grower._controller.beta.clone()


def present(grower: apical.Grower) -> Selection:
    """The network as it is now."""
    return grower._selection()


def has_ended(grower: apical.Grower) -> bool:
    """Whether the network has had its last restructuring."""
    return grower._controller.frozen


@dataclass(frozen=True)
class GateSite:
    """A live parameter that gates multiply.

    Attributes:
        name: of the parameter in the live model.
        dim: along which the gates differ.
        size: of that dimension.
        positions: along it, one for each gate  # (gates,)
        entries: the component of each gate  # (gates,)
    """

    name: str
    dim: int
    size: int
    positions: Tensor
    entries: Tensor

    def spread(self, gates: Tensor) -> Tensor:
        """The factor of each position, 1 where there is no gate  # (size,)"""
        return torch.ones(self.size, dtype=gates.dtype).index_copy(0, self.positions, gates[self.entries])


def gate_sites(grower: apical.Grower) -> list[GateSite]:
    """Every gate site of the present network: of the units of each group, and of each block."""
    places, now, components = TemplateMap(grower.structure), present(grower), grower.components
    found = []
    for i, group in enumerate(grower.structure.groups):
        kept = torch.tensor(now.keep[group.name])
        for part in group.gate_site:
            if places.present(part.tensor, now):
                positions = live_positions(places, now, part, kept)
                entries = (components.offsets[i] + kept)[:, None].expand(positions.shape)
                found.append(_site(grower, places, part.tensor, part.dim, positions.reshape(-1), entries.reshape(-1)))
    for i, block in enumerate(grower.structure.blocks):
        for name in block.gate_site if block.name not in now.skip else ():
            positions = torch.arange(places.shape(name, now)[0])
            entries = torch.full_like(positions, components.num_units + i)
            found.append(_site(grower, places, name, 0, positions, entries))
    return found


def _site(grower: apical.Grower, places: TemplateMap, tensor: str, dim: int, positions: Tensor,
          entries: Tensor) -> GateSite:  # fmt: skip
    name = places.live_names(tensor, present(grower))[0]
    return GateSite(name, dim, lookup(grower.model, name).shape[dim], positions, entries)


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


def across(values: Tensor, like: Tensor, dim: int) -> Tensor:
    """A vector shaped to multiply another tensor along one of its dimensions."""
    return values.to(like.device, like.dtype).reshape([-1 if d == dim else 1 for d in range(like.dim())])
