"""Products of two tensors, as in einsum: what their channels have to do with each other, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from apical.structure._atoms import compress, varying_dims
from apical.structure._findings import counted_macs
from apical.structure._rules_elementwise import FIXED_SIZE, SHARED, join_operands, zeros_of_product
from apical.structure._values import AnyValue, AxisKey, ParamValue, Value, Zeros, param_axis_along
from apical.structure._walk import Walk

OUTER = "meets other channels in an outer product (of which only one side can go)"


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
    if isinstance(b, ParamValue) and sizes.keys() <= set(out):
        return _scaled(walk, a, la, b, lb, out, shape)
    if isinstance(b, ParamValue):
        ids, zeros, axes = _with_weight(walk, a, la, b, lb, out)
    else:
        ids, zeros, axes = _with_activation(walk, a, la, b, lb, out)
    counts = not isinstance(b, ParamValue) or len(b.shape) > 1 or counted_macs(walk.current)  # a vector's seldom do
    if counts and not sizes.keys() <= set(out):  # what sums nothing is no product of matrices
        walk.cost(1, *(axes.get(label, n) for label, n in sizes.items()))
    return Value(shape, None if ids is None else _placed(*ids, out, shape), zeros)


def _scaled(walk: Walk, a: Value, la: str, w: ParamValue, lw: str, out: str, shape: tuple[int, ...]) -> Value:
    """A product that sums nothing: elementwise, as the steps of a state space model times their rates."""

    def laid(labels: str, t: Tensor) -> Tensor:
        t = t.permute([labels.index(label) for label in out if label in labels])
        return t[tuple(slice(None) if label in labels else None for label in out)]

    ids = None if a.ids is None else compress(laid(la, a.ids))
    left = Value(tuple(n if label in la else 1 for label, n in zip(out, shape, strict=True)), ids, a.zeros, a.flexible)
    coords = tuple(compress(laid(lw, c)) for c in w.coords)
    right = replace(w, shape=tuple(coords[0].shape), coords=coords, whole=False, data=None)
    joined = join_operands(walk, [left, right], shape=shape)
    if isinstance(joined, ParamValue):
        raise LookupError("a product with a constant")
    return Value(shape, joined, zeros_of_product(walk, [left, right], joined))


# ids with a label for each of their dimensions, the result's zeros, and the length of each label for the cost
Labelled = tuple[tuple[str, Tensor] | None, Zeros, dict[str, Tensor | int]]


def _placed(labels: str, ids: Tensor, out: str, shape: tuple[int, ...]) -> Tensor:
    """Ids over some labels as ids of the result, constant along the others."""
    order = sorted(range(len(labels)), key=lambda i: out.index(labels[i]))
    view = [n if label in labels else 1 for label, n in zip(out, shape, strict=True)]
    return ids.permute(order).reshape(view).expand(shape)


def _with_weight(walk: Walk, a: Value, la: str, w: ParamValue, lw: str, out: str) -> Labelled:
    each = [label for label in lw if label in la and label in out and w.shape[lw.index(label)] != 1]
    if len(each) == 1 and w.name in walk.turned:
        return _by_head(walk, a, la, w, lw, each[0])
    for label in each:  # a weight for each of several experts, whose number stays
        whole(walk, w, lw.index(label))
        if a.ids is not None:
            a = replace(a, ids=walk.held(a.ids, la.index(label), FIXED_SIZE))
    summed = [label for label in lw if label in la and label not in out]
    free = [label for label in lw if label not in la and label in out]
    moving = [] if a.ids is None else [la[d] for d in varying_dims(a.ids) if la[d] in summed]
    if len(lw) == 1 and summed:
        return _with_vector(walk, a, la, w, lw, bool(moving))
    if not summed or not free or len(moving) > 1:
        raise LookupError("a sum over several dimensions of a weight")
    summed.sort(key=lambda label: label not in moving)  # (heads, width) as two dimensions: heads are the units
    for label in summed[1:]:
        whole(walk, w, lw.index(label))
    free = walk.first_choice(w, free, lw, each)
    for label in free[1:]:  # (heads, width) as two dimensions of a weight: heads are the units, if they can be
        whole(walk, w, lw.index(label))
    if a.ids is not None and {la[d] for d in varying_dims(a.ids)} - set(summed):
        if not walk.atoms.all_frozen(a.ids):
            return _beside_channels(walk, a, la, w, summed[0])
        a = replace(a, ids=None)
    ids, out_key = weight_axis(walk, w, lw.index(free[0]), produce=True)
    columns, in_key = weight_axis(walk, w, lw.index(summed[0]))
    incoming = walk.channel_ids(a, la.index(summed[0]))
    read_columns(walk, a, incoming, columns, in_key)
    owner = w.name.rpartition(".")[0]
    walk.attribute("in_features", columns, path=owner)
    walk.attribute("out_features", ids, path=owner)
    return (free[0], ids), frozenset([out_key]), {free[0]: ids, summed[0]: columns}


def _with_vector(walk: Walk, a: Value, la: str, w: ParamValue, summed: str, over_channels: bool) -> Labelled:
    """A sum along one dimension with a learned weight for each position: of channels (a score), or of whole tensors."""
    if a.ids is not None and not over_channels and not walk.atoms.all_frozen(a.ids):
        return _beside_channels(walk, a, la, w, summed)
    columns, key = weight_axis(walk, w, 0)
    if over_channels and a.ids is not None and len(varying_dims(a.ids)) > 1:
        raise LookupError("a sum over one of several dimensions of channels")
    read_columns(walk, a, walk.channel_ids(a, la.index(summed)) if over_channels else None, columns, key)
    return None, None, {summed: columns}


def _by_head(walk: Walk, a: Value, la: str, w: ParamValue, lw: str, head: str) -> Labelled:
    """A weight for each of several heads, each of which mixes all of its own channels and goes as a whole (sLSTM)."""
    for label in lw.replace(head, ""):
        whole(walk, w, lw.index(label))
    heads, key = weight_axis(walk, w, lw.index(head), produce=True)
    read_columns(walk, a, walk.channel_ids(a, la.index(head)), heads, key)
    walk.choose(w, lw.index(head))
    return (head, heads), frozenset([key]), {head: heads}


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


def whole(walk: Walk, w: ParamValue, dim: int) -> None:
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
        a, b = (
            v if set(batch) & set(moving) or _counts(v, lv, batch) else _without_ids(v)
            for v, lv, moving in ((a, la, moving_a), (b, lb, moving_b))
        )
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
    """Heads against the only key head, without a dimension of heads: it stays, and ties only the width of each head.

    Where both sides hold channels of several layers one after the other (features of DLRM), these have equal widths.
    """
    free = [[label for label in _moving(v, lv) if label in out] for v, lv in ((a, la), (b, lb))]
    if all(free) and any(label not in out for label in _moving(a, la)) and set(la) & set(_moving(b, lb)) - set(out):
        for label in free[0]:
            a = walk.tied_along(a, la.index(label))
        for label in free[1]:
            b = walk.tied_along(b, lb.index(label))
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


def weight_axis(walk: Walk, weight: ParamValue, dim: int, produce: bool = False) -> tuple[Tensor, AxisKey]:
    """The atoms along one dimension of a weight (a vector even where it has size 1), and the axis of their gates."""
    found = param_axis_along(weight, dim)
    if found is None:
        if weight.shape[dim] != 1 or not weight.whole:
            raise LookupError("the weight is an expanded view")
        found = (dim, torch.zeros(1, dtype=torch.long, device="cpu"))
    pdim, indices = found
    axis = walk.produce(weight.name, pdim) if produce else walk.axis(weight.name, pdim)
    return axis[indices], walk.gate_of(weight.name, pdim)


def unmixed(walk: Walk, weight: ParamValue) -> ParamValue:
    """A weight of which several dimensions are flattened into one: the first holds channels, the others stay.

    As the inputs of a Kolmogorov-Arnold network, each with the weights of its splines.
    """
    coords = list(weight.coords)
    for dim in range(len(weight.shape)):
        for d in [d for d, c in enumerate(coords) if varying_dims(c) == [dim]][1:]:
            walk.atoms.freeze(walk.axis(weight.name, d), "is a dimension of a weight beside that of its channels")
            coords[d] = coords[d].new_zeros(()).expand_as(coords[d])
    return replace(weight, coords=tuple(coords))


def read_columns(walk: Walk, x: Value, incoming: Tensor | None, columns: Tensor, key: AxisKey) -> None:
    """Join the columns of a weight with the channels that they read."""
    if incoming is None:
        if not x.flexible:
            walk.atoms.freeze(columns, "reads a tensor without channels")
        return
    walk.meet(incoming, columns, "reads channels of which some are fixed")
    walk.read(columns, x.zeros, key)
