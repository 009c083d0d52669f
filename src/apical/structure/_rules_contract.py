"""Rules for operations that sum over channels: convolution, linear layers, matrix products, attention, embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import Tensor

from apical.structure._atoms import compress, spread, varying_dims
from apical.structure._contract import contract, read_columns, unmixed, weight_axis, whole
from apical.structure._nodes import makes_weight
from apical.structure._registry import register_op
from apical.structure._rules_elementwise import FIXED_SIZE, join_operands, param_axes, union_zeros
from apical.structure._values import AnyValue, ParamValue, Value, Zeros, param_axis_along, whole_parameter
from apical.structure._walk import Walk, structural

WEIGHT_COMPUTED = (
    "the weight is computed from other tensors in the forward pass; make it a parameter (of torch's parametrizations, "
    "weight_norm is followed)"
)

FLAT = (
    "becomes a weight in the forward pass, all of whose dimensions are one in its parameter: store that as (number, "
    "out, in, *kernel) and flatten it for the product, which is followed"
)


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


def _convolve(walk: Walk, x: AnyValue, weight: AnyValue, bias: Any, groups: int, transposed: bool) -> Value:
    if not isinstance(weight, ParamValue):
        walk.freeze_value(weight, FLAT)
        walk.freeze_value(x, WEIGHT_COMPUTED)
        walk.freeze_value(bias, WEIGHT_COMPUTED)
        walk.list_frozen(WEIGHT_COMPUTED)
        walk.cost(_numel(x.shape if transposed else walk.out_shape) * _numel(weight.shape[1:]))
        return Value(walk.out_shape)
    spatial = len(weight.shape) - 2
    channel_dim = len(x.shape) - spatial - 1
    if isinstance(x, ParamValue):  # the learned image with which a generator begins
        x = walk.as_channels(x, channel_dim)
    incoming = walk.channel_ids(x, channel_dim)
    pixels = _numel((x.shape if transposed else walk.out_shape)[channel_dim + 1 :]) * _numel(x.shape[:channel_dim])
    pixels *= _numel(weight.shape[2:])
    if groups == 1 or _one_for_each_image(weight, incoming, groups):
        ids, zeros = _dense_convolution(walk, x, weight, incoming, pixels, transposed)
    else:
        ids, zeros = _grouped_convolution(walk, x, weight, incoming, groups, pixels, transposed)
    for path in _owners(walk, weight):
        walk.attribute("in_channels", incoming, path=path)
        walk.attribute("out_channels", ids, path=path)
    added = _add_bias(walk, bias, ids)
    return Value(walk.out_shape, spread(ids, walk.out_shape, channel_dim), union_zeros([zeros, added]))


def _one_for_each_image(weight: ParamValue, incoming: Tensor | None, groups: int) -> bool:
    """Whether the groups are images, side by side, each with a version of one weight (StyleGAN)."""
    if incoming is None or weight.whole:
        return False
    parts = [t.unflatten(0, (groups, -1)) for t in (incoming, *weight.coords)]
    return all(bool((part == part[:1]).all()) for part in parts)


def _dense_convolution(
    walk: Walk, x: Value, weight: ParamValue, incoming: Tensor | None, pixels: int, transposed: bool
) -> tuple[Tensor, Zeros]:
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    ids, out_key = weight_axis(walk, weight, out_dim, produce=True)
    columns, in_key = weight_axis(walk, weight, in_dim)
    read_columns(walk, x, None if incoming is None else incoming[: len(columns)], columns, in_key)
    walk.cost(pixels, columns, ids)
    return ids, frozenset([out_key])


def _grouped_convolution(
    walk: Walk, x: Value, weight: ParamValue, incoming: Tensor | None, groups: int, pixels: int, transposed: bool
) -> tuple[Tensor, Zeros]:
    """Group by group: a convolution group's input and output channels are one unit.

    A filter that is a buffer (a blur) is not trained, and holds no gate: its result is zero where its input is.
    """
    rows, key = weight_axis(walk, weight, 0)  # (out,), or (in,) when transposed
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
    vector, key = weight_axis(walk, bias, len(bias.shape) - 1)
    walk.meet(ids, vector, FIXED_SIZE)
    return frozenset([key])


# ---- linear algebra ---------------------------------------------------------------------------------------------


@register_op("aten::linear")
def linear(walk: Walk, x: AnyValue, weight: AnyValue, bias: Any = None) -> Value:
    """x W^T + b, weight (out, in)."""
    if not isinstance(weight, ParamValue):
        walk.list_frozen(WEIGHT_COMPUTED)
    if isinstance(weight, ParamValue):
        x = walk.as_channels(x, -1) if isinstance(x, ParamValue) else x
        weight = unmixed(walk, weight)
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


@register_op("aten::bilinear")
def bilinear(walk: Walk, a: Value, b: Value, weight: AnyValue, bias: Any = None) -> Value:
    """aᵀ W b + bias, weight (out, in of a, in of b)."""
    if not isinstance(weight, ParamValue):
        raise LookupError(WEIGHT_COMPUTED)
    ids, key = weight_axis(walk, weight, 0, produce=True)
    inputs = []
    for dim, x in ((1, a), (2, b)):
        columns, in_key = weight_axis(walk, weight, dim)
        read_columns(walk, x, walk.channel_ids(x, -1), columns, in_key)
        walk.attribute(f"in{dim}_features", columns)
        inputs.append(columns)
    walk.attribute("out_features", ids)
    walk.cost(_numel(walk.out_shape[:-1]), ids, *inputs)
    zeros = union_zeros([frozenset([key]), _add_bias(walk, bias, ids)])
    return Value(walk.out_shape, spread(ids, walk.out_shape, len(walk.out_shape) - 1), zeros)


def _owners(walk: Walk, weight: AnyValue) -> tuple[str, ...]:
    """The layer that runs, which may share its weight, and those that hold it, which their parent may read."""
    names = {weight.name, *walk.summands.get(weight.name, ())} if isinstance(weight, ParamValue) else ()
    return (walk.module_path, *sorted(name.rpartition(".")[0] for name in names))


def _linear_beside_channels(walk: Walk, result: Value, bias: Any) -> Value:
    if isinstance(bias, ParamValue):
        walk.freeze_value(bias, "mixes positions beside channels, of which it has no part")
        return replace(result, zeros=None)
    return result


def _ids_or_none(walk: Walk, weight: AnyValue, dim: int) -> Tensor | None:
    return walk.param_ids(weight, dim) if isinstance(weight, ParamValue) else None


@register_op("aten::matmul", "aten::bmm", "aten::mm")
def matmul(walk: Walk, a: AnyValue, b: AnyValue) -> AnyValue:
    """Matrix product with broadcast batch dimensions."""
    vectors = [len(x.shape) == 1 for x in (a, b)]
    if any(vectors):
        if all(vectors) or not isinstance(a if vectors[0] else b, ParamValue):
            raise LookupError("a product with a vector that is no parameter")
        batch = _letters(max(len(a.shape), len(b.shape)) - 2)
        if vectors[0]:
            return contract(walk, a, "y", b, batch + "yz", batch + "z")
        return contract(walk, a, batch + "xy", b, "y", batch + "x")
    if isinstance(a, ParamValue) and isinstance(b, ParamValue) and len(a.shape) == len(b.shape) == 2:
        return _product(walk, a, b)
    if isinstance(a, Value) and isinstance(b, ParamValue) and makes_weight(walk.current):
        stays = a.ids is None or walk.atoms.all_frozen(a.ids)  # else it may be a hidden layer that computes a weight
        if stays or len(b.coords) > 2:
            return _mixed(walk, a, b)
    batch = _letters(max(len(a.shape), len(b.shape)) - 2)
    la = batch[len(batch) - (len(a.shape) - 2) :] + "xy"
    lb = batch[len(batch) - (len(b.shape) - 2) :] + "yz"
    return contract(walk, a, la, b, lb, batch + "xz")


def _product(walk: Walk, a: ParamValue, b: ParamValue) -> ParamValue:
    """A weight of low rank: it has the rows of the first, the columns of the second, and units of its own between."""
    sides = [(x, param_axis_along(x, d)) for x, d in ((a, 0), (a, 1), (b, 0), (b, 1))]
    keys = [walk.key(x.name, side[0]) for x, side in sides if side is not None]
    if len(keys) < 4 or any(side is not None and len(side[1]) != len(walk.axis(x.name, side[0])) for x, side in sides):
        raise LookupError("a product of parts of two parameters")
    rows, inner, writing, columns = (
        walk.axis(*key)[side[1]] for key, (_, side) in zip(keys, sides, strict=True) if side
    )
    walk.produce(*keys[2])
    walk.meet(inner, writing, FIXED_SIZE)
    walk.read(inner, None, keys[1])
    walk.cost(1, rows, inner, columns)
    name = f"{a.name} @ {b.name}"
    walk.products[name] = (keys[0], keys[3])
    product = whole_parameter(name, walk.out_shape)
    order = (sides[0][1], sides[3][1])
    pairs = zip(order, product.coords, strict=True)
    coords = tuple(compress(side[1][coord]) for side, coord in pairs if side is not None)
    return replace(product, coords=coords, whole=False, vanishes=False)


def _mixed(walk: Walk, shares: Value, weights: ParamValue) -> ParamValue:
    """A weight for each image, mixed from several that lie side by side (dynamic convolution), whose number stays."""
    walk.freeze_value(shares, "mixes several weights, whose number stays")
    whole(walk, weights, len(weights.shape) - 2)
    axes = [walk.axis(weights.name, d) for d, c in enumerate(weights.coords) if set(varying_dims(c)) - {c.dim() - 2}]
    walk.cost(_numel(shares.shape), *axes)
    coords = tuple(c.narrow(-2, 0, 1).expand(walk.out_shape) for c in weights.coords)
    return replace(weights, shape=walk.out_shape, coords=coords, whole=False, data=None)


@register_op("aten::mv")
def vector_product(walk: Walk, a: AnyValue, vector: AnyValue) -> AnyValue:
    """A product with a vector, of which that of the power iteration is named."""
    if isinstance(a, ParamValue):
        raise LookupError(
            "the spectral norm of a whole weight changes with each of its channels; weight_norm of torch's "
            "parametrizations norms each output channel by itself, and is followed"
        )
    result: AnyValue = matmul(walk, a, vector)
    return result


@register_op("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(walk: Walk, a: AnyValue, b: AnyValue, offs: Any = None, *args: Any) -> Value:
    """Rows of a (rows, in), sorted by expert, times the weight of each expert b (experts, in, out); experts stay."""
    if offs is None or len(a.shape) != 2 or len(b.shape) != 3:
        raise LookupError("a grouped product of other shapes than (rows, in) and (experts, in, out)")
    if not isinstance(b, ParamValue):
        raise LookupError(WEIGHT_COMPUTED)
    whole(walk, b, 0)
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
    sums = any(not set(labels) <= set(out) for _, labels in operands)
    while len(operands) > 1:
        i, j = (steps.pop(0), steps.pop(0)) if steps else (0, 1)
        if not sums:  # in any order the same, at no cost: first those that share their units
            places = combinations(range(len(operands)), 2)
            i, j = max(places, key=lambda ij: len(set(operands[ij[0]][1]) & set(operands[ij[1]][1])))
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


@register_op("aten::embedding")
def embedding(walk: Walk, weight: AnyValue, indices: Any, *args: Any) -> Value:
    """Rows of a table, weight (entries, width)."""
    if not isinstance(weight, ParamValue):
        raise LookupError("a table that is computed in the forward pass")
    ids, key = weight_axis(walk, weight, 1, produce=True)
    walk.attribute("embedding_dim", ids)
    return Value(walk.out_shape, spread(ids, walk.out_shape, len(walk.out_shape) - 1), frozenset([key]))


@register_op("aten::embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(walk: Walk, weight: AnyValue, *args: Any) -> tuple[Value, ...]:
    """Sums, means or maxima of rows of a table."""
    rest = [Value(shape) for shape in walk.out_shapes[1:]]
    return (embedding(walk, weight, *args), *rest)


def _letters(n: int) -> str:
    return "abcdefghijklmnopqrstuv"[:n]


def _numel(shape: Sequence[int]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n
