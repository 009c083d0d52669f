"""Where a selection's elements lie in the template's tensors, and moving them in and out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apical.resizing._selection import Selection
from apical.structure import ParamSlice, Structure

TensorIndex = Mapping[int, Tensor]  # dimension -> kept indices in the template; dimensions not named are whole


class TemplateMap:
    """The members of every group by tensor, so that the index of a tensor is found without a search."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self._slices: dict[str, list[tuple[str, ParamSlice]]] = {}
        for group in structure.groups:
            for member in group.members:
                self._slices.setdefault(member.tensor, []).append((group.name, member))
        self._left_out: dict[frozenset[str], frozenset[str]] = {}

    def index(self, name: str, selection: Selection) -> dict[int, Tensor]:
        """The kept indices along each dimension of a tensor that is not whole."""
        masks: dict[int, Tensor] = {}
        shape = self.structure.tensors[name].shape
        for group, member in self._slices.get(name, ()):
            if len(selection.keep[group]) == len(member.positions):
                continue
            gone = selection.gone(group, len(member.positions))
            mask = masks.setdefault(member.dim, torch.ones(shape[member.dim], dtype=torch.bool, device="cpu"))
            mask[member.index[gone].reshape(-1)] = False
        return {dim: mask.nonzero().reshape(-1) for dim, mask in masks.items()}

    def positions(self, part: ParamSlice, group: str, selection: Selection) -> Tensor:
        """Where the present units of a group lie in the live tensor, along their dimension  # (units, positions)"""
        template = part.index[list(selection.keep[group])]
        kept = self.index(part.tensor, selection).get(part.dim)
        return template if kept is None else torch.searchsorted(kept, template)

    def present(self, name: str, selection: Selection) -> bool:
        """Whether any module that holds the tensor is outside the skipped blocks."""
        spec = self.structure.tensors[name]
        return any(not self.absent(n, selection) for n in (name, *spec.aliases))

    def live_names(self, name: str, selection: Selection) -> list[str]:
        """The names of the tensor that lie outside the skipped blocks."""
        spec = self.structure.tensors[name]
        return [n for n in (name, *spec.aliases) if not self.absent(n, selection)]

    def absent(self, path: str, selection: Selection) -> bool:
        """Whether a module or tensor lies in the skipped blocks."""
        if selection.skip not in self._left_out:
            self._left_out[selection.skip] = frozenset(self.structure.left_out(selection.skip))
        gone = self._left_out[selection.skip]
        while path and path not in gone:
            path = path.rpartition(".")[0]
        return path in gone

    def shape(self, name: str, selection: Selection) -> tuple[int, ...]:
        """The tensor's shape under a selection."""
        shape = list(self.structure.tensors[name].shape)
        for dim, kept in self.index(name, selection).items():
            shape[dim] = kept.numel()
        return tuple(shape)


def gather(full: Tensor, index: TensorIndex) -> Tensor:
    """The kept part of a template tensor, as a tensor of its own."""
    result = full
    for dim, kept in index.items():
        result = result.index_select(dim, kept.to(full.device, non_blocking=True))
    return result.clone() if result is full else result


def scatter_(full: Tensor, index: TensorIndex, part: Tensor) -> None:
    """Write the kept part back to its place in a template tensor."""
    if not index:
        full.copy_(part)
        return
    (dim, kept), *rest = index.items()
    kept = kept.to(full.device, non_blocking=True)
    if not rest:
        full.index_copy_(dim, kept, part.to(full.device, full.dtype))
        return
    inner = full.index_select(dim, kept)
    scatter_(inner, dict(rest), part)
    full.index_copy_(dim, kept, inner)


def same_index(a: TensorIndex, b: TensorIndex) -> bool:
    """Whether two indices keep the same elements."""
    return a.keys() == b.keys() and all(torch.equal(a[d], b[d]) for d in a)
