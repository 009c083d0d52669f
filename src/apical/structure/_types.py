"""The records that a structure is made of: groups, blocks, what is frozen, and how tensors follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from apical.structure._cost import SizeAxis
from apical.structure._returned import Returned

Keep = Mapping[str, Sequence[int] | torch.Tensor]


@dataclass(frozen=True)
class ParamSlice:
    """The positions along one dimension of one parameter or buffer that belong to each unit of a group.

    Attributes:
        tensor: name of the parameter or buffer, as in ``model.state_dict()``.
        dim: the dimension that is indexed.
        positions: ``positions[u]`` lists the indices along ``dim`` that unit ``u`` owns (four gate rows for one
            LSTM unit, 49 columns for one channel that a flatten spreads over 7x7 pixels, else usually one).
    """

    tensor: str
    dim: int
    positions: tuple[tuple[int, ...], ...]

    def __repr__(self) -> str:
        return f"<ParamSlice: {self.tensor}, dimension {self.dim}, {len(self.positions)} units>"

    @cached_property
    def index(self) -> torch.Tensor:
        """``positions`` as an integer tensor  # (units, positions per unit)."""
        return torch.tensor(self.positions, dtype=torch.long, device="cpu")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels (or hidden units, or heads) that can be removed one by one, each with everything that depends on it.

    Attributes:
        name: unique name, the module path of the layer that first produces the channels.
        size: number of units in the template (the model as traced).
        role: ``"stream"`` if several producers write the channels through additions (a residual stream), else
            ``"inner"``.
        members: every slice of every parameter and buffer that belongs to the units.
        gate_site: the slices to multiply with a unit's gate, so that a gate of zero equals the unit's absence.
        readers: the members through which later layers read the units (input columns of their weights); while they
            are zero, a newborn unit leaves the function unchanged. Empty where units are read without a weight.
        exact: whether a gate of zero equals the unit's absence. False for channels under LayerNorm or RMSNorm (only
            with ``trace(…, streams="resize")``): the others are then normalised without it, and the outputs change.
        silent: whether a newborn unit can leave the function unchanged. False where it would never get a gradient
            then, as one that is multiplied with itself: it begins small.
    """

    name: str
    size: int
    role: Literal["inner", "stream"]
    members: tuple[ParamSlice, ...]
    gate_site: tuple[ParamSlice, ...]
    readers: tuple[ParamSlice, ...] = ()
    exact: bool = True
    silent: bool = True

    def __repr__(self) -> str:
        return f"<ChannelGroup {self.name!r}: {self.size} units, {self.role}, {len(self.members)} slices>"


@dataclass(frozen=True)
class Feeder:
    """A module that leaves with a block, since nothing but the block reads what it computes.

    Attributes:
        name: module path.
        returns: what its caller gets while it is left out; None only before the dry run.
    """

    name: str
    returns: Returned | None = None


@dataclass(frozen=True)
class SkippableBlock:
    """A residual block that becomes the identity when the tensors of its gate site are zero, or a residual branch that
    becomes zero.

    Attributes:
        name: module path of the block; of a branch that several modules compute in turn, the last of them.
        gate_site: names of the parameters to multiply with the block's gate (the last affine of each branch).
        returns: what the block's caller gets while it is left out; None for a block that is called with one tensor and
            gives it back, which ``nn.Identity`` does.
        feeders: the modules of the branch before the last, which leave with it.
    """

    name: str
    gate_site: tuple[str, ...]
    returns: Returned | None = None
    feeders: tuple[Feeder, ...] = ()

    @property
    def modules(self) -> dict[str, Returned | None]:
        """What is returned in the place of each module that leaves, by its path, in the order of the calls."""
        return {**{f.name: f.returns for f in self.feeders}, self.name: self.returns}


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be removed, and why.

    Attributes:
        name: module path of the layer that produces them.
        size: number of channels that stay, in all layers and directions of a module together.
        reason: why, in words for the model's author.
        where: the operation that the reason speaks of, if it does of one: module, and line of the model's code.
    """

    name: str
    size: int
    reason: str
    where: str = ""


def by_reason(frozen: Iterable[Frozen]) -> dict[str, list[Frozen]]:
    """The parts that each reason freezes, in their order.

    Example:
        >>> found = by_reason([Frozen("a", 4, "is read"), Frozen("b", 2, "is fixed"), Frozen("c", 8, "is read")])
        >>> {reason: [part.name for part in parts] for reason, parts in found.items()}
        {'is read': ['a', 'c'], 'is fixed': ['b']}
    """
    found: dict[str, list[Frozen]] = {}
    for part in frozen:
        found.setdefault(part.reason, []).append(part)
    return found


def reason_in_words(parts: Sequence[Frozen]) -> str:
    """The reason that parts share, and where the first of them meets it.

    Example:
        >>> reason_in_words([Frozen("a", 4, "is read", "in norm, at net.py:7"), Frozen("c", 8, "is read")])
        'is read (in norm, at net.py:7)'
    """
    return f"{parts[0].reason} ({parts[0].where})" if parts[0].where else parts[0].reason


def parts_in_words(parts: Sequence[Frozen], most: int = 3) -> str:
    """Frozen parts in a line: one by its name, several by their number and the first names.

    Example:
        >>> parts_in_words([Frozen("fc", 10, "")]), parts_in_words([Frozen(name, 10, "") for name in "abcd"])
        ('fc', '4 parts: a, b, c …')
    """
    names = ", ".join(part.name for part in parts[:most])
    return names if len(parts) == 1 else f"{len(parts)} parts: {names}{' …' if len(parts) > most else ''}"


@dataclass(frozen=True)
class TensorSpec:
    """A parameter or buffer of the template: its shape, whether it is a parameter, and its other names."""

    shape: tuple[int, ...]
    is_parameter: bool
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttributeAxis:
    """A module attribute that states a size (``out_channels``, ``num_heads``) and how the size follows the groups."""

    module: str
    attribute: str
    axis: SizeAxis


@dataclass(frozen=True)
class StateSlice:
    """Where a group's units lie in the recurrent state that a model returns and takes back.

    Attributes:
        leaf: which tensor of the state, counted in its flattened containers.
        group: name of the group.
        dim: the dimension along which the units lie.
        positions: ``positions[u]`` lists the indices along ``dim`` of unit ``u``.
    """

    leaf: int
    group: str
    dim: int
    positions: tuple[tuple[int, ...], ...]

    def __repr__(self) -> str:
        return f"<StateSlice: tensor {self.leaf}, dimension {self.dim}, {len(self.positions)} units of {self.group!r}>"
