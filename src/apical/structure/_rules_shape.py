"""Rules for operations that move elements: they are replayed on the ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apical.structure._atoms import compress, is_constant, spread, varying_dims
from apical.structure._registry import register_op
from apical.structure._rules_elementwise import FIXED_SIZE, SHARED, join_operands, param_axes, union_zeros
from apical.structure._values import AnyValue, ParamValue, Value
from apical.structure._walk import Walk, structural


@register_op("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::flatten", "aten::unflatten", "aten::view_as",
             "aten::reshape_as")  # fmt: skip
def reshape(walk: Walk, x: AnyValue, *args: Any, **kwargs: Any) -> AnyValue:
    """Any reshape; where it splits a dimension of channels, what is kept must stay rectangular."""
    shape = walk.out_shape
    if isinstance(x, Value) and x.ids is not None:
        walk.note_split(x, shape)
    return structural(walk, x, lambda t: t.reshape(shape), split=True)


@register_op(
    "aten::permute", "aten::transpose", "aten::t", "aten::numpy_T", "aten::mT", "aten::movedim", "aten::swapaxes",
    "aten::swapdims", "aten::squeeze", "aten::unsqueeze", "aten::select", "aten::slice", "aten::narrow", "aten::roll",
    "aten::flip", "aten::repeat", "aten::tile", "aten::repeat_interleave", "aten::diagonal",
)  # fmt: skip
def moved(walk: Walk, x: AnyValue, *args: Any, **kwargs: Any) -> AnyValue:
    """Operations that take integers beside the tensor, called on the ids as they are."""
    target = walk.target
    return structural(walk, x, lambda t: target(t, *args, **kwargs))


@register_op("aten::unfold")
def windows(walk: Walk, x: AnyValue, dim: int, size: int, step: int) -> AnyValue:
    """Overlapping parts of one dimension, which must not be the channels', in a new last dimension."""
    if isinstance(x, Value):
        x = walk.tied_along(x, dim % len(x.shape))
    if _varies(x, dim % len(x.shape)):
        raise LookupError("windows over channels")
    return structural(walk, x, lambda t: t.unfold(dim, size, step))


@register_op("aten::tril", "aten::triu")
def triangle(walk: Walk, x: AnyValue, diagonal: int = 0) -> AnyValue:
    """Zeros on one side of a diagonal of the last two dimensions: units lie along the others."""
    if isinstance(x, ParamValue):
        if any(d >= len(x.shape) - 2 for coords in x.coords for d in varying_dims(coords)):
            raise LookupError("zeros above or below the diagonal of a weight")
    elif x.ids is not None:
        for d in (len(x.shape) - 2, len(x.shape) - 1):
            x = replace(x, ids=walk.held(x.ids, d, FIXED_SIZE)) if _varies(x, d) else x
    return x


