"""Rules for recurrent layers: a hidden unit is its state, its gate rows, its recurrent column and its readers.

Source: Wen et al., *Learning Intrinsic Sparse Structures within Long Short-Term Memory*, ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apical.structure._atoms import spread
from apical.structure._registry import op_name, register_op
from apical.structure._rules_elementwise import union_zeros
from apical.structure._values import AnyValue, ParamValue, Value, Zeros
from apical.structure._walk import Walk

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
STATE = "meets a recurrent state of fixed size"


def _units(walk: Walk, rows: ParamValue, gates: int) -> Tensor:
    """One id per hidden unit, its gate rows joined  # (hidden,)"""
    table = walk.axis(rows.name, 0).view(gates, -1)
    for g in range(1, gates):
        walk.atoms.join(table[0], table[g])
    return table[0]


EQUAL = (
    "torch takes an LSTM with as many hidden units as outputs for one without projection, so only the outputs "
    "(proj_size) can change"
)


@dataclass(frozen=True)
class _Layer:
    """What one direction of one layer writes: its hidden units, and what others see of them.

    Attributes:
        units: one id per hidden unit.
        seen: the ids of its outputs, the hidden units themselves unless they are projected.
        zeros: the axis of the projection whose zeroing hides an output; None without a projection.
    """

    units: Tensor
    seen: Tensor
    zeros: Zeros


def _layer(walk: Walk, x: Value | Tensor | None, zeros: Zeros, params: Sequence[Any], gates: int, steps: int,
           projection: Any = None) -> _Layer:  # fmt: skip
    """One direction of one layer; ``x`` is the value that it reads, or already its ids."""
    if not all(isinstance(p, ParamValue) and p.whole for p in (*params, *([projection] if projection else []))):
        raise LookupError("its weights are computed in the forward pass")
    w_ih, w_hh, *biases = params
    units = _units(walk, w_ih, gates)
    walk.producers[(w_ih.name, 0)] = gates
    for other in (w_hh, *biases):
        walk.meet(units, _units(walk, other, gates), STATE)
    layer = _Layer(units, units, None) if projection is None else _projected(walk, units, projection, steps)
    recurrent = walk.axis(w_hh.name, 1)
    walk.meet(layer.seen, recurrent, STATE)
    walk.read(recurrent, layer.zeros, (w_hh.name, 1))
    columns = walk.axis(w_ih.name, 1)
    incoming = walk.channel_ids(x, -1) if isinstance(x, Value) else x
    if incoming is None:
        walk.atoms.freeze(columns, "reads a tensor without channels")
    else:
        walk.meet(incoming, columns, "reads channels of which some are fixed")
        walk.read(columns, zeros, (w_ih.name, 1))
    for weight in (w_ih, w_hh):
        walk.cost(steps, walk.axis(weight.name, 0), walk.axis(weight.name, 1))
    return layer


def _projected(walk: Walk, units: Tensor, weight: ParamValue, steps: int) -> _Layer:
    """The outputs of a projection (proj_size), weight (outputs, hidden)."""
    columns, seen = walk.axis(weight.name, 1), walk.produce(weight.name, 0)
    walk.meet(units, columns, STATE)
    walk.read(columns, None, (weight.name, 1))
    walk.cost(steps, seen, columns)
    return _Layer(units, seen, frozenset([(weight.name, 0)]))


def _meet_states(walk: Walk, states: Sequence[AnyValue], units: Tensor) -> None:
    for state in states:
        if isinstance(state, ParamValue):  # a learned initial state
            state = walk.as_channels(state, -1)
        if state.ids is not None:
            ids = walk.channel_ids(state, -1)
            assert ids is not None
            walk.meet(units, ids, STATE)
        elif not state.flexible:
            walk.atoms.freeze(units, STATE)


@register_op("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")
def recurrent(walk: Walk, x: Value, states: Any, params: Any, has_biases: bool, num_layers: int, dropout: float,
              train: bool, bidirectional: bool, batch_first: bool) -> tuple[Value, ...]:  # fmt: skip
    """Stacked recurrent layers; torch gives all layers and directions of one module the same hidden size."""
    kind = op_name(walk.target).split("::")[-1]
    directions = 2 if bidirectional else 1
    per_layer = len(params) // (num_layers * directions)
    projects = per_layer - (4 if has_biases else 2)  # one more weight with proj_size
    steps = 1
    for n in x.shape[:-1]:
        steps *= n
    incoming: Value | Tensor | None = x
    zeros = x.zeros
    layers: list[_Layer] = []
    for start in range(0, len(params), per_layer * directions):
        both = []
        for first in range(start, start + per_layer * directions, per_layer):
            own = params[first : first + per_layer]
            both.append(_layer(walk, incoming, zeros, own[: per_layer - projects], GATES[kind], steps,
                               own[-1] if projects else None))  # fmt: skip
        layers += both
        incoming, zeros = torch.cat([one.seen for one in both]), union_zeros([one.zeros for one in both])
    top = layers[0]
    for other in layers[1:]:
        walk.meet(top.units, other.units, STATE)
        walk.meet(top.seen, other.seen, STATE)
    assert isinstance(incoming, Tensor)
    given = states if isinstance(states, (tuple, list)) else [states]
    _meet_states(walk, given[:1], top.seen)
    _meet_states(walk, given[1:], top.units)
    walk.attribute("hidden_size", top.units)
    if projects:
        walk.attribute("proj_size", top.seen)
        walk.atoms.freeze(top.units, EQUAL)
    walk.attribute("input_size", walk.axis(params[0].name, 1))
    shape = walk.out_shapes[0]
    output = Value(shape, spread(incoming, shape, len(shape) - 1), zeros)
    # the last outputs, and for an LSTM its cells; their shapes as documented, since PyTorch 2.6 records another
    batch = (x.shape[0 if batch_first else 1],) if len(x.shape) == 3 else ()
    last = [((num_layers * directions, *batch, len(ids)), ids) for ids in (top.seen, top.units)]
    return (output, *(Value(s, spread(ids, s, len(s) - 1)) for s, ids in last[: len(walk.out_shapes) - 1]))


@register_op("aten::lstm_cell", "aten::gru_cell", "aten::rnn_tanh_cell", "aten::rnn_relu_cell")
def cell(walk: Walk, x: AnyValue, states: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
    """One step of a recurrent layer."""
    if isinstance(x, ParamValue):  # a learned first input
        x = walk.as_channels(x, -1)
    kind = op_name(walk.target).split("::")[-1].removesuffix("_cell")
    steps = 1
    for n in x.shape[:-1]:
        steps *= n
    params = [p for p in (w_ih, w_hh, b_ih, b_hh) if p is not None]
    units = _layer(walk, x, x.zeros, params, GATES[kind], steps).units
    _meet_states(walk, states if isinstance(states, (tuple, list)) else [states], units)
    walk.attribute("hidden_size", units)
    walk.attribute("input_size", walk.axis(w_ih.name, 1))
    shapes = walk.out_shapes
    results = tuple(Value(s, spread(units, s, len(s) - 1)) for s in shapes)
    return results if isinstance(walk.current.meta.get("val"), (tuple, list)) else results[0]
