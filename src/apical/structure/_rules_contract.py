"""Rules for operations that sum over channels: convolution, linear layers, matrix products, attention, embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apical.structure._atoms import compress, spread, varying_dims
from apical.structure._registry import register_op
from apical.structure._rules_elementwise import FIXED_SIZE, SHARED, join_operands, param_axes, union_zeros
from apical.structure._values import AnyValue, AxisKey, ParamValue, Value, Zeros, param_axis_along
from apical.structure._walk import Walk, structural

OUTER = "meets other channels in an outer product (of which only one side can go)"
WEIGHT_COMPUTED = "the weight is computed from other tensors in the forward pass"


# ---- convolution ------------------------------------------------------------------------------------------------


@register_op("aten::conv1d", "aten::conv2d", "aten::conv3d")
def conv(walk: Walk, x: Value, weight: AnyValue, bias: Any = None, stride: Any = 1, padding: Any = 0,
         dilation: Any = 1, groups: int = 1) -> Value:  # fmt: skip
    """Convolution, weight (out, in / groups, *kernel)."""
    return _convolve(walk, x, weight, bias, groups, transposed=False)


@register_op("aten::conv_transpose1d", "aten::conv_transpose2d", "aten::conv_transpose3d")
def conv_transpose(walk: Walk, x: Value, weight: AnyValue, bias: Any = None, stride: Any = 1, padding: Any = 0,
                   output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Value:  # fmt: skip
    """Transposed convolution, weight (in, out / groups, *kernel)."""
    return _convolve(walk, x, weight, bias, groups, transposed=True)


@register_op("aten::convolution")
def convolution(walk: Walk, x: Value, weight: AnyValue, bias: Any, stride: Any, padding: Any, dilation: Any,
                transposed: bool, output_padding: Any, groups: int) -> Value:  # fmt: skip
    """The general form of both."""
    return _convolve(walk, x, weight, bias, groups, transposed)


def _convolve(walk: Walk, x: Value, weight: AnyValue, bias: Any, groups: int, transposed: bool) -> Value:
    if not isinstance(weight, ParamValue):
        walk.freeze_value(x, WEIGHT_COMPUTED)
        walk.freeze_value(bias, WEIGHT_COMPUTED)
        walk.list_frozen(WEIGHT_COMPUTED)
        walk.cost(_numel(x.shape if transposed else walk.out_shape) * _numel(weight.shape[1:]))
        return Value(walk.out_shape)
    spatial = len(weight.shape) - 2
    channel_dim = len(x.shape) - spatial - 1
    incoming = walk.channel_ids(x, channel_dim)
    pixels = _numel((x.shape if transposed else walk.out_shape)[channel_dim + 1 :]) * _numel(x.shape[:channel_dim])
    pixels *= _numel(weight.shape[2:])
    if groups == 1:
        ids, zeros = _dense_convolution(walk, x, weight, incoming, pixels, transposed)
    else:
        ids, zeros = _grouped_convolution(walk, x, weight, incoming, groups, pixels, transposed)
    for path in _owners(walk, weight):
        walk.attribute("in_channels", incoming, path=path)
        walk.attribute("out_channels", ids, path=path)
    added = _add_bias(walk, bias, ids)
    return Value(walk.out_shape, spread(ids, walk.out_shape, channel_dim), union_zeros([zeros, added]))


def _dense_convolution(
    walk: Walk, x: Value, weight: ParamValue, incoming: Tensor | None, pixels: int, transposed: bool
) -> tuple[Tensor, Zeros]:
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    ids, out_key = _weight_axis(walk, weight, out_dim, produce=True)
    columns, in_key = _weight_axis(walk, weight, in_dim)
    _read_columns(walk, x, incoming, columns, in_key)
    walk.cost(pixels, columns, ids)
    return ids, frozenset([out_key])


def _grouped_convolution(
    walk: Walk, x: Value, weight: ParamValue, incoming: Tensor | None, groups: int, pixels: int, transposed: bool
) -> tuple[Tensor, Zeros]:
    """Group by group: a convolution group's input and output channels are one unit.

    A filter that is a buffer (a blur) is not trained, and holds no gate: its result is zero where its input is.
    """
    rows, key = _weight_axis(walk, weight, 0)  # (out,), or (in,) when transposed
    walk.meet_rows(rows.view(groups, -1))
    if incoming is None:
        walk.atoms.freeze(rows, "a grouped convolution over fixed channels")
    else:
        table = incoming.view(groups, -1)
        walk.meet_rows(table)
        walk.meet(table[:, 0], rows.view(groups, -1)[:, 0], FIXED_SIZE)
    ids = rows
    if transposed:
        ids = rows.view(groups, -1)[:, 0].repeat_interleave(weight.shape[1])
    walk.cost(pixels * weight.shape[1], rows)
    for path in _owners(walk, weight):
        walk.attribute("groups", rows.view(groups, -1)[:, 0], path=path)
    return ids, frozenset([key]) if walk.is_parameter(weight.name) else x.zeros


def _weight_axis(walk: Walk, weight: ParamValue, dim: int, produce: bool = False) -> tuple[Tensor, AxisKey]:
    """The atoms along one dimension of a weight (a vector even where it has size 1), and the axis they lie on."""
    found = param_axis_along(weight, dim)
    if found is None:
        if weight.shape[dim] != 1 or not weight.whole:
            raise LookupError("the weight is an expanded view")
        found = (dim, torch.zeros(1, dtype=torch.long, device="cpu"))
    pdim, indices = found
    axis = walk.produce(weight.name, pdim) if produce else walk.axis(weight.name, pdim)
    return axis[indices], (weight.name, pdim)


def _read_columns(walk: Walk, x: Value, incoming: Tensor | None, columns: Tensor, key: AxisKey) -> None:
    if incoming is None:
        if not x.flexible:
            walk.atoms.freeze(columns, "reads a tensor without channels")
        return
    walk.meet(incoming, columns, "reads channels of which some are fixed")
    walk.read(columns, x.zeros, key)


def _add_bias(walk: Walk, bias: Any, ids: Tensor) -> Zeros:
    """Join a bias with the channels that it is added to; returns what zeroes it."""
    if bias is None:
        return frozenset()
    if isinstance(bias, Value) and bias.ids is not None:  # of queries, keys and values, side by side
        vector = walk.channel_ids(bias, -1)
        assert vector is not None
        walk.meet(ids, vector, FIXED_SIZE)
        return bias.zeros
    if not isinstance(bias, ParamValue):
        walk.atoms.freeze(ids, "the bias is computed in the forward pass")
        return frozenset()
    vector, key = _weight_axis(walk, bias, len(bias.shape) - 1)
    walk.meet(ids, vector, FIXED_SIZE)
    return frozenset([key])


# ---- linear algebra ---------------------------------------------------------------------------------------------


@register_op("aten::linear")
def linear(walk: Walk, x: AnyValue, weight: AnyValue, bias: Any = None) -> Value:
    """x W^T + b, weight (out, in)."""
    if not isinstance(weight, ParamValue):
        walk.list_frozen(WEIGHT_COMPUTED)
    if isinstance(x, ParamValue) and isinstance(weight, ParamValue):
        x = walk.as_channels(x, -1)
    labels = _letters(len(x.shape) - 1)
    result = contract(walk, x, labels + "y", weight, "zy", labels + "z")
    if result.ids is not None and varying_dims(result.ids) not in ([], [len(result.shape) - 1]):
        return _linear_beside_channels(walk, result, bias)
    ids = None if result.ids is None else walk.channel_ids(result, -1)
    for path in _owners(walk, weight):
        if isinstance(x, Value):
            walk.attribute("in_features", _ids_or_none(walk, weight, 1), path=path)
        walk.attribute("out_features", ids, path=path)
    if bias is None or ids is None:
        return result
    extra = _add_bias(walk, bias, ids)
    return Value(result.shape, result.ids, union_zeros([result.zeros, extra]))


def _owners(walk: Walk, weight: AnyValue) -> tuple[str, ...]:
    """The layer that runs, which may share its weight, and the one that holds it, which its parent may read."""
    owner = weight.name.rpartition(".")[0] if isinstance(weight, ParamValue) else walk.module_path
    return (walk.module_path, owner)


def _linear_beside_channels(walk: Walk, result: Value, bias: Any) -> Value:
    if isinstance(bias, ParamValue):
        walk.freeze_value(bias, "mixes positions beside channels, of which it has no part")
        return replace(result, zeros=None)
    return result


def _ids_or_none(walk: Walk, weight: AnyValue, dim: int) -> Tensor | None:
    return walk.param_ids(weight, dim) if isinstance(weight, ParamValue) else None


@register_op("aten::matmul", "aten::bmm", "aten::mm")
def matmul(walk: Walk, a: AnyValue, b: AnyValue) -> Value:
    """Matrix product with broadcast batch dimensions."""
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise LookupError("a product with a vector")
    batch = _letters(max(len(a.shape), len(b.shape)) - 2)
    la = batch[len(batch) - (len(a.shape) - 2) :] + "xy"
    lb = batch[len(batch) - (len(b.shape) - 2) :] + "yz"
    return contract(walk, a, la, b, lb, batch + "xz")


@register_op("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(walk: Walk, a: AnyValue, b: AnyValue, offs: Any = None, *args: Any) -> Value:
    """Rows of a (rows, in), sorted by expert, times the weight of each expert b (experts, in, out); experts stay."""
    if offs is None or len(a.shape) != 2 or len(b.shape) != 3:
        raise LookupError("a grouped product of other shapes than (rows, in) and (experts, in, out)")
    if not isinstance(b, ParamValue):
        raise LookupError(WEIGHT_COMPUTED)
    _whole(walk, b, 0)
    one = tuple(c.select(0, 0) for c in b.coords)  # every row meets the weight of one expert
    return contract(walk, a, "ax", replace(b, shape=b.shape[1:], coords=one, whole=False), "xy", "ay")


@register_op("aten::addmm", "aten::baddbmm")
def addmm(walk: Walk, bias: AnyValue, a: AnyValue, b: AnyValue, *, beta: float = 1, alpha: float = 1) -> Value:
    """beta bias + alpha a b."""
    result = matmul(walk, a, b)
    ids = join_operands(walk, [result, bias], shape=result.shape)
    assert not isinstance(ids, ParamValue)
    added = param_axes(bias) if isinstance(bias, ParamValue) else bias.zeros
    return Value(result.shape, ids, union_zeros([result.zeros, added]))


@register_op("aten::einsum")
def einsum(walk: Walk, equation: str, operands: Sequence[AnyValue], path: Any = None) -> AnyValue:
    """A contraction of operands, two at a time, or a permutation of one, without repeated labels."""
    left, _, out = equation.replace(" ", "").partition("->")
    labels = left.split(",")
    rank = max(len(o.shape) - len(x.replace("...", "")) for o, x in zip(operands, labels, strict=True))
    dots = "".join(c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation)[:rank]
    for i, (x, o) in enumerate(zip(labels, operands, strict=True)):
        labels[i] = x.replace("...", dots[rank - (len(o.shape) - len(x.replace("...", ""))) :])
    out = out.replace("...", dots)
    if any(len(set(x)) < len(x) for x in labels) or not out:
        raise LookupError(f"einsum {equation}")
    if len(operands) > 1:
        return _contract_all(walk, list(zip(operands, labels, strict=True)), out, path)
    if set(out) != set(labels[0]):
        raise LookupError(f"einsum {equation}")
    return structural(walk, operands[0], lambda t: t.permute([labels[0].index(label) for label in out]))


def _contract_all(walk: Walk, operands: list[tuple[AnyValue, str]], out: str, path: Sequence[int] | None) -> AnyValue:
    """Contract two operands after the other, along torch's path: pairs of places, of which the result is the last."""
    steps = list(path or [])
    while len(operands) > 1:
        i, j = (steps.pop(0), steps.pop(0)) if steps else (0, 1)
        (a, la), (b, lb) = operands[i], operands[j]
        rest = [operand for place, operand in enumerate(operands) if place not in (i, j)]
        later = set(out).union(*(labels for _, labels in rest))
        left = out if not rest else "".join(label for label in dict.fromkeys(la + lb) if label in later)
        operands = [*rest, (contract(walk, a, la, b, lb, left), left)]
    return operands[0][0]


