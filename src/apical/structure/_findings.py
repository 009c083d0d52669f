"""What a walk writes down, and the price of operations that it cannot follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from apical.structure._values import AxisKey


@dataclass(frozen=True)
class Reading:
    """Channels that an operation sums over, and the axes at which a gate of zero hides them from it."""

    ids: Tensor
    site: frozenset[AxisKey]


@dataclass(frozen=True)
class Rectangle:
    """Ids over several dimensions of one tensor: what is kept must be a product of positions per dimension.

    Attributes:
        ids: the atoms, one dimension per dimension that varies or is split.
        module: path of the module whose forward pass makes the view.
        fixed_first: whether the first dimension counts parts, whose number is in the code.
    """

    ids: Tensor
    module: str
    fixed_first: bool


@dataclass(frozen=True)
class Crossing:
    """Channels along one dimension that meet ids over several: they are joined only if what is kept follows that one.

    A learned scale per position of the head width meets ids over (head, width): where heads are the units, it stays
    whole; where positions of the width are, it loses theirs.

    Attributes:
        ids: the atoms, one dimension per dimension that varies.
        dim: the dimension of ``ids`` along which the others lie.
        vector: the atoms that meet them there  # (size of dim,)
        node: the operation in which they meet.
    """

    ids: Tensor
    dim: int
    vector: Tensor
    node: fx.Node


@dataclass(frozen=True)
class RawTerm:
    """Multiply-accumulates before groups are known: integers and id vectors as factors."""

    coefficient: int
    axes: tuple[Tensor, ...]
    module: str


def counted_macs(node: fx.Node) -> int:
    """Multiply-accumulates of an operation that was not followed, by torch's own counter on fake tensors."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return 0
    args: Any = fx.node.map_arg(node.args, lambda n: n.meta["val"])
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: n.meta["val"])
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            node.target(*args, **kwargs)
    except Exception:  # noqa: BLE001 - an operation that cannot run on fake tensors is not counted
        return 0
    return int(counter.get_total_flops()) // 2
