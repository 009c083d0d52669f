"""Rules for reductions, softmax, pooling and resampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apical.structure._atoms import is_constant, spread, varying_dims
from apical.structure._registry import op_name, register_op
from apical.structure._rules_elementwise import FIXED_SIZE, join_operands, union_zeros
from apical.structure._values import ParamValue, Value
from apical.structure._walk import Walk

ADDS_UP = frozenset(
    {"sum", "linalg_vector_norm", "norm", "cosine_similarity", "cdist"}
)  # a zero channel does not change the result
AVERAGES = frozenset({"mean", "var", "std", "var_mean", "std_mean"})  # the statistics of a norm that is written out
KEEPS_ZERO = ADDS_UP | AVERAGES | {"amax", "amin", "max", "min", "prod", "median"}


def _reduced_dims(x: Value, dims: Any) -> list[int]:
    if dims is None or dims == []:
        return list(range(len(x.shape)))
    return sorted(d % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims))


def _reduce(walk: Walk, x: Any, dims: list[int], keepdim: bool, name: str = "") -> Any:
    name = name or op_name(walk.target).split("::")[-1]
    if isinstance(x, ParamValue):
        return _norm_of_weight(walk, x, name, dims)
    for d in dims:
        x = walk.tied_along(x, d)
    zeros = x.zeros if name in KEEPS_ZERO else None
    ids = x.ids
    if ids is not None and any(d in dims for d in varying_dims(ids)):
        _reduce_channels(walk, x, name)
        ids = None
        zeros = None
    for d in sorted(dims, reverse=True):
        if ids is not None:
            ids = ids.narrow(d, 0, 1) if keepdim else ids.select(d, 0)
    shapes = walk.out_shapes
    results = tuple(Value(s, ids, zeros) for s in shapes)
    return results if isinstance(walk.current.meta.get("val"), (tuple, list)) else results[0]


def _norm_of_weight(walk: Walk, x: ParamValue, name: str, dims: list[int]) -> Any:
    """What divides a weight that is normed in the forward pass, as the classes of a cosine classifier are."""
    over = {d: coords for d, coords in enumerate(x.coords) if set(varying_dims(coords)) & set(dims)}
    if any(set(varying_dims(coords)) - set(dims) for coords in over.values()):
        raise LookupError(f"a view of {x.name} mixes its dimensions")
    if any(len(coords.unique()) != walk.tensor(x.name).shape[d] for d, coords in over.items()):
        walk.freeze_value(x, f"{name} over a part of a weight")
        return walk.fixed(walk.current)
    largest = name in ("amax", "max") and op_name(walk.current.all_input_nodes[0].target) == "aten::abs"
    for d in over:
        if name in ADDS_UP or largest:
            walk.couple(x.name, d)
        else:
            walk.average_weight(x.name, d, name)
    first = tuple(slice(1) if d in dims else slice(None) for d in range(len(x.shape)))
    coords = tuple(c[first].reshape(walk.out_shape) for c in x.coords)
    result = replace(x, shape=walk.out_shape, coords=coords, whole=False, data=None, vanishes=False)
    return (result,) * len(walk.out_shapes) if isinstance(walk.current.meta.get("val"), (tuple, list)) else result


def _reduce_channels(walk: Walk, x: Value, name: str) -> None:
    if name in ADDS_UP and x.ids is not None and len(varying_dims(x.ids)) == 1:
        ids = walk.channel_ids(x, varying_dims(x.ids)[0])
        assert ids is not None
        walk.read(ids, x.zeros, None, f"{name} over channels that no parameter can hide")
    elif name in AVERAGES:
        walk.average(x, f"{name} over channels: without one of them the result changes")
    else:
        walk.freeze_value(x, f"{name} over channels: without one of them the result changes")


@register_op("aten::mean", "aten::sum", "aten::amax", "aten::amin", "aten::prod", "aten::logsumexp", "aten::std",
             "aten::var", "aten::var_mean", "aten::std_mean", "aten::any", "aten::all")  # fmt: skip
def reduction(walk: Walk, x: Any, dims: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Reductions that name their dimensions right after the tensor."""
    if isinstance(dims, bool):  # var(x, unbiased)
        dims, args = None, ()
    keepdim = bool(kwargs.get("keepdim", _first_bool(args)))
    return _reduce(walk, x, _reduced_dims(x, dims), keepdim)


