"""Scores of units from the parameters that belong to them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from apical.baselines._subject import Rows, Subject
from apical.structure import ChannelGroup, ParamSlice, Structure


def spread(subject: Subject, group: ChannelGroup, values: Tensor) -> Tensor:
    """Scores of a group's present units at their places in the template; absent units have -inf  # (size,)"""
    full = torch.full((group.size,), -torch.inf, dtype=torch.float64)
    full[list(subject.selection.keep[group.name])] = values.cpu().double()
    return full


def live_rows(subject: Subject, group: ChannelGroup, parts: Iterable[ParamSlice]) -> list[Rows]:
    """The present parts of a group in some of its members, buffers left out."""
    return [rows for part in parts if (rows := subject.rows(group.name, part)) is not None]


def writers(structure: Structure, group: ChannelGroup) -> list[ParamSlice]:
    """The weights and biases that compute a group's channels: of convolutions, linear and recurrent layers, no norms.

    In a residual stream these are the rows of every layer that writes to it.
    """
    readers = {(part.tensor, part.dim) for part in group.readers}
    parts = [p for p in group.members if (p.tensor, p.dim) not in readers and structure.tensors[p.tensor].is_parameter]
    layers = {_module(part) for part in parts if len(structure.tensors[part.tensor].shape) > 1}
    return [part for part in parts if _module(part) in layers]


def _module(part: ParamSlice) -> str:
    return part.tensor.rpartition(".")[0]


def filter_norms(subject: Subject, order: float) -> dict[str, Tensor]:
    """Norm of the weights that compute each unit, Σ over the layers of a stream.

        s_u = Σ_layers ‖W_u‖_p

    Args:
        subject: the network.
        order: p, 1 for Li et al. 2017, 2 for He et al. 2018.
    """
    scores = {}
    for group in subject.structure.groups:
        rows_of_layers = live_rows(subject, group, writers(subject.structure, group))
        parts = [rows for rows in rows_of_layers if rows.tensor.dim() > 1] or live_rows(subject, group, group.members)
        norms = [torch.linalg.vector_norm(rows.of(rows.tensor).cpu().double(), order, dim=1) for rows in parts]
        scores[group.name] = spread(subject, group, torch.stack(norms).sum(0))
    return scores


def scales(subject: Subject, group: ChannelGroup) -> list[Rows]:
    """What scales a group's channels: the normalisations' γ where there are any, else the whole gate site."""
    site = live_rows(subject, group, group.gate_site)
    return [rows for rows in site if rows.tensor.dim() == 1 and rows.name.endswith("weight")] or site


def gate_products(subject: Subject) -> dict[str, Tensor]:
    """Derivative of the loss to each present unit's gate at 1, from gradients that backward left.

        p_u = Σ_gate site ⟨θ_u, ∂L/∂θ_u⟩

    Returns:
        p by group name, on the parameters' device, in float32 at least; groups without gradients are left out
        # (present units,)
    """
    found: dict[str, Tensor] = {}
    for group in subject.structure.groups:
        for rows in live_rows(subject, group, group.gate_site):
            if rows.tensor.grad is not None:
                wide = torch.promote_types(rows.tensor.dtype, torch.float32)
                products = (rows.of(rows.tensor).to(wide) * rows.of(rows.tensor.grad).to(wide)).sum(1)
                found[group.name] = found[group.name] + products if group.name in found else products
    return found
