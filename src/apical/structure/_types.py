"""The result of tracing a model, as pure data: groups, blocks, what is frozen, and what everything costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

import torch

from apical.structure._cost import CostModel, CostTerm, SizeAxis
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
    """

    name: str
    size: int
    role: Literal["inner", "stream"]
    members: tuple[ParamSlice, ...]
    gate_site: tuple[ParamSlice, ...]
    readers: tuple[ParamSlice, ...] = ()
    exact: bool = True

    def __repr__(self) -> str:
        return f"<ChannelGroup {self.name!r}: {self.size} units, {self.role}, {len(self.members)} slices>"


@dataclass(frozen=True)
class SkippableBlock:
    """A residual block that becomes the identity when the tensors of its gate site are zero, or a residual branch that
    becomes zero.

    Attributes:
        name: module path of the block.
        gate_site: names of the parameters to multiply with the block's gate (the last affine of each branch).
        returns: what the block's caller gets while it is left out; None for a block that is called with one tensor and
            gives it back, which ``nn.Identity`` does.
    """

    name: str
    gate_site: tuple[str, ...]
    returns: Returned | None = None


@dataclass(frozen=True)
class Frozen:
    """Channels that cannot be removed, and why.

    Attributes:
        name: module path of the layer that produces them.
        size: number of channels that stay.
        reason: why, in words for the model's author.
    """

    name: str
    size: int
    reason: str


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


@dataclass(frozen=True)
class Structure:
    """What can be removed from a model, what cannot, and what each choice costs. Made by `apical.trace`.

    Sizes and positions count in the *template*: the model as it was traced.

    Attributes:
        groups: channel groups, in the order in which the forward pass produces them.
        blocks: residual blocks that can be left out.
        frozen: what cannot be removed, with module path and reason.
        tensors: every parameter and buffer of the template.
        attributes: module attributes that follow the sizes of the groups.
        terms: multiply-accumulates of each operation as products of group sizes.
        param_axes: for each parameter, its dimensions as functions of group sizes.
        notes: remarks of the tracer (operations without a rule, for example).
        states: where units lie in the recurrent state that the model hands on.
    """

    groups: tuple[ChannelGroup, ...]
    blocks: tuple[SkippableBlock, ...]
    frozen: tuple[Frozen, ...]
    tensors: Mapping[str, TensorSpec]
    attributes: tuple[AttributeAxis, ...] = ()
    terms: tuple[CostTerm, ...] = ()
    param_axes: tuple[CostTerm, ...] = ()
    notes: tuple[str, ...] = field(default=())
    states: tuple[StateSlice, ...] = ()

    def group(self, name: str) -> ChannelGroup:
        """The group called ``name``; `KeyError` names the nearest, or all, if there is none."""
        try:
            return self._group_index[name]
        except KeyError:
            raise KeyError(_unknown("group", name, self._group_index)) from None

    @cached_property
    def _group_index(self) -> dict[str, ChannelGroup]:
        return {g.name: g for g in self.groups}

    @cached_property
    def _macs_model(self) -> CostModel:
        return CostModel(self.terms, [g.size for g in self.groups], [b.name for b in self.blocks])

    @cached_property
    def _params_model(self) -> CostModel:
        return CostModel(self.param_axes, [g.size for g in self.groups], [b.name for b in self.blocks])

    @cached_property
    def _group_order(self) -> dict[str, int]:
        return {g.name: i for i, g in enumerate(self.groups)}

    @cached_property
    def _block_order(self) -> dict[str, int]:
        return {b.name: i for i, b in enumerate(self.blocks)}

    def _price(self, model: CostModel, keep: Mapping[str, Any] | None, skip: Iterable[str]) -> int:
        sizes = model.full_sizes.copy()
        for name, kept in (keep or {}).items():
            if name not in self._group_order:
                self.group(name)
            sizes[self._group_order[name]] = int(kept) if isinstance(kept, Integral) else len(kept)
        skipped = [self._block_order[name] if name in self._block_order else self._no_block(name) for name in skip]
        return model.price(sizes, skipped)

    def _no_block(self, name: str) -> int:
        raise KeyError(_unknown("block", name, self._block_order))

    def macs(self, keep: Mapping[str, Any] | None = None, skip: Iterable[str] = ()) -> int:
        """Multiply-accumulates of one forward pass on the traced example inputs, batch included.

        One multiply-add counts as one. Convolutions (padding counted as computed, as torch's flop counter does),
        linear layers, matrix products, attention and recurrent layers are counted; elementwise operations,
        normalisation, pooling and embeddings are not. So the value is half of what
        `torch.utils.flop_counter.FlopCounterMode` counts on the resized model, except where the counter misses
        work that is counted here: fused scaled dot-product attention on the CPU, and the fast path that
        `torch.nn.TransformerEncoder` takes in eval mode without gradients.

        Args:
            keep: kept positions (or just their number) by group name; groups not named keep everything.
            skip: names of the blocks that are left out.
        """
        return self._price(self._macs_model, keep, skip)

    def num_params(self, keep: Mapping[str, Any] | None = None, skip: Iterable[str] = ()) -> int:
        """Number of parameter elements, shared parameters counted once, for a choice of ``keep`` and ``skip``."""
        return self._price(self._params_model, keep, skip)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable copy; `Structure.from_dict` reads it back."""
        return asdict(self) | {"tensors": {k: asdict(v) for k, v in self.tensors.items()}}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Structure:
        """The inverse of `to_dict`, also after a round trip through JSON."""

        def slices(items: Any) -> tuple[ParamSlice, ...]:
            return tuple(ParamSlice(s["tensor"], s["dim"], tuple(tuple(p) for p in s["positions"])) for s in items)

        return Structure(
            groups=tuple(
                ChannelGroup(
                    g["name"],
                    g["size"],
                    g["role"],
                    slices(g["members"]),
                    slices(g["gate_site"]),
                    slices(g["readers"]),
                    g.get("exact", True),
                )
                for g in data["groups"]
            ),
            blocks=tuple(
                SkippableBlock(
                    b["name"], tuple(b["gate_site"]), Returned.from_dict(b["returns"]) if b.get("returns") else None
                )
                for b in data["blocks"]
            ),
            frozen=tuple(Frozen(**f) for f in data["frozen"]),
            tensors={
                k: TensorSpec(tuple(t["shape"]), t["is_parameter"], tuple(t["aliases"]))
                for k, t in data["tensors"].items()
            },
            attributes=tuple(
                AttributeAxis(a["module"], a["attribute"], SizeAxis.from_dict(a["axis"])) for a in data["attributes"]
            ),
            terms=tuple(CostTerm.from_dict(t) for t in data["terms"]),
            param_axes=tuple(CostTerm.from_dict(t) for t in data["param_axes"]),
            notes=tuple(data["notes"]),
            states=tuple(
                StateSlice(s["leaf"], s["group"], s["dim"], tuple(tuple(p) for p in s["positions"]))
                for s in data.get("states", ())
            ),
        )

    def __repr__(self) -> str:
        return (
            f"<Structure: {len(self.groups)} channel groups, {len(self.blocks)} skippable blocks, {len(self.frozen)} "
            f"frozen; {self.macs():,} MACs, {self.num_params():,} parameters; print() shows the table>"
        )

    def __str__(self) -> str:
        from apical.structure._table import structure_table

        return structure_table(self)

    def _repr_html_(self) -> str:
        from apical.structure._table import structure_html

        return structure_html(self)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; the {kind}s are {', '.join(names) or '(none)'}"
    return f"no {kind} is called {name!r}{hint}"