@register_op("aten::max", "aten::min", "aten::median", "aten::argmax", "aten::argmin")
def extremum(walk: Walk, x: Any, dim: Any = None, keepdim: bool = False, *args: Any) -> Any:
    """Extrema over one dimension (values and indices), over everything, or of two tensors."""
    if isinstance(dim, (Value, ParamValue)):
        raise LookupError("use maximum or minimum")
    return _reduce(walk, x, _reduced_dims(x, dim), keepdim)


@register_op("aten::linalg_vector_norm", "aten::norm")
def vector_norm(walk: Walk, x: Any, order: Any = 2, dims: Any = None, keepdim: bool = False, **kwargs: Any) -> Any:
    """p-norms: a zero adds nothing for p > 0."""
    if not isinstance(order, (int, float)) or order <= 0:
        raise LookupError("a norm of order 0 or less")
    return _reduce(walk, x, _reduced_dims(x, dims), keepdim)


def _side_by_side(walk: Walk, a: Any, b: Any) -> Value:
    """Two results that are compared position by position."""
    if not isinstance(a, Value) or not isinstance(b, Value):
        raise LookupError("a parameter in the place of an activation")
    shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
    ids = join_operands(walk, [a, b], shape=shape)
    assert not isinstance(ids, ParamValue)
    return Value(shape, ids, union_zeros([a.zeros, b.zeros]))


@register_op("aten::mse_loss", "aten::l1_loss", "aten::smooth_l1_loss", "aten::huber_loss")
def loss(walk: Walk, a: Any, b: Any, reduction: int = 1, *args: Any) -> Any:
    """A loss in the forward pass, such as that of a codebook: what differs, position by position, and its mean."""
    both = _side_by_side(walk, a, b)
    if reduction == 0:
        return both
    return _reduce(walk, both, _reduced_dims(both, None), False, "mean" if reduction == 1 else "sum")