@register_op("aten::im2col")
def unfolded(walk: Walk, x: Value, *args: Any) -> Value:
    """Windows of an image (batch, channels, height, width) as (batch, channels * positions, windows)."""
    ids = walk.channel_ids(x, 1)
    if ids is not None:
        ids = spread(ids.repeat_interleave(walk.out_shape[1] // len(ids)), walk.out_shape, 1)
    return Value(walk.out_shape, ids, x.zeros)


@register_op("aten::col2im")
def folded(walk: Walk, x: Value, *args: Any) -> Value:
    """The sum of overlapping windows, the reverse of `unfolded`."""
    ids = walk.channel_ids(x, 1)
    if ids is not None:
        table = ids.view(walk.out_shape[1], -1)
        walk.meet_rows(table)
        ids = spread(table[:, 0], walk.out_shape, 1)
    return Value(walk.out_shape, ids, x.zeros)


@register_op("aten::expand", "aten::expand_as", "aten::broadcast_to")
def expand(walk: Walk, x: AnyValue, *args: Any, **kwargs: Any) -> AnyValue:
    """Broadcasting made explicit; one channel spread over many joins nothing."""
    shape = walk.out_shape
    if isinstance(x, Value) and x.ids is not None and not varying_dims(x.ids) and x.shape != shape:
        walk.atoms.freeze(x.ids, "a single channel that is broadcast")
        return Value(shape, None, x.zeros, flexible=True)
    if isinstance(x, Value) and x.ids is None and x.shape != shape:
        return Value(shape, None, x.zeros, flexible=True, made=x.made)
    return structural(walk, x, lambda t: t.expand(shape))


@register_op("aten::broadcast_tensors")
def broadcast_tensors(walk: Walk, operands: Sequence[AnyValue]) -> tuple[AnyValue, ...]:
    """Each operand as `expand` makes it, as a loss in the forward pass does before it compares."""
    return tuple(expand(walk, operand) for operand in operands)


def _parts(walk: Walk, x: AnyValue, dim: int, cut: Callable[[Tensor], Sequence[Tensor]]) -> tuple[AnyValue, ...]:
    shapes = walk.out_shapes
    if isinstance(x, ParamValue):
        columns = [cut(c) for c in x.coords]
        data = cut(x.data) if x.data is not None else [None] * len(shapes)
        return tuple(
            replace(x, shape=shapes[i], coords=tuple(c[i] for c in columns), whole=False, data=data[i])
            for i in range(len(shapes))
        )
    if x.ids is None:
        return tuple(Value(s, None, x.zeros, x.flexible) for s in shapes)
    pieces = cut(x.ids)
    if len({tuple(p.shape) for p in pieces}) == 1 and not is_constant(x.ids, dim):
        walk.rectangle(torch.stack([walk_constant(p) for p in pieces]), fixed_first=True)
    return tuple(Value(tuple(p.shape), p, x.zeros) for p in pieces)


def walk_constant(ids: Tensor) -> Tensor:
    """Cut constant dimensions to length 1."""
    for d in range(ids.dim()):
        if is_constant(ids, d):
            ids = ids.narrow(d, 0, 1)
    return ids


@register_op("aten::split", "aten::split_with_sizes", "aten::chunk", "aten::tensor_split")
def split(walk: Walk, x: AnyValue, how: Any, dim: int = 0) -> tuple[AnyValue, ...]:
    """Parts of equal size must shrink alike: the code divides whatever it gets."""
    target = walk.target
    return _parts(walk, x, dim % len(x.shape), lambda t: target(t, how, dim))


@register_op("aten::unbind")
def unbind(walk: Walk, x: AnyValue, dim: int = 0) -> tuple[AnyValue, ...]:
    """One part per index."""
    shapes = walk.out_shapes
    if isinstance(x, Value) and x.ids is not None:
        return tuple(Value(tuple(p.shape), p, x.zeros) for p in x.ids.unbind(dim))
    if isinstance(x, ParamValue):
        return tuple(
            replace(x, shape=s, coords=tuple(c.select(dim, i) for c in x.coords), whole=False, data=None)
            for i, s in enumerate(shapes)
        )
    return tuple(Value(s, None, x.zeros, x.flexible) for s in shapes)


@register_op("aten::cat", "aten::concat", "aten::concatenate")
def cat(walk: Walk, operands: Sequence[AnyValue], dim: int = 0) -> AnyValue:
    """Channels side by side; along other dimensions the operands' channels are joined."""
    dim = dim % max(len(o.shape) for o in operands)
    operands = [o for o in operands if o.shape != (0,) and o.shape[dim] > 0]  # no rest of the width without RoPE
    shape = (*operands[0].shape[:dim], sum(o.shape[dim] for o in operands), *operands[0].shape[dim + 1 :])
    zeros = union_zeros([o.zeros if isinstance(o, Value) else param_axes(o) for o in operands])
    with_ids = [o for o in operands if isinstance(o, Value) and o.ids is not None]
    if not with_ids and len(shape) == 1 and all(isinstance(o, ParamValue) for o in operands):
        trained = all(isinstance(o, ParamValue) and walk.is_parameter(o.name) for o in operands)
        zeros = zeros if trained else None  # no gate may sit on a buffer
    elif not with_ids and (not any(_is_created(o, dim) for o in operands) or _all_created(operands)):
        for o in operands:
            walk.freeze_value(o, "joined with a tensor without channels")
        return Value(shape, None, zeros, _all_created(operands))
    across = {d for o in with_ids if o.ids is not None for d in varying_dims(o.ids)} - {dim}
    if across:
        return Value(shape, _cat_across(walk, operands, sorted(across), dim, shape), zeros)
    vectors = [_created(walk, o, dim) if _is_created(o, dim) else _vector(walk, o, dim) for o in operands]
    return Value(shape, spread(torch.cat(vectors), shape, dim), zeros)


def _all_created(operands: Sequence[AnyValue]) -> bool:
    return all(isinstance(o, Value) and o.flexible for o in operands)


def _is_created(operand: AnyValue, dim: int) -> bool:
    """Whether an operand has its size along ``dim`` from the forward pass: the zeros that a hidden state begins as."""
    if not isinstance(operand, Value) or operand.ids is not None or not operand.flexible:
        return False
    return any(len(operand.shape) + at == dim for _, at in operand.made)


def _created(walk: Walk, operand: AnyValue, dim: int) -> Tensor:
    """The ids of a created tensor beside others: those that it met elsewhere, or new ones for what it will meet."""
    assert isinstance(operand, Value)
    axis = next(axis for axis in operand.made if len(operand.shape) + axis[1] == dim)
    if axis not in walk.made:
        walk.made[axis] = walk.atoms.new(operand.shape[dim])
    return walk.made[axis]


def _vector(walk: Walk, operand: AnyValue, dim: int) -> Tensor:
    """The ids of one operand along ``dim``, -1 where nothing is known."""
    if isinstance(operand, ParamValue):
        found = walk.param_ids(operand, dim)
    else:
        found = walk.channel_ids(operand, dim)
    return torch.full((operand.shape[dim],), -1, device="cpu") if found is None else found.expand(operand.shape[dim])


def _cat_across(
    walk: Walk, operands: Sequence[AnyValue], across: Sequence[int], dim: int, shape: tuple[int, ...]
) -> Tensor:
    """The ids of a concatenation whose channels vary along other dimensions than ``dim`` (and perhaps along it too)."""
    sized: list[AnyValue] = []
    for o in operands:
        if isinstance(o, Value) and o.ids is not None and not any(_varies(o, d) for d in across):
            walk.freeze_value(o, SHARED)  # a part of the width that all heads have in common: it ties none
        elif not (isinstance(o, Value) and o.ids is None and o.flexible):
            sized.append(o)
    if len(sized) == len(operands) and all(isinstance(o, Value) and _varies(o, dim) for o in operands):
        # Two halves of the width of every head, side by side: heads stay apart, and must stay the same in each part.
        ids = compress(torch.cat([o.ids for o in operands if isinstance(o, Value) and o.ids is not None], dim))
        walk.rectangle(ids)
        return ids
    tied = [walk.tied_along(o, dim) if isinstance(o, Value) else o for o in sized]
    if len(across) == 1:
        vectors = [_vector(walk, o, across[0]) for o in tied]
        for vector in vectors[1:]:
            walk.meet(vectors[0], vector, FIXED_SIZE)
        return spread(vectors[0], shape, across[0])
    thin = (*shape[:dim], 1, *shape[dim + 1 :])
    parts = [_first_along(o, dim) for o in tied]
    ids_or_none = join_operands(walk, parts, shape=thin)
    assert isinstance(ids_or_none, Tensor)
    return ids_or_none.expand(shape)


def _varies(value: AnyValue, dim: int) -> bool:
    return isinstance(value, Value) and value.ids is not None and not is_constant(value.ids, dim)


def _first_along(value: AnyValue, dim: int) -> AnyValue:
    """The first position along a dimension in which a value does not vary, as a value of its own."""
    shape = (*value.shape[:dim], 1, *value.shape[dim + 1 :])
    if isinstance(value, ParamValue):
        coords = tuple(c.narrow(dim, 0, 1) for c in value.coords)
        return replace(value, shape=shape, coords=coords, whole=False, data=None)
    return replace(value, shape=shape, ids=None if value.ids is None else value.ids.narrow(dim, 0, 1))


@register_op("aten::stack")
def stack(walk: Walk, operands: Sequence[AnyValue], dim: int = 0) -> AnyValue:
    """A concatenation along a new dimension."""
    dim = dim % len(walk.out_shape)
    wide: list[AnyValue] = []
    for o in operands:
        shape = (*o.shape[:dim], 1, *o.shape[dim:])
        if isinstance(o, ParamValue):
            coords = tuple(c.unsqueeze(dim) for c in o.coords)
            wide.append(replace(o, shape=shape, coords=coords, whole=False, data=None))
        else:
            wide.append(Value(shape, None if o.ids is None else o.ids.unsqueeze(dim), o.zeros, o.flexible))
    joined: AnyValue = cat(walk, wide, dim)
    return joined


@register_op("aten::index_select")
def index_select(walk: Walk, x: AnyValue, dim: int, index: AnyValue) -> AnyValue:
    """Positions of a dimension without channels picked by an index."""
    data = torch.zeros(index.shape, dtype=torch.long, device="cpu")
    if isinstance(index, ParamValue) and index.data is not None:
        data = index.data.long()
    if isinstance(x, ParamValue) and x.whole:
        walk.atoms.freeze(walk.axis(x.name, dim), "positions are picked by index")
    if isinstance(x, Value):
        x = walk.tied_along(x, dim)
    if _varies(x, dim):
        raise LookupError("an index tensor of fixed size picks channels")
    return structural(walk, x, lambda t: t.index_select(dim, data))


@register_op("aten::index")
def index(walk: Walk, x: AnyValue, indices: Sequence[Any]) -> AnyValue:
    """Advanced indexing of dimensions that hold no channels (tables of relative positions, token shuffles)."""
    picked: list[Tensor | None] = []
    for d, i in enumerate(indices):
        if i is None:
            picked.append(None)
            continue
        if isinstance(x, Value):
            x = walk.tied_along(x, d)
        if _varies(x, d):
            raise LookupError("an index tensor picks channels")
        if isinstance(x, ParamValue) and x.whole:
            walk.atoms.freeze(walk.axis(x.name, d), "positions are picked by index")
        known = isinstance(i, ParamValue) and i.data is not None
        picked.append(i.data if known and isinstance(i, ParamValue) and i.data is not None
                      else torch.zeros(i.shape, dtype=torch.long, device="cpu"))  # fmt: skip
    return structural(walk, x, lambda t: t[tuple(slice(None) if p is None else p for p in picked)])


@register_op("aten::pixel_shuffle")
def pixel_shuffle(walk: Walk, x: Value, factor: int) -> AnyValue:
    """(…, C r², H, W) to (…, C, H r, W r): r² channels make one."""
    ids = walk.channel_ids(x, -3)
    if ids is not None:
        blocks = ids.view(-1, factor * factor)
        walk.meet_rows(blocks)
        ids = blocks[:, 0]
    return Value(walk.out_shape, None if ids is None else spread(ids, walk.out_shape, len(x.shape) - 3), x.zeros)


@register_op("aten::pixel_unshuffle")
def pixel_unshuffle(walk: Walk, x: Value, factor: int) -> AnyValue:
    """(…, C, H r, W r) to (…, C r², H, W): each channel becomes r²."""
    ids = walk.channel_ids(x, -3)
    if ids is not None:
        ids = ids.repeat_interleave(factor * factor)
    return Value(walk.out_shape, None if ids is None else spread(ids, walk.out_shape, len(x.shape) - 3), x.zeros)


@register_op("aten::channel_shuffle", "aten::native_channel_shuffle")
def channel_shuffle(walk: Walk, x: Value, groups: int) -> AnyValue:
    """(groups, C / groups) transposed: every group must keep as many channels as the others."""
    ids = walk.channel_ids(x, 1)
    if ids is not None:
        table = ids.view(groups, -1)
        walk.rectangle(table, fixed_first=True)
        ids = table.t().reshape(-1)
    return Value(walk.out_shape, None if ids is None else spread(ids, walk.out_shape, 1), x.zeros)


@register_op("aten::pad", "aten::constant_pad_nd")
def pad(
    walk: Walk, x: AnyValue, amounts: Sequence[int], mode: Any = "constant", value: float | None = None
) -> AnyValue:
    """Padding; channels that padding adds have a fixed count."""
    if isinstance(x, ParamValue):
        return _padded_weight(walk, x, len(amounts) // 2)
    if not isinstance(mode, str):  # constant_pad_nd(x, pad, value)
        mode, value = "constant", mode
    zeros = x.zeros if mode != "constant" or not value else None
    if x.ids is None:
        return Value(walk.out_shape, None, zeros, x.flexible)
    ids = x.ids
    channels = varying_dims(ids) or ([1] if ids.shape[1:2] == (1,) else [])  # a single channel may be padded too
    for i in range(0, len(amounts), 2):
        dim = ids.dim() - 1 - i // 2
        before, after = amounts[i], amounts[i + 1]
        size = ids.shape[dim] + before + after
        if dim not in channels:
            ids = ids.narrow(dim, 0, 1).expand(*ids.shape[:dim], size, *ids.shape[dim + 1 :])
        elif before or after:
            if mode != "constant" or before < 0 or after < 0:
                raise LookupError("padding of channels that is not zero padding")
            ids = _pad_fixed(ids, dim, before, after)
    return Value(tuple(ids.shape), ids, zeros)


def _padded_weight(walk: Walk, x: ParamValue, n: int) -> ParamValue:
    """A weight whose last dimensions are padded, as a kernel that is added to a larger one: they stay."""
    shape = walk.out_shape
    coords = []
    for d, own in enumerate(x.coords):
        along = [at for at in varying_dims(own) if at >= len(shape) - n]
        if along and along != varying_dims(own):
            raise LookupError("a padded view of a parameter that mixes its dimensions")
        if along:
            walk.atoms.freeze(walk.axis(x.name, d), "is padded")
        first = own
        for at in range(len(shape) - n, len(shape)):
            first = first.narrow(at, 0, 1)
        coords.append((first.new_zeros(()) if along else first).expand(shape))
    return replace(x, shape=shape, coords=tuple(coords), whole=False, data=None)


def _pad_fixed(ids: Tensor, dim: int, before: int, after: int) -> Tensor:
    sides = [torch.full((*ids.shape[:dim], n, *ids.shape[dim + 1 :]), -1, device="cpu") for n in (before, after)]
    return compress(torch.cat([sides[0], ids, sides[1]], dim))


@register_op("aten::view_as_complex")
def view_as_complex(walk: Walk, x: AnyValue) -> AnyValue:
    """(…, 2) to complex numbers: real and imaginary part are one channel."""
    if isinstance(x, Value) and x.ids is not None:
        x = replace(x, ids=walk.held(x.ids, len(x.shape) - 1, "one part of a complex number"))
    return structural(walk, x, lambda t: t.select(-1, 0))


@register_op("aten::view_as_real")
def view_as_real(walk: Walk, x: AnyValue) -> AnyValue:
    """Complex numbers to (…, 2)."""
    return structural(walk, x, lambda t: t.unsqueeze(-1).expand(*t.shape, 2))


@register_op("aten::real", "aten::imag")
def complex_part(walk: Walk, x: AnyValue) -> AnyValue:
    """One part of each complex number."""
    return structural(walk, x, lambda t: t)
