"""Where a model's units lie in the recurrent state that it hands on from call to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from apical.structure._atoms import is_constant
from apical.structure._types import ChannelGroup, StateSlice
from apical.structure._values import AnyValue, Value
from apical.structure._walk import Walk


def state_slices(walk: Walk, groups: Sequence[ChannelGroup], leaves: Sequence[AnyValue | None]) -> list[StateSlice]:
    """A slice for every group whose units lie along a dimension of a state tensor.

    Args:
        walk: after the groups were assembled.
        groups: in whose units the states are described.
        leaves: the state's tensors, in the order of their flattened outputs; None for what is no tensor.
    """
    labels = walk.atoms.labels()
    unit_of = units_by_label(walk, groups, labels)
    found: list[StateSlice] = []
    for leaf, value in enumerate(leaves):
        dim = unit_dim(value)
        if dim is None:
            continue
        assert isinstance(value, Value)
        assert value.ids is not None
        line = value.ids
        for other in range(line.dim()):
            line = line if other == dim else line.narrow(other, 0, 1)
        own: dict[int, list[list[int]]] = {}
        for position, atom in enumerate(line.reshape(-1).tolist()):
            if atom >= 0 and int(labels[atom]) in unit_of:
                group, unit = unit_of[int(labels[atom])]
                own.setdefault(group, [[] for _ in range(groups[group].size)])[unit].append(position)
        found += [StateSlice(leaf, groups[g].name, dim, tuple(map(tuple, units))) for g, units in own.items()]
    return found


def unit_dim(value: AnyValue | None) -> int | None:
    """The one dimension of a tensor along which units lie; None if there is none or more than one."""
    if not isinstance(value, Value) or value.ids is None:
        return None
    dims = [d for d in range(value.ids.dim()) if not is_constant(value.ids, d)]
    return dims[0] if len(dims) == 1 else None


def units_by_label(walk: Walk, groups: Sequence[ChannelGroup], labels: Tensor) -> Mapping[int, tuple[int, int]]:
    """(group, unit) of the label of each unit."""
    found: dict[int, tuple[int, int]] = {}
    for number, group in enumerate(groups):
        member = group.members[0]
        own = labels[walk.axes[(member.tensor, member.dim)]]
        for unit, positions in enumerate(member.positions):
            found[int(own[positions[0]])] = (number, unit)
    return found