@register_op("aten::scaled_dot_product_attention")
def attention(walk: Walk, query: AnyValue, key: AnyValue, value: AnyValue, mask: Any = None, dropout: float = 0.0,
              is_causal: bool = False, *, scale: Any = None, enable_gqa: bool = False) -> Value:  # fmt: skip
    """softmax(q k^T) v with shapes (…, heads, tokens, width per head): heads are units where they are separate."""
    if enable_gqa and query.shape[-3] != key.shape[-3]:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = _repeat_heads(key, repeats), _repeat_heads(value, repeats)
    batch = _letters(len(query.shape) - 2)
    scores = contract(walk, query, batch + "xy", key, batch + "zy", batch + "xz")
    weights = Value(scores.shape, _with_bias(walk, scores, mask), None)
    return contract(walk, weights, batch + "xz", value, batch + "zw", batch + "xw")


def _with_bias(walk: Walk, scores: Value, bias: Any) -> Tensor | None:
    """The ids of attention scores after a mask or bias was added to them, as any sum."""
    if not isinstance(bias, (Value, ParamValue)):
        return scores.ids
    ids = join_operands(walk, [scores, bias], shape=scores.shape)
    assert not isinstance(ids, ParamValue)
    return ids


def _repeat_heads(value: AnyValue, repeats: int) -> AnyValue:
    if not isinstance(value, Value):
        raise LookupError("keys or values that are parameters")
    shape = (*value.shape[:-3], value.shape[-3] * repeats, *value.shape[-2:])
    ids = None if value.ids is None else compress(value.ids.repeat_interleave(repeats, dim=-3))
    return Value(shape, ids, value.zeros)


