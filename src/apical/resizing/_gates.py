"""Gates at zero: what removal must be equal to."""

from __future__ import annotations

import torch
from torch import nn

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


def gated_copy(model: nn.Module, structure: Structure, keep: Keep, skip: tuple[str, ...] = ()) -> nn.Module:
    """A copy with these gates at zero (see `zero_gates_`) that shares all other parameters with the model."""
    written = {part.tensor for group in structure.groups if group.name in keep for part in group.gate_site}
    written.update(name for block in structure.blocks if block.name in skip for name in block.gate_site)
    gated = sharing_copy(model, written)
    zero_gates_(gated, structure, keep, skip)
    return gated
