"""Rules for gathering and scattering along a dimension that holds no channels: message passing, pooling, lookup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from apical.structure._atoms import varying_dims
from apical.structure._registry import register_op
from apical.structure._rules_elementwise import FIXED_SIZE, join_operands, union_zeros
from apical.structure._values import AnyValue, ParamValue, Value, Zeros
from apical.structure._walk import Walk


@register_op("aten::gather", "aten::take_along_dim")
def gather(walk: Walk, x: AnyValue, index: AnyValue, dim: Any = None, **kwargs: Any) -> Value:
    """Positions picked along one dimension, anew for each channel by an index tensor of the result's shape."""
    if isinstance(index, int):  # gather(x, dim, index); take_along_dim(x, index, dim)
        index, dim = dim, index
    if not isinstance(x, Value) or dim is None:
        raise LookupError("a parameter is gathered from")
    x = walk.tied_along(x, dim % len(x.shape))
    if x.ids is None:
        return Value(walk.out_shape, None, x.zeros)
    _spread_over_channels(walk, x, index, dim)
    ids = x.ids.narrow(dim, 0, 1)
    for d, n in enumerate(walk.out_shape):
        if ids.shape[d] != n:
            ids = ids.narrow(d, 0, 1).expand(*ids.shape[:d], n, *ids.shape[d + 1 :])
    return Value(walk.out_shape, ids, x.zeros)


@register_op("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(walk: Walk, x: AnyValue, dim: int, index: AnyValue, source: Any, *args: Any, **kwargs: Any) -> Value:
    """Positions written along one dimension, by an index tensor of the source's shape."""
    if isinstance(source, (Value, ParamValue)):
        if isinstance(source, Value):
            source = walk.tied_along(source, dim % len(source.shape))
            _spread_over_channels(walk, source, index, dim)
        return _written(walk, x, dim, source)
    if isinstance(x, Value) and x.ids is not None:
        raise LookupError("a number is written among channels")
    return Value(walk.out_shape)


@register_op("aten::index_add", "aten::index_copy", "aten::index_reduce")
def index_add(walk: Walk, x: AnyValue, dim: int, index: Any, source: AnyValue, *args: Any, **kwargs: Any) -> Value:
    """Whole slices added or written along one dimension (sums over the neighbours in a graph)."""
    return _written(walk, x, dim, source)


@register_op("aten::index_put")
def index_put(walk: Walk, x: AnyValue, indices: Sequence[Any], source: AnyValue, accumulate: bool = False) -> Value:
    """Whole slices written or added at picked positions of the first dimension (the tokens of an expert)."""
    if len(indices) != 1 or len(indices[0].shape) != 1 or len(source.shape) != len(x.shape):
        raise LookupError("written at positions along several dimensions, by a mask, or with broadcasting")
    return _written(walk, x, 0, source)


@register_op("aten::copy")
def copy(walk: Walk, x: AnyValue, source: AnyValue, *args: Any) -> Value:
    """A tensor whose entries are all written anew."""
    if isinstance(x, ParamValue) or isinstance(source, ParamValue):
        raise LookupError("a parameter that is copied")
    ids = join_operands(walk, [replace(x, flexible=True), source], shape=x.shape)
    assert not isinstance(ids, ParamValue)
    return Value(x.shape, ids, source.zeros, source.flexible, source.made)


def _written(walk: Walk, x: AnyValue, dim: int, source: AnyValue) -> Value:
    """The channels of what is written are those of what it is written into; neither may lie along ``dim``."""
    dim %= len(x.shape)
    if isinstance(x, ParamValue) or isinstance(source, ParamValue):
        raise LookupError("a parameter that is scattered")
    both = [walk.tied_along(v, dim) for v in (x, source)]
    if any(v.ids is not None and dim in varying_dims(v.ids) for v in both):
        raise LookupError("channels lie along the dimension that the index runs over")
    thin = tuple(1 if d == dim else n for d, n in enumerate(x.shape))
    parts = [replace(v, shape=thin, ids=None if v.ids is None else v.ids.narrow(dim, 0, 1)) for v in both]
    ids = join_operands(walk, parts, shape=thin)
    assert not isinstance(ids, ParamValue)
    zeros: Zeros = union_zeros([v.zeros for v in both])
    return Value(x.shape, None if ids is None else ids.expand(x.shape), zeros)


def _spread_over_channels(walk: Walk, x: Value, index: AnyValue, dim: int) -> None:
    """An index tensor with a size of its own along the channels fixes them; one that was expanded follows."""
    if x.ids is None or (isinstance(index, Value) and index.flexible):
        return
    for d in varying_dims(x.ids):
        if d != dim % len(x.shape):
            walk.held(x.ids, d, FIXED_SIZE)
