"""Scores of units from the parameters that belong to them."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from apical.baselines._subject import Rows, Subject
from apical.structure import ChannelGroup, ParamSlice, Structure


def spread(subject: Subject, group: ChannelGroup, values: Tensor) -> Tensor:
    """Scores of a group's present units at their places in the template; absent units have -inf  # (size,)"""
    full = torch.full((group.size,), -torch.inf, dtype=torch.float64)
    full[list(subject.selection.keep[group.name])] = values.cpu().double()
    return full


def _writers(structure: Structure, group: ChannelGroup) -> list[ParamSlice]:
    """The weights and biases that compute a group's channels: of convolutions, linear and recurrent layers, no norms.

    In a residual stream these are the rows of every layer that writes to it.
    """
    readers = {(part.tensor, part.dim) for part in group.readers}
    parts = [p for p in group.members if (p.tensor, p.dim) not in readers and structure.tensors[p.tensor].is_parameter]
    layers = {_module(part) for part in parts if len(structure.tensors[part.tensor].shape) > 1}
    return [part for part in parts if _module(part) in layers]


def _module(part: ParamSlice) -> str:
    return part.tensor.rpartition(".")[0]


def filter_norms(subject: Subject) -> dict[str, Tensor]:
    """L1 norm of the weights that compute each unit, Σ over the layers of a stream: s_u = Σ_layers ‖W_u‖₁"""
    scores = {}
    for group in subject.structure.groups:
        rows_of_layers = subject.rows(group, _writers(subject.structure, group))
        parts = [rows for rows in rows_of_layers if rows.tensor.dim() > 1] or subject.rows(group, group.members)
        norms = [torch.linalg.vector_norm(rows.of(rows.tensor).cpu().double(), 1, dim=1) for rows in parts]
        scores[group.name] = spread(subject, group, torch.stack(norms).sum(0))
    return scores


def scales(subject: Subject, group: ChannelGroup) -> list[Rows]:
    """What scales a group's channels: the normalisations' γ where there are any, else the whole gate site."""
    site = subject.rows(group, group.gate_site)
    return [rows for rows in site if rows.tensor.dim() == 1 and rows.name.endswith("weight")] or site


def gate_products(subject: Subject) -> dict[str, Tensor]:
    """Derivative of the loss to each present unit's gate at 1, from gradients that backward left.

        p_u = Σ_gate site ⟨θ_u, ∂L/∂θ_u⟩

    Returns:
        p by group name, on the parameters' device, in float32 at least; groups without gradients are left out
        # (present units,)
    """
    found = {}
    for group in subject.structure.groups:
        site = [(rows, rows.tensor.grad) for rows in subject.rows(group, group.gate_site)]
        products = [_products(rows.of(rows.tensor), rows.of(grad)) for rows, grad in site if grad is not None]
        if products:
            found[group.name] = reduce(torch.add, products)
    return found


def _products(theta: Tensor, grad: Tensor) -> Tensor:
    """⟨θ_u, ∂L/∂θ_u⟩ of each unit, in float32 at least; both (units, elements)  # (units,)"""
    dtype = torch.promote_types(theta.dtype, torch.float32)
    return (theta.to(dtype) * grad.to(dtype)).sum(1)
