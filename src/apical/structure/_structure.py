"""The result of tracing a model, as pure data: groups, blocks, what is frozen, and what everything costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from functools import cached_property
from numbers import Integral
from typing import Any, TypeVar

from apical._checks import changed_since, in_per_cent, shown
from apical.errors import ResizeError
from apical.structure._cost import CostModel, CostTerm, SizeAxis, lies_in
from apical.structure._positions import checked_positions
from apical.structure._returned import Returned
from apical.structure._table import Table, as_html, as_text
from apical.structure._types import (
    AttributeAxis,
    ChannelGroup,
    Feeder,
    Frozen,
    ParamSlice,
    SkippableBlock,
    StateSlice,
    TensorSpec,
    by_reason,
    parts_in_words,
    reason_in_words,
)

Number = TypeVar("Number", int, float)
MAX_ROWS = 200  # groups that are printed


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
        except (KeyError, TypeError):  # a list cannot be a key
            raise KeyError(unknown("group", name, self._group_index)) from None

    @cached_property
    def _group_index(self) -> dict[str, ChannelGroup]:
        return {g.name: g for g in self.groups}

    @cached_property
    def _macs_model(self) -> CostModel:
        return CostModel(self.terms, [g.size for g in self.groups], [[*b.modules] for b in self.blocks])

    @cached_property
    def _params_model(self) -> CostModel:
        return CostModel(self.param_axes, [g.size for g in self.groups], [[*b.modules] for b in self.blocks])

    @cached_property
    def _group_order(self) -> dict[str, int]:
        return {g.name: i for i, g in enumerate(self.groups)}

    @cached_property
    def _block_order(self) -> dict[str, int]:
        return {b.name: i for i, b in enumerate(self.blocks)}

    def _price(self, model: CostModel, keep: Mapping[str, Any] | None, skip: Iterable[str]) -> int:
        sizes = model.full_sizes.copy()
        for name, count in self._counts(keep).items():
            sizes[self._group_order[name]] = count
        return model.price(sizes, [self._block_index(name) for name in block_names(skip)])

    def _counts(self, keep: Mapping[str, Any] | None) -> dict[str, int]:
        return {name: _count(self.group(name), kept) for name, kept in _kept(keep).items()}

    def _block_index(self, name: str) -> int:
        try:
            return self._block_order[name]
        except (KeyError, TypeError):
            raise KeyError(unknown("block", name, self._block_order)) from None

    def left_out(self, skip: Iterable[str]) -> tuple[str, ...]:
        """Paths of the modules that leave with these blocks; `KeyError` names the nearest block if one is unknown.

        Example:
            >>> import torch, apical
            >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            >>> apical.trace(layer, torch.randn(2, 5, 8)).left_out(["linear2"])
            ('linear1', 'linear2')
        """
        return tuple(path for name in block_names(skip) for path in self.blocks[self._block_index(name)].modules)

    def widths(self, keep: Mapping[str, Any] | None = None, skip: Iterable[str] = ()) -> dict[str, int]:
        """Number of units of each group that is there; a group that lies wholly in blocks that are left out is not.

        Args:
            keep: kept positions (or just their number) by group name; groups not named keep everything.
            skip: names of the blocks that are left out.

        Raises:
            KeyError: there is no group or block of that name; the nearest is named.
            TypeError: ``keep`` is no mapping of positions or numbers, or ``skip`` no list of names.
            ResizeError: a group does not have these positions, or so many units.

        Example:
            >>> import torch, apical
            >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
            >>> structure = apical.trace(layer, torch.randn(2, 5, 8))
            >>> structure.widths({"linear1": 4}), structure.widths(skip=["linear2"])
            ({'self_attn': 2, 'linear1': 4}, {'self_attn': 2})
        """
        gone = self.left_out(skip)

        def present(tensor: str) -> bool:
            names = (tensor, *self.tensors[tensor].aliases)
            return any(not any(lies_in(name, path) for path in gone) for name in names)

        chosen = self._counts(keep)
        return {
            group.name: chosen.get(group.name, group.size)
            for group in self.groups
            if not gone or any(present(tensor) for tensor in {part.tensor for part in group.members})
        }

    def macs(self, keep: Mapping[str, Any] | None = None, skip: Iterable[str] = ()) -> int:
        """Multiply-accumulates of one forward pass on the traced example inputs, batch included.

        One multiply-add counts as one. Convolutions (padding counted as computed, as torch's flop counter does),
        linear layers, matrix products, attention and recurrent layers are counted; elementwise operations,
        normalisation, pooling and embeddings are not. So the value is half of what
        `torch.utils.flop_counter.FlopCounterMode` counts on the resized model, except where the counter misses
        work that is counted here: fused scaled dot-product attention on the CPU, and the fast path that
        `torch.nn.TransformerEncoder` takes in eval mode without gradients; bilinear layers.

        Args:
            keep: kept positions (or just their number) by group name; groups not named keep everything.
            skip: names of the blocks that are left out.

        Raises:
            KeyError: there is no group or block of that name; the nearest is named.
            TypeError: ``keep`` is no mapping of positions or numbers, or ``skip`` no list of names.
            ResizeError: a group does not have these positions, or so many units.
        """
        return self._price(self._macs_model, keep, skip)

    def num_params(self, keep: Mapping[str, Any] | None = None, skip: Iterable[str] = ()) -> int:
        """Number of parameter elements, shared parameters counted once, for a choice as in `macs`."""
        return self._price(self._params_model, keep, skip)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable copy; `Structure.from_dict` reads it back."""
        return asdict(self) | {"tensors": {k: asdict(v) for k, v in self.tensors.items()}}

    @staticmethod
    @changed_since("the saved structure", "Trace the model again with apical.trace")
    def from_dict(data: Mapping[str, Any]) -> Structure:
        """The inverse of `to_dict`, also after a round trip through JSON.

        Raises:
            CheckpointError: ``data`` is something else.
        """

        def slices(items: Any) -> tuple[ParamSlice, ...]:
            return tuple(ParamSlice(s["tensor"], s["dim"], tuple(tuple(p) for p in s["positions"])) for s in items)

        def returns(item: Mapping[str, Any]) -> Returned | None:
            return Returned.from_dict(item["returns"]) if item.get("returns") else None

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
                    g.get("silent", True),
                )
                for g in data["groups"]
            ),
            blocks=tuple(
                SkippableBlock(
                    b["name"],
                    tuple(b["gate_site"]),
                    returns(b),
                    tuple(Feeder(f["name"], returns(f)) for f in b.get("feeders", ())),
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
            f"<Structure: {_parts(self)}, {len(self.frozen)} frozen; {self.macs():,} MACs, "
            f"{self.num_params():,} parameters; print() shows the table>"
        )

    def __str__(self) -> str:
        return as_text(_headline(self), _tables(self), self.notes)

    def _repr_html_(self) -> str:
        return as_html(_headline(self), _tables(self), self.notes)


def _kept(keep: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if keep is not None and not isinstance(keep, Mapping):
        raise TypeError(
            f"keep must give, by group name, kept positions or their number, as in {{'conv1': 8}}; got {shown(keep)}"
        )
    return keep or {}


def block_names(skip: Iterable[str]) -> list[str]:
    """The names in ``skip``; one name alone stands for itself, not for its letters."""
    if not isinstance(skip, Iterable):
        raise TypeError(f"skip must be a list of block names, as in ['layer1.0']; got {shown(skip)}")
    return [skip] if isinstance(skip, str) else list(skip)


def _count(group: ChannelGroup, kept: Any) -> int:
    """How many units of a group are kept, told as positions or as their number (0 prices the rest)."""
    if not isinstance(kept, bool) and isinstance(kept, Integral):
        number = int(kept)
        if not 0 <= number <= group.size:
            raise ResizeError(f"group {group.name!r} has {group.size} units, got {shown(number)} of them to keep")
        return number
    if isinstance(kept, Sized) and not isinstance(kept, str) and getattr(kept, "ndim", None) != 0:
        found = checked_positions(group, kept)
        if isinstance(found, str):
            raise ResizeError(f"{found}; keep gives positions, or their number")
        return len(found)
    raise TypeError(f"keep must give positions or their number for a group, got {shown(kept)}")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """What is said of a group or block that a structure does not have."""
    names = list(known)
    near = get_close_matches(str(name), names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; the {kind}s are {', '.join(names) or '(none)'}"
    return f"no {kind} is called {name!r}{hint}"


def _parts(structure: Structure) -> str:
    groups, blocks = len(structure.groups), len(structure.blocks)
    return f"{groups} channel group{'s' * (groups != 1)}, {blocks} skippable block{'s' * (blocks != 1)}"


def _headline(structure: Structure) -> str:
    macs, params = structure.macs(), structure.num_params()
    least = structure.macs({g.name: 1 for g in structure.groups}, [b.name for b in structure.blocks])
    cost = f"{macs:,} MACs, {params:,} parameters; down to {least:,} MACs ({in_per_cent(least, macs)})"
    return f"{_parts(structure)}; {cost}"


def _tables(structure: Structure) -> list[Table]:
    macs = structure.macs()
    groups = [
        (
            g.name,
            g.role if g.exact else f"{g.role} (not exact)",
            str(g.size),
            in_per_cent(macs - structure.macs({g.name: 1}), macs),
            _sites(g.gate_site),
        )
        for g in structure.groups[:MAX_ROWS]
    ]
    blocks = [
        (b.name, in_per_cent(macs - structure.macs(skip=[b.name]), macs), ", ".join(b.gate_site))
        for b in structure.blocks
    ]
    frozen = [
        (parts_in_words(parts), ", ".join(dict.fromkeys(str(part.size) for part in parts)), reason_in_words(parts))
        for parts in by_reason(structure.frozen).values()
    ]
    return [
        Table("groups", ("group", "role", "size", "MACs", "gate site"), groups, len(structure.groups)),
        Table("blocks", ("block", "MACs", "gate site"), blocks, len(blocks)),
        Table(f"reasons, of {len(structure.frozen)} frozen parts", ("frozen", "size", "why"), frozen, len(frozen)),
    ]


def _sites(slices: Sequence[ParamSlice]) -> str:
    names = Counter(s.tensor for s in slices)
    first = list(names)[:3]
    return ", ".join(first) + (f" +{len(names) - 3}" if len(names) > 3 else "")
