"""Gates at zero: what removal must be equal to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from apical.resizing._copying import sharing_copy
from apical.resizing._install import lookup
from apical.resizing._selection import check_selection
from apical.structure import Keep, Structure


@torch.no_grad()
def zero_gates_(model: nn.Module, structure: Structure, keep: Keep, skip: tuple[str, ...] = ()) -> None:
    """Zero the gate sites of the units and blocks that a selection leaves out, in a model of template size.

    The result computes what `resize_` with the same arguments computes, but for groups that are not ``exact``; tests
    and the tracer's dry run compare both.
    """
    selection = check_selection(structure, keep, skip)
    for group in structure.groups:
        gone = selection.gone(group.name, group.size)
        for part in group.gate_site:
            tensor = lookup(model, part.tensor)
            tensor.index_fill_(part.dim, part.index[gone].reshape(-1).to(tensor.device), 0)
    for block in structure.blocks:
        if block.name in selection.skip:
            for name in block.gate_site:
                lookup(model, name).zero_()


@contextmanager
def gated_copy(model: nn.Module, structure: Structure, keep: Keep, skip: tuple[str, ...] = ()) -> Iterator[nn.Module]:
    """A copy with these gates at zero (see `zero_gates_`) that shares all parameters with the model, while it is used.

    So the model's own gates are zero for that long, but for those of blocks, in whose place all share zeros; what was
    there is kept and put back.
    """
    selection = check_selection(structure, keep, skip)
    whole = {name for block in structure.blocks if block.name in selection.skip for name in block.gate_site}
    gated = sharing_copy(model, zeros=whole)
    kept: list[tuple[Tensor, int, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for group in structure.groups:
                gone = selection.gone(group.name, group.size)
                for part in group.gate_site if bool(gone.any()) else ():
                    if part.tensor not in whole:
                        tensor = lookup(gated, part.tensor).detach()
                        index = part.index[gone].reshape(-1).to(tensor.device)
                        kept.append((tensor, part.dim, index, tensor.index_select(part.dim, index)))
                        tensor.index_fill_(part.dim, index, 0)
        yield gated
    finally:
        for tensor, dim, index, values in reversed(kept):
            tensor.index_copy_(dim, index, values)