@register_op("aten::cosine_similarity")
def cosine_similarity(walk: Walk, a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    """A product and two norms over one dimension: a channel that is zero in both adds nothing."""
    both = _side_by_side(walk, a, b)
    return _reduce(walk, both, _reduced_dims(both, dim), False)


@register_op("aten::cdist")
def cdist(walk: Walk, a: Any, b: Any, p: float = 2.0, mode: Any = None) -> Any:
    """Distances between the rows of two matrices: a channel that is zero in both adds nothing."""
    if not isinstance(a, Value) or not isinstance(b, Value) or p <= 0:
        raise LookupError("a parameter in the place of an activation, or p of 0")
    ours, theirs = walk.channel_ids(a, -1), walk.channel_ids(b, -1)
    if ours is None or theirs is None:
        walk.freeze_value(a, FIXED_SIZE)
        walk.freeze_value(b, FIXED_SIZE)
        return walk.fixed(walk.current)
    walk.meet(ours, theirs, FIXED_SIZE)
    walk.read(ours, union_zeros([a.zeros, b.zeros]), None, "distances of channels that no parameter can hide")
    return walk.fixed(walk.current)


def _first_bool(args: tuple[Any, ...]) -> bool:
    return next((a for a in args if isinstance(a, bool)), False)


@register_op("aten::softmax", "aten::log_softmax", "aten::_softmax", "aten::cumsum", "aten::cumprod",
             "aten::logcumsumexp", "aten::cummax", "aten::cummin", "aten::sort", "aten::topk", "aten::glu")  # fmt: skip
def along_dim(walk: Walk, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations that mix the positions of one dimension, which must not be the channels."""
    name = op_name(walk.target).split("::")[-1]
    dim = kwargs.get("dim", args[-1] if name == "glu" and args else next((a for a in args), -1))
    if name == "topk":
        dim = args[1] if len(args) > 1 else kwargs.get("dim", -1)
    if not isinstance(x, Value) or x.ids is None:
        return walk.fixed(walk.current)
    dim = (dim if isinstance(dim, int) else -1) % len(x.shape)
    x = walk.tied_along(x, dim)
    assert x.ids is not None
    if not is_constant(x.ids, dim):
        if name == "glu":
            return _glu(walk, x, dim)
        walk.freeze_value(x, f"{name} over channels: without one of them the others change")
        return walk.fixed(walk.current)
    results = tuple(
        Value(s, _fit(x.ids, s), x.zeros if name in ("cumsum", "cumprod") else None) for s in walk.out_shapes
    )
    return results if isinstance(walk.current.meta.get("val"), (tuple, list)) else results[0]


def _glu(walk: Walk, x: Value, dim: int) -> Value:
    ids = walk.channel_ids(x, dim)
    assert ids is not None
    table = ids.view(2, -1)
    walk.meet(table[0], table[1], "one half of a gated linear unit is fixed")
    return Value(walk.out_shape, spread(table[0], walk.out_shape, dim), x.zeros)


def _fit(ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    for d, n in enumerate(shape):
        if ids.shape[d] != n:
            ids = ids.narrow(d, 0, 1).expand(*ids.shape[:d], n, *ids.shape[d + 1 :])
    return ids


POOLING = {
    f"aten::{name}{n}d": n
    for n in (1, 2, 3)
    for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool")
}
RESAMPLING = {
    "aten::upsample_nearest1d": 1, "aten::upsample_nearest2d": 2, "aten::upsample_nearest3d": 3,
    "aten::upsample_linear1d": 1, "aten::upsample_bilinear2d": 2, "aten::upsample_bicubic2d": 2,
    "aten::upsample_trilinear3d": 3, "aten::_upsample_bilinear2d_aa": 2, "aten::_upsample_bicubic2d_aa": 2,
    "aten::_upsample_nearest_exact1d": 1, "aten::_upsample_nearest_exact2d": 2, "aten::grid_sampler": 2,
    "aten::grid_sampler_2d": 2, "aten::max_pool2d_with_indices": 2, "aten::reflection_pad2d": 2,
    "aten::replication_pad2d": 2, "aten::reflection_pad1d": 1, "aten::replication_pad1d": 1,
}  # fmt: skip
SPATIAL = POOLING | RESAMPLING


@register_op(*SPATIAL)
def per_channel(walk: Walk, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations on the last one to three dimensions that treat every channel alike and keep zeros."""
    dim = len(x.shape) - SPATIAL[op_name(walk.target)] - 1
    if isinstance(x, ParamValue):  # positions that are learned at one size of images and used at another
        x = walk.as_channels(x, dim)
    ids = x.ids
    for d in range(dim + 1, len(x.shape)):
        if ids is not None and not is_constant(ids, d):
            ids = walk.table(x, range(dim + 1))
            assert ids is not None
            ids = ids.reshape(*ids.shape, *[1] * (len(x.shape) - dim - 1))
            break
    first = (slice(None),) * (dim + 1) + (slice(1),) * (len(x.shape) - dim - 1)
    results = tuple(Value(s, None if ids is None else ids[first].expand(s), x.zeros) for s in walk.out_shapes)
    return results if isinstance(walk.current.meta.get("val"), (tuple, list)) else results[0]


FOURIER = "a Fourier transform mixes its positions"


@register_op(*(f"aten::fft_{kind}{rank}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
               for rank in ("", "2", "n")))  # fmt: skip
def fourier(walk: Walk, x: Any, size: Any = None, dim: Any = None, norm: Any = None) -> Value:
    """A linear map along some dimensions: units lie along the others, and what is zero there stays zero."""
    if not isinstance(x, Value):
        raise LookupError("the transform of a parameter")
    name = op_name(walk.target)
    if dim is None and not name.endswith("n"):
        dim = [-2, -1] if name.endswith("2") else -1
    if dim is None and size is not None:
        dim = list(range(-len(size), 0))
    ids = x.ids
    for d in _reduced_dims(x, dim):
        if ids is not None and not is_constant(ids, d):
            ids = walk.held(ids, d, FOURIER)
            ids = None if varying_dims(ids) == [d] else ids
    return Value(walk.out_shape, None if ids is None else _fit(ids, walk.out_shape), x.zeros)