def contract(walk: Walk, a: AnyValue, la: str, b: AnyValue, lb: str, out: str) -> Value:
    """The product of two tensors summed over the labels that ``out`` lacks, as in einsum.

    Labels that both operands and the result have are batch labels: a unit that varies along one is a whole slice
    there (a head). Labels that are summed join the operands' channels, which the operation then reads.
    """
    if isinstance(a, ParamValue) and isinstance(b, ParamValue):
        raise LookupError("a product of two parameters")
    if isinstance(a, ParamValue):
        a, la, b, lb = b, lb, a, la
    if not isinstance(a, Value):
        raise LookupError("a product of two parameters")
    sizes: dict[str, int] = {}
    for label, size in [*zip(la, a.shape, strict=True), *zip(lb, b.shape, strict=True)]:
        sizes[label] = max(size, sizes.get(label, 1))
    shape = tuple(sizes[label] for label in out)
    if isinstance(b, ParamValue):
        ids, zeros, axes = _with_weight(walk, a, la, b, lb, out)
    else:
        ids, zeros, axes = _with_activation(walk, a, la, b, lb, out)
    if not sizes.keys() <= set(out):  # what sums nothing is no product of matrices
        walk.cost(1, *(axes.get(label, n) for label, n in sizes.items()))
    return Value(shape, None if ids is None else _placed(*ids, out, shape), zeros)


