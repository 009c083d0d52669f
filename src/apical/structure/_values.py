"""What tracing knows about each tensor of the forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from apical.structure._atoms import varying_dims

AxisKey = tuple[str, int]  # (parameter or buffer name, dimension)
MadeAxis = tuple[fx.Node, int]  # (node of a tensor that the forward pass creates, dimension from the end)
Zeros = frozenset[AxisKey] | None


@dataclass(frozen=True)
class Value:
    """A tensor of the forward pass.

    Attributes:
        shape: its shape at the example inputs.
        ids: the atom of each element, constant dimensions with stride 0; None if no element belongs to a channel.
        zeros: parameter axes whose zeroing makes the tensor zero at a unit (all of them together); None if nothing
            does, an empty set if it is zero anyway.
        flexible: made by the forward pass itself (``torch.zeros(...)``), so that it may take on any size.
        made: dimensions that have their size from one of a tensor so created, which may be used in several places.
    """

    shape: tuple[int, ...]
    ids: Tensor | None = None
    zeros: Zeros = None
    flexible: bool = False
    made: frozenset[MadeAxis] = frozenset()


@dataclass(frozen=True)
class ParamValue:
    """A parameter or buffer, possibly reshaped, permuted or sliced on its way.

    Attributes:
        name: canonical name.
        shape: shape of the view.
        coords: for each dimension of the parameter, the index there of each element of the view.
        whole: whether the view is the parameter itself.
        data: its values, where a buffer of integers or booleans may be used as an index; else None.
        vanishes: whether it is zero where the parameter is, as ``1 + weight`` is not.
    """

    name: str
    shape: tuple[int, ...]
    coords: tuple[Tensor, ...]
    whole: bool = True
    data: Tensor | None = None
    vanishes: bool = True


AnyValue = Value | ParamValue


def whole_parameter(name: str, shape: tuple[int, ...], data: Tensor | None = None) -> ParamValue:
    """The value of a parameter as it enters the graph."""
    coords = []
    for d, n in enumerate(shape):
        view = [1] * len(shape)
        view[d] = n
        coords.append(torch.arange(n, device="cpu").view(view).expand(shape))
    return ParamValue(name, shape, tuple(coords), True, data)


def param_axis_along(value: ParamValue, dim: int) -> tuple[int, Tensor] | None:
    """Which dimension of the parameter the view's dimension ``dim`` walks along, and at which indices.

    Returns:
        None if the view does not vary along ``dim``; else the parameter's dimension and the indices along it.

    Raises:
        LookupError: if the view's dimension mixes several dimensions of the parameter.
    """
    moving = [d for d, c in enumerate(value.coords) if dim in varying_dims(c)]
    if not moving:
        return None
    if len(moving) > 1 or varying_dims(value.coords[moving[0]]) != [dim]:
        raise LookupError(f"a view of {value.name} mixes its dimensions")
    coords = value.coords[moving[0]]
    for d in range(coords.dim()):
        if d != dim:
            coords = coords.narrow(d, 0, 1)
    return moving[0], coords.reshape(-1)
