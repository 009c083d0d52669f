"""Tracing recurrent layers from which gates have left: as whole layers on a copy, whose structure then loses the rows.

Without some of its rows such a layer (`apical.models.GatedLSTM`) computes its steps one by one, which no rule follows;
with rows of zeros in their place it computes the same as one operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from apical.structure._structure import Structure
from apical.structure._types import ChannelGroup, Needs, ParamSlice

ROWS = ("weight_ih_l0", "weight_hh_l0", "row_units", "row_gates")  # what has a row for each gate
#: By the name of a tensor, the new place of each of its rows that is there.
Rows = Mapping[str, Mapping[int, int]]


def fill_gates_(model: nn.Module) -> dict[str, dict[int, int]]:
    """Give each layer rows of zeros for the gates that it lacks, and say which rows of which tensors were there."""
    found: dict[str, dict[int, int]] = {}
    for path, layer in model.named_modules():
        if not hasattr(layer, "fill_gates_"):
            continue
        own: Any = layer
        if own.row_units.shape[0] < len(own.gates) * own.units.shape[0]:
            there = {row: k for k, row in enumerate(own.fill_gates_().tolist())}
            found |= {f"{path}.{name}".lstrip("."): there for name in ROWS}
    return found


def without_absent(structure: Structure, rows: Rows) -> Structure | None:
    """The structure of the same model with these rows alone; None where a row that is gone belongs to no group.

    A row belongs to one unit of one group. So the groups of rows become smaller, and every axis is as many rows shorter
    as its groups have lost, which their sizes say.
    """
    kept = [_kept(group, rows) for group in structure.groups]
    lost = sum(group.size - len(units) for group, units in zip(structure.groups, kept, strict=True))
    if lost != sum(structure.tensors[name].shape[0] - len(there) for name, there in rows.items()) // len(ROWS):
        return None
    groups = [_cut(group, units, rows) for group, units in zip(structure.groups, kept, strict=True)]
    left = [index for index, group in enumerate(groups) if group.size]
    place = {index: k for k, index in enumerate(left)}  # of a group that has units

    def renumbered(terms: Any) -> Any:
        return tuple(replace(t, axes=tuple(replace(a, counts=_counts(a.counts, place)) for a in t.axes)) for t in terms)

    specs = structure.tensors.items()
    return replace(
        structure,
        groups=tuple(groups[index] for index in left),
        tensors={n: replace(t, shape=(len(rows[n]), *t.shape[1:])) if n in rows else t for n, t in specs},
        attributes=tuple(
            replace(a, axis=replace(a.axis, counts=_counts(a.axis.counts, place))) for a in structure.attributes
        ),
        terms=renumbered(structure.terms),
        param_axes=renumbered(structure.param_axes),
    )


def _counts(counts: tuple[tuple[int, int], ...], place: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
    return tuple((place[group], count) for group, count in counts if group in place)


def _kept(group: ChannelGroup, rows: Rows) -> list[int]:
    """The units of a group whose rows are there."""
    mine = [part for part in group.members if part.dim == 0 and part.tensor in rows]
    return [u for u in range(group.size) if all(p in rows[m.tensor] for m in mine for p in m.positions[u])]


def _cut(group: ChannelGroup, units: list[int], rows: Rows) -> ChannelGroup:
    def cut(parts: tuple[ParamSlice, ...]) -> tuple[ParamSlice, ...]:
        return tuple(replace(p, positions=tuple(_moved(p, u, rows) for u in units)) for p in parts)

    needs = group.needs and Needs(group.needs.group, tuple(group.needs.units[u] for u in units))
    return replace(
        group, size=len(units), members=cut(group.members), gate_site=cut(group.gate_site), readers=cut(group.readers),
        needs=needs,
    )  # fmt: skip


def _moved(part: ParamSlice, unit: int, rows: Rows) -> tuple[int, ...]:
    there = rows.get(part.tensor) if part.dim == 0 else None
    return part.positions[unit] if there is None else tuple(there[p] for p in part.positions[unit])