# ids with a label for each of their dimensions, the result's zeros, and the length of each label for the cost
Labelled = tuple[tuple[str, Tensor] | None, Zeros, dict[str, Tensor | int]]


def _placed(labels: str, ids: Tensor, out: str, shape: tuple[int, ...]) -> Tensor:
    """Ids over some labels as ids of the result, constant along the others."""
    order = sorted(range(len(labels)), key=lambda i: out.index(labels[i]))
    view = [n if label in labels else 1 for label, n in zip(out, shape, strict=True)]
    return ids.permute(order).reshape(view).expand(shape)


def _with_weight(walk: Walk, a: Value, la: str, w: ParamValue, lw: str, out: str) -> Labelled:
    for label in lw:  # a weight for each of several experts, whose number stays
        if label in la and label in out and w.shape[lw.index(label)] != 1:
            _whole(walk, w, lw.index(label))
            if a.ids is not None:
                a = replace(a, ids=walk.held(a.ids, la.index(label), FIXED_SIZE))
    summed = [label for label in lw if label in la and label not in out]
    free = [label for label in lw if label not in la and label in out]
    moving = [] if a.ids is None else [la[d] for d in varying_dims(a.ids) if la[d] in summed]
    if not summed or not free or len(moving) > 1:
        raise LookupError("a sum over several dimensions of a weight")
    summed.sort(key=lambda label: label not in moving)  # (heads, width) as two dimensions: heads are the units
    for label in summed[1:]:
        _whole(walk, w, lw.index(label))
    free = walk.first_choice(w, free, lw)
    for label in free[1:]:  # (heads, width) as two dimensions of a weight: heads are the units, if they can be
        _whole(walk, w, lw.index(label))
    if a.ids is not None and {la[d] for d in varying_dims(a.ids)} - set(summed):
        if not walk.atoms.all_frozen(a.ids):
            return _beside_channels(walk, a, la, w, summed[0])
        a = replace(a, ids=None)
    ids, out_key = _weight_axis(walk, w, lw.index(free[0]), produce=True)
    columns, in_key = _weight_axis(walk, w, lw.index(summed[0]))
    incoming = walk.channel_ids(a, la.index(summed[0]))
    _read_columns(walk, a, incoming, columns, in_key)
    owner = w.name.rpartition(".")[0]
    walk.attribute("in_features", columns, path=owner)
    walk.attribute("out_features", ids, path=owner)
    return (free[0], ids), frozenset([out_key]), {free[0]: ids, summed[0]: columns}


