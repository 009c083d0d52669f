"""Rules for normalisation layers. Their affine is the preferred gate site of the channels that they write."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from apical.structure._atoms import is_constant, spread, varying_dims
from apical.structure._registry import op_name, register_op
from apical.structure._values import AnyValue, AxisKey, ParamValue, Value, Zeros
from apical.structure._walk import Walk

NAMES = {"aten::layer_norm": "LayerNorm", "aten::rms_norm": "RMSNorm"}
UNEQUAL = "the normalisation has a different number of channels"


def _affine(walk: Walk, x: Value, dim: int, tensors: list[Any], affine: list[Any]) -> Value:
    ids = walk.channel_ids(x, dim)
    shape = walk.out_shape
    if any(t is not None and not isinstance(t, ParamValue) for t in tensors):
        raise LookupError("its parameters are computed in the forward pass")
    for tensor in tensors:
        if tensor is None:
            continue
        vector = walk.param_ids(tensor, 0)
        vector = walk.axis(tensor.name, 0) if vector is None else vector
        if ids is None:
            if not x.flexible:
                walk.atoms.freeze(vector, "normalises a tensor without channels")
        else:
            walk.meet(ids, vector, UNEQUAL)
    walk.attribute("num_features", ids)
    walk.attribute("num_channels", ids)
    return Value(shape, None if ids is None else spread(ids, shape, dim), _affine_zeros(affine))


def _affine_zeros(affine: list[Any]) -> Zeros:
    if affine[0] is None:
        return None
    keys: set[AxisKey] = {(p.name, 0) for p in affine if isinstance(p, ParamValue)}
    return frozenset(keys)


@register_op("aten::batch_norm", "aten::instance_norm", "aten::_native_batch_norm_legit_no_training")
def batch_norm(walk: Walk, x: AnyValue, weight: Any, bias: Any, mean: Any, var: Any, *args: Any) -> AnyValue:
    """Statistics and affine per channel (dimension 1)."""
    if isinstance(x, ParamValue):
        return _standardised(walk, x, weight, [bias, mean, var])
    return _affine(walk, x, 1, [weight, bias, mean, var], [weight, bias])


def _standardised(walk: Walk, x: ParamValue, gain: Any, rest: list[Any]) -> ParamValue:
    """A weight whose rows are standardised in the forward pass, as those of BiT and NFNet: mean and variance of each.

    A row of zeros stays one.
    """
    rows = [d for d, coords in enumerate(x.coords) if varying_dims(coords) == [1]]
    if len(rows) != 1 or any(value is not None for value in rest):
        raise LookupError("a weight that is normed by other statistics than its own, or shifted")
    if gain is not None:
        scale = walk.param_ids(gain, 0) if isinstance(gain, ParamValue) else None
        if scale is None:
            raise LookupError("a weight whose scale is computed in the forward pass")
        walk.meet(walk.axis(x.name, rows[0]), scale, UNEQUAL)
    for d in range(len(x.coords)):
        if d != rows[0]:
            walk.average_weight(x.name, d, "mean")
    return replace(x, vanishes=False, data=None)


@register_op("aten::group_norm")
def group_norm(walk: Walk, x: Value, num_groups: int, weight: Any = None, bias: Any = None, *args: Any) -> Value:
    """Statistics over groups of neighbouring channels: a group of them goes as a whole."""
    ids = walk.channel_ids(x, 1)
    if ids is not None:
        if num_groups == 1 and ids.numel() > 1:
            walk.average(x, "normalised over all channels by group_norm with one group")
        else:
            table = ids.view(num_groups, -1)
            walk.meet_rows(table)
            walk.attribute("num_groups", table[:, 0])
    return _affine(walk, x, 1, [weight, bias], [weight, bias])


@register_op("aten::layer_norm", "aten::rms_norm")
def layer_norm(
    walk: Walk, x: AnyValue, normalized_shape: Any, weight: Any = None, bias: Any = None, *args: Any
) -> Value:
    """Statistics over the last dimensions: if they hold channels, removing one would change what the others see."""
    if isinstance(x, ParamValue):  # learned latents or queries
        x = walk.as_channels(x, -1)
    first = len(x.shape) - len(normalized_shape)
    for d in range(first, len(x.shape)):  # over the width of a head, heads stay units
        x = walk.tied_along(x, d)
    over_channels = x.ids is not None and any(not is_constant(x.ids, d) for d in range(first, len(x.shape)))
    if over_channels and walk.resize_streams and len(normalized_shape) == 1 and isinstance(weight, ParamValue):
        walk.average(x, "")
        return _affine(walk, x, first, [weight, bias], [weight, bias])
    if over_channels:
        why = "without one of them the statistics change"
        if walk.resize_streams:
            why = "over several dimensions or without a weight, so that its size is fixed in normalized_shape"
        walk.freeze_value(x, f"normalised over channels ({NAMES[op_name(walk.target)]}): {why}")
    for p in (weight, bias):
        walk.freeze_value(p, "belongs to a normalisation over channels")
    zeros = _affine_zeros([weight, bias])
    if x.ids is None or over_channels or zeros is None:
        return Value(walk.out_shape, x.ids, zeros)
    return Value(walk.out_shape, x.ids, None)


@register_op("aten::_weight_norm")
def weight_norm(walk: Walk, direction: AnyValue, length: AnyValue, dim: int = 0) -> ParamValue:
    """direction * length / |direction|, the norm over all dimensions but ``dim`` (of ``torch.nn.utils.weight_norm``).

    What goes along ``dim`` has its gate in the length, since a direction of zero has no norm. Along the others a gate
    of zero in the direction leaves it out of the norm, as its absence does, and no gate elsewhere does.
    """
    if not isinstance(direction, ParamValue) or not isinstance(length, ParamValue) or not direction.whole:
        raise LookupError("its parameters are computed in the forward pass")
    for d in range(len(direction.shape)):
        if d != dim:
            walk.couple(direction.name, d)
        elif length.shape[d] > 1:
            walk.meet(walk.axis(direction.name, d), walk.axis(length.name, d), UNEQUAL)
            walk.gates[direction.name, d] = (length.name, d)
    return replace(direction, vanishes=False)


@register_op("aten::native_layer_norm", "aten::native_group_norm", "aten::local_response_norm")
def other_norm(walk: Walk, x: Value, *args: Any) -> Any:
    """Norms that come only from hand-written calls."""
    walk.freeze_value(x, f"normalised over channels by {walk.target}")
    return (Value(walk.out_shape, x.ids), *(Value(s) for s in walk.out_shapes[1:]))
