"""A latency table of a model, measured: its layers alone at many widths, and whole networks to calibrate them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial
from itertools import pairwise, product
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.conv import _ConvNd

from apical._memory_format import has_channels_last
from apical.budget import Budget, LatencyTable
from apical.budget._latency import LayerTable
from apical.errors import BudgetError, ResizeError
from apical.resizing import resize_
from apical.resizing._guards import check_arguments, refuse_wrapped
from apical.structure import Call, ExampleInputs, SizeAxis, Structure
from apical.structure._quiet import quiet_rng
from apical.timing._clock import least, time_ms
from apical.timing._layers import alike, axes_of, layer_inputs, layer_of, times_between, width_names

T = TypeVar("T")
Key = TypeVar("Key", bound=Hashable)


def from_first(measure: Callable[[], T]) -> T:
    """What the first process measures, in all of them: measured times never agree, and networks must.

    One process alone, or several that have no process group yet, measure by themselves.

    Args:
        measure: called in the first process only; its result must be plain (it is pickled on its way).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return measure()
    told: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told[0] = measure()
        except Exception as error:  # noqa: BLE001 - the others wait for an answer, whatever went wrong
            failure, told[1] = error, f"{type(error).__name__}: {error}"
    dist.broadcast_object_list(told, 0)
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise BudgetError(f"process 0 could not measure what all need: {told[1]}")
    found: T = told[0]
    return found


TIMED = (_ConvNd, nn.Linear)
# shares of a layer's widths at which it is timed: no halves and quarters, since multiples of 8 or 16 are faster than
# the widths between them, which most networks have
FRACTIONS = (0.15, 0.35, 0.65, 1.0)
# whole networks, by the share of the widths in their first and in their second half: the factors are fitted on every
# other one, those between check them
NETWORKS = ((1.0, 1.0), (0.8, 0.8), (0.55, 1.0), (0.55, 0.55), (1.0, 0.55), (0.3, 0.8), (0.65, 0.65), (0.8, 0.3),
            (0.35, 0.35), (0.22, 0.22), (0.15, 0.15))  # fmt: skip
PASSES = 3  # over all that is timed: a slow spell of the machine does not meet the same place in each


def table_for(
    model: nn.Module, structure: Structure, example_inputs: tuple[Any, ...], budget: Budget
) -> LatencyTable | None:
    """The table of layer times, if the budget is in time. Of several processes the first one measures."""
    if not any(target.kind == "latency" for target in budget.targets):
        return None
    found = from_first(lambda: measure_latency_table(model, structure, example_inputs).to_dict())
    return LatencyTable.from_dict(structure, found)


@torch.no_grad()
def measure_latency_table(model: nn.Module, structure: Structure, example_inputs: ExampleInputs) -> LatencyTable:
    """Measure a latency table on the machine and device of the model.

    Every convolution and linear layer is timed alone at a grid of widths; a few whole networks calibrate what lies
    between the layers, and as many check it.

    Args:
        model: the template; it is not changed.
        structure: of it.
        example_inputs: one call's arguments; the latency is that of this call, in eval mode.

    Raises:
        BudgetError: if the model has no layer that can be timed.
        ResizeError: the model is wrapped, or no module, or the structure is none.
        TraceError: what is given as inputs is no call.
    """
    call = Call.of(example_inputs)
    refuse_wrapped(model, ResizeError)
    check_arguments(structure, (), ResizeError)
    with quiet_rng():
        layers, between = _layer_tables(model, structure, call)
        whole = _fastest(partial(_network_times, model, structure, call))
    device = str(next(model.parameters()).device)
    raw = [LatencyTable(structure, tables, 0.0, 1.0, 0.0, device) for tables in (layers, between)]
    parts = np.array([[t.layers_ms(_widths(structure, *shares), ()) for t in raw] for shares in NETWORKS])
    measured = np.array([whole[shares] for shares in NETWORKS])
    offset, scale, rest = _calibrated(parts[::2], measured[::2])
    # what is done with a layer's output is added to the layer
    joined = tuple(
        replace(layer, ms=_rows(np.array(layer.ms) + rest / scale * np.array(then.ms)))
        for layer, then in zip(layers, between, strict=True)
    )
    error = np.abs((offset + parts @ [scale, rest]) / measured - 1)[1::2]
    return LatencyTable(structure, joined, offset, scale, float(np.max(error)), device)


def _fastest(measure: Callable[[], dict[Key, float]]) -> dict[Key, float]:
    """The least of several passes: what else the machine does only adds to a time."""
    return least([measure() for _ in range(PASSES)])


def _widths(structure: Structure, first: float, second: float) -> dict[str, int]:
    """Widths of a network, by the share that its first and its second half keep."""
    middle = len(structure.groups) / 2
    return {g.name: max(1, round((first if i < middle else second) * g.size)) for i, g in enumerate(structure.groups)}