def _beside_channels(walk: Walk, a: Value, la: str, w: ParamValue, summed: str) -> Labelled:
    """A weight that mixes another dimension than the channels' (the width of every head, tokens): it stays whole."""
    walk.freeze_value(w, "mixes positions beside channels, of which it has no part")
    walk.list_frozen("mixes positions beside channels, which go in its place")
    kept = walk.tied_along(a, la.index(summed))
    assert kept.ids is not None
    dims = [d for d in varying_dims(kept.ids) if la[d] != summed]
    table = walk.table(kept, dims)
    assert table is not None
    labels = "".join(la[d] for d in dims)
    axes: dict[str, Tensor | int] = {**dict.fromkeys(labels, 1), labels[0]: table.reshape(-1)}
    return (labels, table), a.zeros, axes


def _whole(walk: Walk, w: ParamValue, dim: int) -> None:
    """Positions along one dimension of a weight that stay."""
    found = walk.param_ids(w, dim)
    if found is not None:
        walk.atoms.freeze(found, "is a dimension of a weight beside that of its channels")


def _with_activation(walk: Walk, a: Value, la: str, b: Value, lb: str, out: str) -> Labelled:
    axes: dict[str, Tensor | int]
    moving_a, moving_b = _moving(a, la), _moving(b, lb)
    batch = [label for label in dict.fromkeys([*moving_a, *moving_b]) if label in la and label in lb and label in out]
    if batch:
        for one, moving in ((a, moving_a), (b, moving_b)):
            if moving and not set(batch) & set(moving):  # one key head for all query heads: it stays, and ties none
                walk.freeze_value(one, SHARED)
        sides = ((a, la, moving_a), (b, lb, moving_b))
        a, b = (v if set(batch) & set(m) or _counts(v, lv, batch) else _without_ids(v) for v, lv, m in sides)
        slices = _whole_slices(walk, a, la, b, lb, batch)
        axes = {batch[0]: slices.reshape(-1), **dict.fromkeys(batch[1:], 1)}
        return ("".join(batch), slices), b.zeros if b.zeros is not None else a.zeros, axes
    a, b = _one_for_all(walk, a, la, b, lb, out)
    moving_a, moving_b = _moving(a, la), _moving(b, lb)
    axes = {}
    summed = [label for label in dict.fromkeys([*moving_a, *moving_b]) if label not in out]
    for label in summed:
        sides = [(v, lv) for v, lv, m in ((a, la, moving_a), (b, lb, moving_b)) if label in m]
        vectors = [ids for v, lv in sides if (ids := walk.channel_ids(v, lv.index(label))) is not None]
        axes[label] = vectors[0]
        if len(vectors) < 2:  # it meets a dimension of fixed size
            walk.atoms.freeze(vectors[0], FIXED_SIZE)
            continue
        walk.meet(vectors[0], vectors[1], FIXED_SIZE)
        walk.read(vectors[0], a.zeros if a.zeros is not None else b.zeros, None)
    free = [(label, v, lv) for v, lv, m in ((a, la, moving_a), (b, lb, moving_b)) for label in m if label in out]
    if not free:
        return None, None, axes
    outer = []
    for label, value, labels in free:
        vector = walk.channel_ids(value, labels.index(label))
        assert vector is not None
        outer.append((label, vector, value.zeros))
    # An outer product: one side stays whole, that which does anyway, else that which is the smaller part of weights.
    outer.sort(key=lambda side: (not walk.atoms.all_frozen(side[1]), walk.atoms.joined(side[1]).numel()))
    for _, vector, _ in outer[:-1]:
        walk.atoms.freeze(vector, OUTER)
    label, vector, zeros = outer[-1]
    return (label, vector), zeros, {**axes, label: vector}


