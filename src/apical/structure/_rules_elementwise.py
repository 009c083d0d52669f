"""Rules for elementwise operations: the ids of all operands are joined, position by position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apical.structure._atoms import compress, line, shrink_constant_dims, varying_dims
from apical.structure._nodes import makes_weight
from apical.structure._registry import op_name, register_op
from apical.structure._values import AnyValue, AxisKey, MadeAxis, ParamValue, Value, Zeros, param_axis_along
from apical.structure._walk import NOT_A_CHANNEL, Walk

OUTER = "outer product or sum of two sets of channels"
SHARED = "is shared by all units of another set of channels"
FIXED_SIZE = "is combined with positions of fixed size (zero padding, a constant, or another frozen tensor)"

# f(0) = 0, so that a channel that is zero before is zero after
KEEPS_ZERO = frozenset({
    "relu", "relu6", "leaky_relu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "tanh",
    "hardtanh", "softshrink", "hardshrink", "tanhshrink", "softsign", "sin", "tan", "asin", "atan", "sinh", "asinh",
    "atanh", "erf", "expm1", "log1p", "sqrt", "square", "abs", "neg", "sign", "floor", "ceil", "round", "trunc",
    "frac", "positive", "nan_to_num", "div", "true_divide", "floor_divide", "pow", "mul", "clamp", "polar",
    "clamp_min", "clamp_max", "threshold", "masked_fill",
})  # fmt: skip
SUMS = frozenset({"add", "sub", "maximum", "minimum", "fmax", "fmin", "where", "complex"})
PRODUCTS = frozenset({"mul"})


@register_op("pointwise", "aten::relu6", "aten::masked_fill", "aten::where", "aten::threshold", "aten::rrelu",
             "aten::leaky_relu", "aten::hardswish", "aten::log_sigmoid", "aten::rsub",
             "aten::__and__", "aten::__or__", "aten::complex", "aten::polar")  # fmt: skip
def pointwise(walk: Walk, *args: Any, **kwargs: Any) -> Any:
    """Any elementwise operation with broadcasting."""
    name = op_name(walk.target).split("::")[-1]
    if name == "where" and len(args) == 1:
        return _positions(walk, args[0])
    if name in ("where", "masked_fill"):
        mask, args = (args[0], args[1:]) if name == "where" else (args[1], (args[0], *args[2:]))
        operands = [a for a in args if isinstance(a, (Value, ParamValue))]
        result = join_operands(walk, operands, [mask] if isinstance(mask, (Value, ParamValue)) else [])
    else:
        operands = [a for a in (*args, *kwargs.values()) if isinstance(a, (Value, ParamValue))]
        result = _modulated(walk, operands) if name in PRODUCTS and makes_weight(walk.current) else None
        result = join_operands(walk, operands) if result is None else result
    if isinstance(result, ParamValue):
        return replace(result, vanishes=result.vanishes and _keeps_zero(name, args))
    added = [o.ids for o in operands if isinstance(o, Value) and o.ids is not None] if name in SUMS else []
    if isinstance(result, Tensor) and len(added) > 1:
        origins = {walk.atoms.origins(ids) for ids in added}
        if len(origins) == 1:  # parts of one tensor, or of several that were joined before (stacked, say)
            origins = {frozenset([i]) for i in walk.atoms.origins(walk.atoms.joined(result))}
        walk.summed.append((result, origins))
    zeros = _zeros_after(walk, name, args, operands, result)
    flexible = all(isinstance(o, Value) and o.flexible for o in operands)
    made = frozenset[MadeAxis]().union(*(o.made for o in operands if isinstance(o, Value))) if flexible else frozenset()
    return Value(walk.out_shape, result, zeros, flexible, made)


@register_op("aten::nonzero", "aten::nonzero_numpy")
def _positions(walk: Walk, condition: AnyValue) -> Any:
    """Where a condition holds: as many positions as it happens to have, so that no channel may decide it."""
    walk.freeze_value(condition, "decides which positions are picked")
    return walk.fixed(walk.current)


def join_operands(
    walk: Walk, operands: Sequence[AnyValue], masks: Sequence[AnyValue] = (), shape: tuple[int, ...] | None = None
) -> Tensor | ParamValue | None:
    """Join the ids of operands that are broadcast to a shape (by default the result's) and return the ids there."""
    shape = walk.out_shape if shape is None else shape
    everyone = [*operands, *masks]
    params = [o for o in everyone if isinstance(o, ParamValue)]
    values = [o for o in everyone if isinstance(o, Value)]
    ids: Tensor | None = None
    for value in values:
        if value.ids is not None:
            ids = _join_two(walk, ids, value, shape)
    if ids is None:
        if len(params) == 1 and all(_numel(v.shape) == 1 for v in values) and _numel(params[0].shape) == _numel(shape):
            return replace(params[0], data=None)
        return _of_parameters(walk, params, values, shape)
    for value in values:
        if value.ids is None:
            ids = _meet_created(walk, ids, value) if value.flexible else meet_fixed(walk, ids, value.shape)
    for param in params:
        meet_param(walk, ids, param)
    return ids


def _modulated(walk: Walk, operands: Sequence[AnyValue]) -> ParamValue | None:
    """A weight whose columns an activation scales for each image, as StyleGAN's styles do: it stays that weight."""
    weight = next((o for o in operands if isinstance(o, ParamValue) and sum(n > 1 for n in o.shape) > 1), None)
    style = next((o for o in operands if isinstance(o, Value) and o.ids is not None), None)
    if len(operands) != 2 or weight is None or style is None or style.ids is None:
        return None
    styles = varying_dims(style.ids)
    columns = walk.param_ids(weight, styles[0] - len(style.shape)) if len(styles) == 1 else None
    if columns is None:
        return None
    walk.meet(line(style.ids, styles[0]), columns, FIXED_SIZE)
    coords = tuple(c.expand(walk.out_shape) for c in weight.coords)
    return replace(weight, shape=walk.out_shape, coords=coords, whole=False, data=None)


def _of_parameters(
    walk: Walk, params: Sequence[ParamValue], fixed: Sequence[Value], shape: tuple[int, ...]
) -> Tensor | ParamValue | None:
    """The ids of parameters that meet each other or fixed tensors: the last free dimension of each holds channels.

    So a frozen batch norm, which is computed from its buffers, has the channels of its buffers, and a table of
    position biases with a mask on top those of its heads. A buffer with several dimensions is such a mask. A weight
    that is divided by its own norm stays itself.
    """
    if op_name(walk.target).endswith("::mul") and len(params) == 2 and not fixed:
        of_size = [p for p in params if p.shape == shape]
        weight = next((p for p in of_size if walk.is_parameter(p.name)), of_size[0] if of_size else None)
        scale = params[1] if weight is params[0] else params[0]
        alike = weight is not None and weight.whole and scale.whole and weight.shape == scale.shape
        if weight is not None and (alike or (sum(n > 1 for n in shape) > 1 and makes_weight(walk.current))):
            for d in range(-len(scale.shape), 0):  # a mask, or scales: they lose what the weight does
                theirs, ours = walk.param_ids(scale, d), walk.param_ids(weight, d)
                if theirs is not None and ours is not None and scale.name != weight.name:
                    walk.meet(ours, theirs, FIXED_SIZE)
            if scale.name != weight.name:
                return replace(weight, data=None)
    weights = len(params) == 2 and all(p.shape == shape and walk.is_parameter(p.name) for p in params)
    if op_name(walk.target) in ("aten::add", "aten::sub") and weights and not fixed and makes_weight(walk.current):
        return _sum_of_weights(walk, *params)
    normed = next((p for p in params if p.shape == shape), None)
    if normed is not None and not fixed and all(_is_part(p, normed) for p in params):
        return replace(normed, data=None)
    if len(params) > 1 and not fixed and all(p.name == params[0].name and p.shape == shape for p in params):
        return _of_one(walk, params)
    masks = [p for p in params if not walk.is_parameter(p.name) and sum(n > 1 for n in p.shape) > 1]
    for mask in masks:
        walk.freeze_value(mask, "is a table of fixed size")
    shapes = [*(v.shape for v in fixed if not v.flexible), *(mask.shape for mask in masks)]
    sizes = [_aligned(s, shape) for s in shapes]
    taken = {d for size in sizes for d, n in enumerate(size) if n > 1}
    ids: Tensor | None = None
    for param in params:
        if any(param is mask for mask in masks):
            continue
        offset = len(shape) - len(param.shape)
        free = [d for d, n in enumerate(param.shape) if n > 1 and d + offset not in taken]
        free = [d for d in free if any(varying_dims(c) == [d] for c in param.coords)]
        if free:
            ids = _join_two(walk, ids, walk.as_channels(param, free[-1]), shape)
        else:
            walk.freeze_value(param, "meets a tensor without channels")
    return ids


def _of_one(walk: Walk, params: Sequence[ParamValue]) -> ParamValue:
    """What is computed of several slices of one parameter: its channels where they agree, as of a table of knots."""
    first = params[0]
    coords = list(first.coords)
    for d, own in enumerate(coords):
        if not all(torch.equal(p.coords[d], own) for p in params[1:]):
            walk.atoms.freeze(walk.axis(first.name, d), "is a table of fixed size")
            coords[d] = own.new_zeros(()).expand_as(own)
    return replace(first, coords=tuple(coords), whole=False, data=None, vanishes=False)


def _sum_of_weights(walk: Walk, weight: ParamValue, other: ParamValue) -> ParamValue:
    """A weight and what is added to it, as one of low rank (LoRA): it is the weight, if both are zero together."""
    for d in range(len(weight.shape)):
        ours, theirs = param_axis_along(weight, d), param_axis_along(other, d)
        if ours is not None and theirs is None and len(weight.shape) > 2 > d:
            raise LookupError("a sum of weights of which one has no channels of its own")
        if ours is not None and theirs is not None:
            walk.meet(walk.axis(weight.name, ours[0])[ours[1]], walk.axis(other.name, theirs[0])[theirs[1]], FIXED_SIZE)
            gates = walk.gate_of(weight.name, ours[0]), walk.gate_of(other.name, theirs[0])
            walk.together.setdefault(gates[0], set()).add(gates[1])
    walk.summands.setdefault(weight.name, set()).update({other.name, *walk.summands.get(other.name, ())})
    return replace(weight, data=None)


def _is_part(param: ParamValue, weight: ParamValue) -> bool:
    """Whether at each position of a weight a broadcast view of it has to do with that position alone."""
    pairs = zip(param.coords, weight.coords, strict=False)
    return param.name == weight.name and all(not varying_dims(c) or torch.equal(c.expand_as(w), w) for c, w in pairs)


def _join_two(walk: Walk, ids: Tensor | None, value: Value, shape: tuple[int, ...]) -> Tensor:
    """Join the result's ids so far with one more operand's."""
    assert value.ids is not None
    theirs = value.ids.expand(shape)
    if ids is None:
        return theirs
    sizes = _aligned(value.shape, shape)
    ours, others = varying_dims(ids), varying_dims(theirs)
    missing = [d for d in ours if sizes[d] == 1 and shape[d] > 1]  # the operand is broadcast along our channels
    if missing and not others:
        return ids  # a single channel that gates many: it joins nothing
    if (
        not ours
        and others
        and all(ids.shape[d] == shape[d] for d in others)
        and bool((ids >= 0).all())
        and _numel(value.shape) > 1
    ):
        return theirs  # the result so far was a single channel, broadcast
    for wide, narrow, dims in ((ids, theirs, others), (theirs, ids, ours)):
        if len(dims) == 1 and dims[0] in varying_dims(wide) and len(varying_dims(wide)) > 1:
            walk.cross(wide, dims[0], line(narrow, dims[0]))
            return wide
    if missing and not set(ours) & set(others):  # one side stays whole, that which does anyway, else the shorter one
        sides = sorted((ids, theirs), key=lambda t: (not walk.atoms.all_frozen(t), _channels(t)))
        walk.atoms.freeze(sides[0], OUTER)
        return sides[1]
    if missing:
        walk.atoms.freeze(ids, OUTER)
        walk.atoms.freeze(theirs, OUTER)
        return ids
    walk.meet(*_flat(ids, theirs), FIXED_SIZE)
    return torch.where(ids < 0, theirs, ids) if bool((ids < 0).any()) else ids


def _channels(ids: Tensor) -> int:
    return math.prod(ids.shape[d] for d in varying_dims(ids))


def _meet_created(walk: Walk, ids: Tensor, value: Value) -> Tensor:
    """The ids once a created tensor was broadcast against them: whatever else meets it has as many units.

    So the heads of all layers to which T5 hands one tensor of zeros for a bias change together.
    """
    varying = varying_dims(ids)
    for axis in value.made:
        if varying == [axis[1] + ids.dim()]:
            units = line(ids, varying[0])
            walk.meet(walk.made.setdefault(axis, units), units, FIXED_SIZE)
    return ids


def meet_fixed(walk: Walk, ids: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The ids once a tensor of fixed shape was broadcast against them: units cannot lie where it has a size."""
    sizes = _aligned(shape, tuple(ids.shape))
    for d in varying_dims(ids):
        if sizes[d] > 1:
            ids = walk.held(ids, d, FIXED_SIZE)
    return ids


def meet_param(walk: Walk, ids: Tensor, param: ParamValue) -> None:
    """Join a parameter's positions with the ids of the activation that it is broadcast against."""
    offset = ids.dim() - len(param.shape)
    varying = varying_dims(ids)
    for d in varying:
        if d >= offset and param.shape[d - offset] > 1 and not any(d - offset in varying_dims(c) for c in param.coords):
            walk.held(ids, d, FIXED_SIZE)  # the same entry everywhere, but for a fixed number of times
    for pdim, coords in enumerate(param.coords):
        dims = [d + offset for d in varying_dims(coords)]
        if not dims:
            continue
        atoms = walk.axis(param.name, pdim)
        if not set(dims) <= set(varying):
            if set(dims) & set(varying):
                raise LookupError(f"a view of {param.name} mixes its dimensions")
            walk.atoms.freeze(atoms, NOT_A_CHANNEL)
        elif dims == varying:
            walk.meet(*_flat(ids, compress(atoms[coords]).expand(ids.shape)), FIXED_SIZE)
        elif len(dims) == 1:
            walk.cross(ids, dims[0], atoms[line(coords, dims[0] - offset)])
        else:
            raise LookupError(f"a view of {param.name} lies along some of several dimensions of channels")


def _zeros_after(walk: Walk, name: str, args: Sequence[Any], operands: Sequence[AnyValue], ids: Tensor | None) -> Zeros:
    if name in PRODUCTS:
        return zeros_of_product(walk, operands, ids)
    if name in SUMS:
        if _adds_number(args):
            return None
        return union_zeros(
            [_param_zeros(walk, o, ids) if isinstance(o, ParamValue) else _value_zeros(o, ids) for o in operands]
        )
    if not operands or not isinstance(operands[0], Value) or args[0] is not operands[0]:
        return None
    return operands[0].zeros if _keeps_zero(name, args) else None


def zeros_of_product(walk: Walk, operands: Sequence[AnyValue], ids: Tensor | None) -> Zeros:
    """What zeroes a factor at a unit: a parameter, if one is among them."""
    params = [o for o in operands if isinstance(o, ParamValue) and walk.is_parameter(o.name)]  # no gate on a buffer
    gates = [param_axes(o) for o in params if _scales(o, ids)]
    values = [o.zeros for o in operands if isinstance(o, Value) and _holds(o, ids)]
    found = [z for z in (*gates, *values) if z is not None]
    return found[0] if found else None


def _keeps_zero(name: str, args: Sequence[Any]) -> bool:
    """Whether the result is zero where the first argument (of a sum with a number, the tensor) is."""
    if name in SUMS:
        return not _adds_number(args)
    numbers = [a for a in args[1:] if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if name in ("pow", "masked_fill", "threshold") and not _fixes_zero(name, numbers):
        return False
    if name in ("clamp", "hardtanh", "clamp_min", "clamp_max") and not _range_holds_zero(name, args[1:]):
        return False
    return name in KEEPS_ZERO


def _adds_number(args: Sequence[Any]) -> bool:
    return any(isinstance(a, (int, float)) and not isinstance(a, bool) and a != 0 for a in args[:2])


def _fixes_zero(name: str, numbers: Sequence[float]) -> bool:
    if name == "pow":
        return len(numbers) == 1 and numbers[0] > 0
    return bool(numbers) and numbers[-1] == 0


def _range_holds_zero(name: str, bounds: Sequence[Any]) -> bool:
    if name == "clamp_max":
        bounds = (None, *bounds)
    low, high = (*bounds, None, None)[:2]
    numbers = all(b is None or isinstance(b, (int, float)) for b in (low, high))
    return numbers and (low is None or low <= 0) and (high is None or high >= 0)


def _scales(param: ParamValue, ids: Tensor | None) -> bool:
    """Whether a zero in the parameter can zero one channel (or, where there are no channels, the whole tensor)."""
    if ids is None:
        return True
    varying = varying_dims(ids)
    offset = ids.dim() - len(param.shape)
    return bool(varying) and all(d >= offset and param.shape[d - offset] > 1 for d in varying)


def union_zeros(parts: Sequence[Zeros]) -> Zeros:
    """A sum is zero where all its terms are."""
    total: frozenset[AxisKey] = frozenset()
    for part in parts:
        if part is None:
            return None
        total |= part
    return total


def _param_zeros(walk: Walk, param: ParamValue, ids: Tensor | None) -> Zeros:
    """The axes of an added parameter, if zeroing them at a unit removes what it adds there; no gate is on a buffer."""
    return param_axes(param) if walk.is_parameter(param.name) and _scales(param, ids) else None


def _value_zeros(value: Value, ids: Tensor | None) -> Zeros:
    """What zeroes an added activation at a unit; nothing does if it is one channel spread over many."""
    if ids is None or not value.zeros:
        return value.zeros
    if value.ids is None:  # the same for all units, as noise times a learned strength
        return None
    theirs = value.ids.expand(ids.shape)
    return value.zeros if set(varying_dims(ids)) <= set(varying_dims(theirs)) else None


def param_axes(param: ParamValue) -> Zeros:
    """What zeroes a parameter at a unit; None if nothing does."""
    if not param.vanishes:
        return None
    return frozenset((param.name, d) for d in range(max(1, len(param.coords))))


def _holds(value: Value, ids: Tensor | None) -> bool:
    """Whether a factor that is zero makes the product zero at the units that it has, not at others."""
    if ids is None or value.ids is None or not varying_dims(value.ids):
        return True
    return bool(set(varying_dims(ids)) & set(varying_dims(value.ids.expand(ids.shape))))


def _aligned(shape: tuple[int, ...], to: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (len(to) - len(shape)) + tuple(shape)


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n


def _flat(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = shrink_constant_dims(a, b)
    return a.reshape(-1), b.reshape(-1)


@register_op(
    "aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout",
    "aten::native_dropout", "aten::contiguous", "aten::clone", "aten::alias", "aten::detach", "aten::to",
    "aten::_to_copy", "aten::type_as", "aten::lift_fresh_copy", "aten::bernoulli", "aten::requires_grad",
    "aten::_assert_tensor_metadata", "aten::zero", "aten::conj", "aten::_conj", "aten::resolve_conj",
    "aten::resolve_neg",
)  # fmt: skip
def unchanged(walk: Walk, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations that leave values and positions alone."""
    return x


@register_op("aten::prelu")
def prelu(walk: Walk, x: Value, weight: AnyValue) -> Value:
    """x * weight where x < 0, one weight per channel (dimension 1) or one for all."""
    if isinstance(weight, ParamValue) and weight.shape != (1,) and x.ids is not None:
        ids, vector = walk.channel_ids(x, 1), walk.param_ids(weight, 0)
        if ids is not None and vector is not None:
            walk.meet(ids, vector, FIXED_SIZE)
            walk.attribute("num_parameters", ids)
    return x


@register_op(
    "aten::zeros", "aten::zeros_like", "aten::new_zeros", "aten::ones", "aten::ones_like", "aten::new_ones",
    "aten::full", "aten::full_like", "aten::new_full", "aten::empty", "aten::empty_like", "aten::new_empty",
    "aten::rand", "aten::rand_like", "aten::randn", "aten::randn_like",
)  # fmt: skip
def created(walk: Walk, *args: Any, **kwargs: Any) -> Value:
    """Tensors that the forward pass makes itself; whether their size follows is for the dry run to find out."""
    is_zero = "zeros" in op_name(walk.target) or ("full" in op_name(walk.target) and 0 in args[1:])
    assert walk.node is not None
    if args and isinstance(args[0], ParamValue) and len(walk.out_shape) == 1:  # the bias of keys, like that of values
        return Value(walk.out_shape, walk.as_channels(args[0], 0).ids, frozenset() if is_zero else None)
    made = frozenset((walk.node, dim) for dim in range(-len(walk.out_shape), 0) if walk.out_shape[dim] > 1)
    return Value(walk.out_shape, None, frozenset() if is_zero else None, flexible=True, made=made)