def _network_times(model: nn.Module, structure: Structure, call: Call) -> dict[tuple[float, float], float]:
    """Milliseconds of the whole networks that calibrate and check a table."""
    found = {}
    for shares in NETWORKS:
        twin = copy.deepcopy(model)
        keep = {name: list(range(size)) for name, size in _widths(structure, *shares).items()}
        resize_(twin, structure, keep, ())
        found[shares] = time_ms(partial(call.run, twin.eval()), next(model.parameters()).device)
    return found


def _calibrated(parts: np.ndarray, measured: np.ndarray) -> tuple[float, float, float]:
    """Offset, and factors of the layers' times and of those between: least squares of relative errors, none negative.

    Args:
        parts: milliseconds of each network's layers, and of what lies between them.  # (networks, 2)
        measured: milliseconds of the whole.  # (networks,)
    """
    columns = np.column_stack([np.ones(len(measured)), parts]) / measured[:, None]
    best, smallest = np.zeros(3), np.inf
    for chosen in ([1], [0, 1], [1, 2], [0, 1, 2]):  # fewer first: more terms must earn it
        found, *_ = np.linalg.lstsq(columns[:, chosen], np.ones(len(measured)), rcond=None)
        missed = float(np.sum((columns[:, chosen] @ found - 1) ** 2))
        if (found >= 0).all() and found[chosen.index(1)] > 0 and missed < smallest - 1e-12:
            best, smallest = np.zeros(3), missed
            best[chosen] = found
    return float(best[0]), float(best[1]), float(best[2])


def _layer_tables(
    model: nn.Module, structure: Structure, call: Call
) -> tuple[tuple[LayerTable, ...], tuple[LayerTable, ...]]:
    """Milliseconds of every layer that can be timed, and of what follows until the next, in proportion to its output.

    Of layers that are alike one is timed.
    """
    axes, shapes, tables = axes_of(structure), layer_inputs(model, call, TIMED), list[LayerTable]()
    for path in shapes:
        module = model.get_submodule(path)
        names = width_names(module)
        full = [int(getattr(module, name)) for name in names]
        if getattr(module, "groups", 1) not in (1, full[0]):
            continue
        in_axis, out_axis = (axes.get(path, {}).get(n, SizeAxis(f)) for n, f in zip(names, full, strict=True))
        inputs, outputs = (_grid(f) if a.counts else (f,) for f, a in zip(full, (in_axis, out_axis), strict=True))
        tables.append(LayerTable(path, inputs, outputs, (), in_axis, out_axis))
    if not tables:
        raise BudgetError(
            "no convolution or linear layer of this model can change its width, so its latency cannot be steered; "
            "give a budget in MACs or parameters, such as '50% macs'"
        )
    alone = _fastest(partial(_layer_times, model, shapes, tables))
    then = _fastest(partial(times_between, model, call, TIMED, next(model.parameters()).device))
    layers, between = [], []
    for table in tables:
        rows = np.array([[alone[table.module, i, o] for o in table.outputs] for i in table.inputs])
        ms = np.maximum.accumulate(np.maximum.accumulate(rows, 0), 1)  # noise must not make wider cheaper
        layers.append(replace(table, ms=_rows(ms)))
        # what follows a layer goes with its output, whatever its input
        share = np.array(table.outputs) / table.outputs[-1]
        after = np.tile(then.get(table.module, 0.0) * share, (len(table.inputs), 1))
        between.append(replace(table, ms=_rows(after)))
    return tuple(layers), tuple(between)


def _layer_times(
    model: nn.Module, shapes: dict[str, tuple[int, ...]], tables: list[LayerTable]
) -> dict[tuple[str, int, int], float]:
    """Milliseconds of every layer at every point of its grid, by path, input and output width; alike ones once."""
    channels_last, known, found = has_channels_last(model), dict[tuple[object, ...], float](), {}
    for table in tables:
        module, shape = model.get_submodule(table.module), shapes[table.module]
        for i, o in product(table.inputs, table.outputs):
            found[table.module, i, o] = _layer_ms(module, shape, i, o, channels_last, known)
    return found


def _rows(values: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, values.tolist()))


def _layer_ms(module: nn.Module, shape: tuple[int, ...], ins: int, outs: int, channels_last: bool,
              known: dict[tuple[object, ...], float]) -> float:  # fmt: skip
    outs = ins if getattr(module, "groups", 1) > 1 else outs
    key = (*alike(module, shape), ins, outs)
    if key not in known:
        layer, x = layer_of(module, shape, ins, outs, channels_last)
        known[key] = time_ms(lambda: layer(x), x.device, at_least_s=0.003)
    return known[key]


def _grid(full: int) -> tuple[int, ...]:
    points = sorted({max(1, round(f * full)) for f in FRACTIONS})
    return tuple(p for p, q in pairwise([*points, full + 1]) if p != q)