def _moving(value: Value, labels: str) -> list[str]:
    return [] if value.ids is None else [labels[d] for d in varying_dims(value.ids)]


def _counts(value: Value, labels: str, batch: Sequence[str]) -> bool:
    """Whether a value without channels has an entry of its own for each unit, so that their number cannot change."""
    own = any(value.shape[labels.index(label)] > 1 for label in batch)
    return own and value.ids is None and not value.flexible


def _one_for_all(walk: Walk, a: Value, la: str, b: Value, lb: str, out: str) -> tuple[Value, Value]:
    """Heads against the only key head, without a dimension of heads: it stays, and ties only the width of each head."""
    for wide, labels, other in ((a, la, b), (b, lb, a)):
        moving = _moving(wide, labels)
        summed = [label for label in moving if label not in out]
        if summed and len(summed) < len(moving):
            walk.freeze_value(other, SHARED)
            tied = wide
            for label in summed:
                tied = walk.tied_along(tied, labels.index(label))
            return (tied, _without_ids(other)) if wide is a else (_without_ids(other), tied)
    return a, b


def _without_ids(value: Value) -> Value:
    """The same for every unit of what it meets, so that its size follows (which the dry run finds out)."""
    return Value(value.shape, None, None, flexible=True)


def _whole_slices(walk: Walk, a: Value, la: str, b: Value, lb: str, batch: Sequence[str]) -> Tensor:
    """Join everything in each slice along batch labels; returns one id per slice  # (sizes of the labels)"""
    tables = []
    for value, labels in ((a, la), (b, lb)):
        dims = [labels.index(label) for label in batch]
        tables.append(Value(tuple(value.shape[d] for d in dims), walk.table(value, dims), None, value.flexible))
    shape = tuple(max(sizes) for sizes in zip(*(t.shape for t in tables), strict=True))
    ids = join_operands(walk, tables, shape=shape)
    assert isinstance(ids, Tensor)
    return ids


@register_op("aten::embedding")
def embedding(walk: Walk, weight: AnyValue, indices: Any, *args: Any) -> Value:
    """Rows of a table, weight (entries, width)."""
    if not isinstance(weight, ParamValue):
        raise LookupError("a table that is computed in the forward pass")
    ids, key = _weight_axis(walk, weight, 1, produce=True)
    walk.attribute("embedding_dim", ids)
    return Value(walk.out_shape, spread(ids, walk.out_shape, len(walk.out_shape) - 1), frozenset([key]))


def _letters(n: int) -> str:
    return "abcdefghijklmnopqrstuv"[:n]


def _numel(shape: Sequence[int]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n
