"""Measured latency: a table of layer times over widths, interpolated, calibrated on whole networks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from apical.errors import BudgetError
from apical.structure import Call, ExampleInputs, SizeAxis, Structure, lies_in

FRACTIONS = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class LayerTable:
    """Milliseconds of one layer on a grid of (input width, output width).

    Attributes:
        module: module path.
        inputs: grid of input widths, ascending.
        outputs: grid of output widths, ascending.
        ms: measured medians, made monotone  # (inputs, outputs)
        in_axis: the input width as a function of group sizes.
        out_axis: the output width.
    """

    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]
    in_axis: SizeAxis
    out_axis: SizeAxis

    def predict_ms(self, sizes: Sequence[int]) -> float:
        """Bilinear interpolation at the widths that these group sizes give."""
        table = np.asarray(self.ms)
        column = [float(np.interp(self.out_axis.length(sizes), self.outputs, row)) for row in table]
        return float(np.interp(self.in_axis.length(sizes), self.inputs, column))


@dataclass(frozen=True)
class LatencyTable:
    """Predicts the latency of a resized network: ``offset + scale * sum of its layers' times``.

    Attributes:
        structure: the template.
        layers: one table per convolution and linear layer.
        offset: milliseconds that do not depend on the widths.
        scale: what normalisation, activations and memory traffic add to the layers' own times.
        error: largest relative error on whole networks that were measured but not fitted.
        device: where it was measured.
    """

    structure: Structure
    layers: tuple[LayerTable, ...]
    offset: float
    scale: float
    error: float
    device: str

    def layers_ms(self, keep: Mapping[str, Any] | None, skip: Iterable[str]) -> float:
        """Sum of the layers' interpolated times."""
        sizes = [_size((keep or {}).get(g.name, g.size)) for g in self.structure.groups]
        gone = self.structure.left_out(skip)
        return sum(t.predict_ms(sizes) for t in self.layers if not any(lies_in(t.module, path) for path in gone))

    def predict_ms(self, keep: Mapping[str, Any] | None = None, skip: Iterable[str] = ()) -> float:
        """Milliseconds of one forward pass on the example inputs."""
        return self.offset + self.scale * self.layers_ms(keep, skip)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable copy without the structure."""
        layers = [asdict(layer) for layer in self.layers]
        rest = {name: getattr(self, name) for name in ("offset", "scale", "error", "device")}
        return {"layers": layers, **rest}

    @staticmethod
    def from_dict(structure: Structure, data: Mapping[str, Any]) -> LatencyTable:
        """The inverse of `to_dict`, also after a round trip through JSON."""
        layers = tuple(
            LayerTable(
                d["module"],
                tuple(d["inputs"]),
                tuple(d["outputs"]),
                tuple(tuple(row) for row in d["ms"]),
                SizeAxis.from_dict(d["in_axis"]),
                SizeAxis.from_dict(d["out_axis"]),
            )
            for d in data["layers"]
        )
        return LatencyTable(structure, layers, data["offset"], data["scale"], data["error"], data["device"])


def _size(kept: Any) -> int:
    return int(kept) if isinstance(kept, Integral) else len(kept)


def time_ms(run: Callable[[], object], repeats: int = 7, at_least_s: float = 0.01) -> float:
    """Median wall time of a call in milliseconds, after warming up; each sample lasts at least ``at_least_s``."""
    run()
    start = time.perf_counter()
    run()
    calls = max(1, int(at_least_s / max(time.perf_counter() - start, 1e-7)))
    samples = []
    for _ in range(repeats):
        _synchronise()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _synchronise()
        samples.append(1000 * (time.perf_counter() - start) / calls)
    return statistics.median(samples)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.no_grad()
def measure_latency_table(
    model: nn.Module,
    structure: Structure,
    example_inputs: ExampleInputs,
    resized: Callable[[Mapping[str, list[int]], tuple[str, ...]], nn.Module],
) -> LatencyTable:
    """Measure a latency table on the machine and device of the model.

    Every convolution and linear layer is timed alone at a grid of widths; a few whole networks calibrate what lies
    between the layers, and as many check it.

    Args:
        model: the template.
        structure: its structure.
        example_inputs: one call's arguments; the latency is that of this call, in eval mode.
        resized: builds a copy of the model for kept positions and skipped blocks.

    Raises:
        BudgetError: if the model has no layer that can be timed.
    """
    call = Call.of(example_inputs)
    calls = layer_inputs(model, call)
    known: dict[tuple[object, ...], float] = {}  # layers of one kind are measured once
    tables = [
        t for path, shape in calls.items() if (t := _layer_table(model, path, shape, structure, known)) is not None
    ]
    if not tables:
        raise BudgetError(
            "no convolution or linear layer of this model can change its width, so its latency cannot be steered; "
            "give a budget in MACs or parameters, such as '50% macs'"
        )
    raw = LatencyTable(structure, tuple(tables), 0.0, 1.0, 0.0, str(next(model.parameters()).device))
    points = []
    for fraction in (1.0, 0.8, 0.65, 0.5, 0.35, 0.25, 0.15):
        keep = {g.name: list(range(max(1, round(fraction * g.size)))) for g in structure.groups}
        run = partial(call.run, resized(keep, ()).eval())
        points.append((raw.layers_ms(keep, ()), time_ms(run)))
    x, y = (np.array(v) for v in zip(*points, strict=True))
    flat = np.ptp(x[::2]) <= 1e-6 * np.max(x)  # the clock saw no difference between widths: no line to fit
    scale, offset = (0.0, 0.0) if flat else np.polyfit(x[::2], y[::2], 1)
    if offset < 0 or scale <= 0:  # noise: nothing costs less than its layers
        scale, offset = float(np.median(y[::2] / x[::2])), 0.0
    error = float(np.max(np.abs(offset + scale * x[1::2] - y[1::2]) / y[1::2]))
    return LatencyTable(structure, tuple(tables), float(offset), float(scale), error, raw.device)


def layer_inputs(
    model: nn.Module, example_inputs: ExampleInputs, kinds: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear)
) -> dict[str, tuple[int, ...]]:
    """Input shape of every layer of these kinds in one call."""
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, kinds):

            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                shapes[path] = tuple(next(iter((*args, *kwargs.values()))).shape)

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    training = {module: module.training for module in model.modules()}
    try:
        Call.of(example_inputs).run(model.eval())
    finally:
        for module, mode in training.items():
            module.training = mode
        for handle in handles:
            handle.remove()
    return shapes


def _layer_table(
    model: nn.Module, path: str, shape: tuple[int, ...], structure: Structure, known: dict[tuple[object, ...], float]
) -> LayerTable | None:
    module = model.get_submodule(path)
    by_attribute = {a.attribute: a.axis for a in structure.attributes if a.module == path}
    linear = isinstance(module, nn.Linear)
    names = ("in_features", "out_features") if linear else ("in_channels", "out_channels")
    full = (int(getattr(module, names[0])), int(getattr(module, names[1])))
    in_axis, out_axis = (by_attribute.get(n, SizeAxis(f)) for n, f in zip(names, full, strict=True))
    groups = 1 if linear else int(getattr(module, "groups", 1))
    if groups not in (1, full[0]):
        return None
    inputs, outputs = (_grid(f) if a.counts else (f,) for f, a in ((full[0], in_axis), (full[1], out_axis)))
    rows = []
    for i in inputs:
        rows.append([_time_layer(module, shape, i, o if groups == 1 else i, groups, known) for o in outputs])
    ms = np.maximum.accumulate(np.maximum.accumulate(np.array(rows), 0), 1)  # noise must not make wider cheaper
    return LayerTable(path, inputs, outputs, tuple(map(tuple, ms.tolist())), in_axis, out_axis)


def _grid(full: int) -> tuple[int, ...]:
    points = sorted({max(1, round(f * full)) for f in FRACTIONS})
    return tuple(p for p, q in pairwise([*points, full + 1]) if p != q)


def _time_layer(module: nn.Module, shape: tuple[int, ...], ins: int, outs: int, groups: int,
                known: dict[tuple[object, ...], float]) -> float:  # fmt: skip
    weight = next(module.parameters())
    kind = tuple(getattr(module, a, None) for a in ("kernel_size", "stride", "padding", "dilation", "transposed"))
    key = (type(module), kind, shape[:1] + shape[2:] if isinstance(module, _ConvNd) else shape[:-1], ins, outs, groups)
    if key in known:
        return known[key]
    with torch.device("cpu"):  # the layer is drawn there, whatever the default device, and then moved
        if isinstance(module, nn.Linear):
            layer: nn.Module = nn.Linear(ins, outs, module.bias is not None)
            shape = (*shape[:-1], ins)
        elif isinstance(module, _ConvNd):
            spatial = len(module.kernel_size)
            kwargs: dict[str, Any] = {"stride": module.stride, "padding": module.padding, "dilation": module.dilation}
            kwargs |= {"output_padding": module.output_padding} if module.transposed else {}
            layer = type(module)(ins, outs, module.kernel_size, groups=ins if groups > 1 else 1,
                                 bias=module.bias is not None, **kwargs)  # fmt: skip
            shape = (*shape[: -spatial - 1], ins, *shape[-spatial:])
    layer = layer.to(weight.device, weight.dtype)
    x = torch.randn(shape, device=weight.device, dtype=weight.dtype)
    known[key] = time_ms(lambda: layer(x), repeats=3, at_least_s=0.003)
    return known[key]
