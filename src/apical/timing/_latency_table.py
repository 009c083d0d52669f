"""A latency table of a model, measured: its layers alone at many widths, and whole networks to calibrate them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.conv import _ConvNd

from apical._memory_format import has_channels_last
from apical.budget import Budget, LatencyTable
from apical.budget._latency import LayerTable
from apical.errors import BudgetError
from apical.resizing import resize_
from apical.structure import Call, ExampleInputs, SizeAxis, Structure
from apical.structure._quiet import quiet_rng
from apical.timing._clock import time_ms
from apical.timing._layers import alike, axes_of, layer_inputs, layer_of, width_names

T = TypeVar("T")


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


FRACTIONS = (0.125, 0.25, 0.5, 1.0)  # of a layer's widths, at which it is timed
NETWORKS = (1.0, 0.8, 0.65, 0.5, 0.35, 0.25, 0.15)  # of all widths: every other one calibrates, those between check


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
    """
    call, device = Call.of(example_inputs), next(model.parameters()).device
    with quiet_rng():
        tables = _layer_tables(model, structure, call)
        raw = LatencyTable(structure, tables, 0.0, 1.0, 0.0, str(device))
        points = []
        for fraction in NETWORKS:
            keep = {g.name: list(range(max(1, round(fraction * g.size)))) for g in structure.groups}
            twin = copy.deepcopy(model)
            resize_(twin, structure, keep, ())
            points.append((raw.layers_ms(keep, ()), time_ms(partial(call.run, twin.eval()), device)))
    x, y = (np.array(v) for v in zip(*points, strict=True))
    flat = np.ptp(x[::2]) <= 1e-6 * np.max(x)  # the clock saw no difference between widths: no line to fit
    scale, offset = (0.0, 0.0) if flat else np.polyfit(x[::2], y[::2], 1)
    if offset < 0 or scale <= 0:  # noise: nothing costs less than its layers
        scale, offset = float(np.median(y[::2] / x[::2])), 0.0
    error = float(np.max(np.abs(offset + scale * x[1::2] - y[1::2]) / y[1::2]))
    return LatencyTable(structure, tables, float(offset), float(scale), error, raw.device)


def _layer_tables(model: nn.Module, structure: Structure, call: Call) -> tuple[LayerTable, ...]:
    """One for every layer that can be timed; those that are alike are measured once."""
    axes, channels_last = axes_of(structure), has_channels_last(model)
    known: dict[tuple[object, ...], float] = {}
    found = []
    for path, shape in layer_inputs(model, call, (_ConvNd, nn.Linear)).items():
        module = model.get_submodule(path)
        names = width_names(module)
        full = [int(getattr(module, name)) for name in names]
        if getattr(module, "groups", 1) not in (1, full[0]):
            continue
        in_axis, out_axis = (axes.get(path, {}).get(n, SizeAxis(f)) for n, f in zip(names, full, strict=True))
        inputs, outputs = (_grid(f) if a.counts else (f,) for f, a in zip(full, (in_axis, out_axis), strict=True))
        rows = [[_layer_ms(module, shape, i, o, channels_last, known) for o in outputs] for i in inputs]
        ms = np.maximum.accumulate(np.maximum.accumulate(np.array(rows), 0), 1)  # noise must not make wider cheaper
        found.append(LayerTable(path, inputs, outputs, tuple(map(tuple, ms.tolist())), in_axis, out_axis))
    if not found:
        raise BudgetError(
            "no convolution or linear layer of this model can change its width, so its latency cannot be steered; "
            "give a budget in MACs or parameters, such as '50% macs'"
        )
    return tuple(found)


def _layer_ms(module: nn.Module, shape: tuple[int, ...], ins: int, outs: int, channels_last: bool,
              known: dict[tuple[object, ...], float]) -> float:  # fmt: skip
    outs = ins if getattr(module, "groups", 1) > 1 else outs
    key = (*alike(module, shape), ins, outs)
    if key not in known:
        layer, x = layer_of(module, shape, ins, outs, channels_last)
        known[key] = time_ms(lambda: layer(x), x.device, repeats=3, at_least_s=0.003)
    return known[key]


def _grid(full: int) -> tuple[int, ...]:
    points = sorted({max(1, round(f * full)) for f in FRACTIONS})
    return tuple(p for p, q in pairwise([*points, full + 1]) if p != q)
