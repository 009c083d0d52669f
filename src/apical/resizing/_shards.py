"""Tensors that are divided among processes (DTensors, as ``fully_shard`` makes them), one at a time.

What is not divided passes through all of these functions as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of it only."""
    return hasattr(tensor, "device_mesh")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process; they must call this together."""
    divided: Any = tensor
    return divided.full_tensor() if is_sharded(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, which shares its memory."""
    divided: Any = tensor
    return divided.to_local() if is_sharded(tensor) else tensor


def alike(full: Tensor, reference: Tensor | None) -> Tensor:
    """A tensor that every process holds whole, divided as another one is. Nothing is sent.

    Args:
        full: the same on every process.
        reference: of any shape; where it is not sharded, or None, ``full`` is returned.
    """
    if reference is None or not is_sharded(reference) or is_sharded(full):
        return full
    from torch.distributed.tensor import DTensor, distribute_tensor  # slow to import, and few need it

    like: Any = reference
    full = full.contiguous()
    parts = distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
    # a part of its own: a view would keep all of `full` alive
    return DTensor.from_local(
        parts.to_local().clone(), like.device_mesh, like.placements, run_check=False, shape=full.shape,
        stride=full.stride(),
    )  # fmt: skip


def sharded_dims(tensor: Tensor) -> dict[int, int]:
    """Dimension of the tensor by dimension of the mesh along which it is divided."""
    divided: Any = tensor
    if not is_sharded(tensor):
        return {}
    return {i: placement.dim for i, placement in enumerate(divided.placements) if placement.is_shard()}


def start_of_part(tensor: Tensor, dim: int) -> int:
    """Where along a dimension this process' part begins; 0 where the tensor is not divided along it."""
    divided: Any = tensor
    start, size = 0, tensor.shape[dim] if tensor.dim() else 1
    for mesh_dim, along in sharded_dims(tensor).items():
        if along == dim:
            chunk = -(-size // divided.device_mesh.size(mesh_dim))  # as torch.chunk divides
            rank = divided.device_mesh.get_local_rank(mesh_dim)
            start += min(rank * chunk, size)
            size = max(0, min(chunk, size - rank * chunk))
    return start


@torch.no_grad()
def fill_(tensor: Tensor, dim: int, index: Tensor, value: float) -> None:
    """``tensor.index_fill_(dim, index, value)``, also on a divided tensor, whose parts are filled where they lie."""
    part, index = _own_index(tensor, dim, index)
    part.index_fill_(dim, index, value)


@torch.no_grad()
def scale_(tensor: Tensor, dim: int, index: Tensor, factor: float) -> None:
    """Multiply what lies at these positions of a tensor along a dimension, as `fill_` fills it."""
    part, index = _own_index(tensor, dim, index)
    part.index_copy_(dim, index, part.index_select(dim, index) * factor)


def _own_index(tensor: Tensor, dim: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """This process' part of a tensor, and where in it those of some positions along a dimension are that it has."""
    part, start = own_part(tensor), start_of_part(tensor, dim)
    index = index.to(part.device) - start
    if is_sharded(tensor):
        index = index[(index >= 0) & (index < part.shape[dim])]
    return part, index


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Of each tensor, whether all of it is; the same answer on every process."""
    if not tensors:
        return []
    found = torch.stack([own_part(t).isfinite().all() for t in tensors]).to(torch.int32)
    divided: Any = next((t for t in tensors if is_sharded(t)), None)
    for mesh_dim in range(divided.device_mesh.ndim if divided is not None else 0):
        dist.all_reduce(found, dist.ReduceOp.MIN, group=divided.device_mesh.get_group(mesh_dim))
    return [bool(f) for f in found.tolist()]


def sum_over_parts_(total: Tensor, like: Tensor) -> None:
    """Add up what the processes that share a tensor have found of it, each on its part."""
    divided: Any = like
    for mesh_dim in sharded_dims(like):
        dist.all_reduce(total, group=divided.device_mesh.get_group(mesh_dim))
