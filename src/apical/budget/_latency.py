"""Latency as data: a table of layer times over widths, interpolated, calibrated on whole networks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from apical.structure import SizeAxis, Structure
from apical.structure._cost import lies_in


@dataclass(frozen=True)
class LayerTable:
    """Milliseconds of one layer on a grid of (input width, output width)."""

    module: str  # module path
    inputs: tuple[int, ...]  # grid of input widths, ascending
    outputs: tuple[int, ...]  # grid of output widths, ascending
    ms: tuple[tuple[float, ...], ...]  # of the layer, and of what is done with its output  # (inputs, outputs)
    in_axis: SizeAxis  # the input width as a function of group sizes
    out_axis: SizeAxis  # the output width

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
        scale: by how much layers in a network take longer than alone.
        error: largest relative error on whole networks that were measured but not fitted.
        device: where it was measured.
    """

    structure: Structure
    layers: tuple[LayerTable, ...]
    offset: float
    scale: float
    error: float
    device: str

    def __repr__(self) -> str:
        return (
            f"<LatencyTable: {len(self.layers)} layers on {self.device}, {self.predict_ms():.3g} ms in all; "
            f"missed whole networks by at most {self.error:.0%}>"
        )

    def layers_ms(self, keep: Mapping[str, Any] | None, skip: Iterable[str]) -> float:
        """Sum of the layers' interpolated times."""
        sizes = [*self.structure.widths(keep).values()]
        gone = self.structure.left_out(skip)
        return sum(t.predict_ms(sizes) for t in self.layers if not any(lies_in(t.module, path) for path in gone))

    def predict_ms(self, keep: Mapping[str, Any] | None = None, skip: Iterable[str] = ()) -> float:
        """Milliseconds of one forward pass on the example inputs."""
        return self.offset + self.scale * self.layers_ms(keep, skip)

    @property
    def measurement(self) -> str:
        """How the milliseconds were found, in words."""
        threads = f" with {torch.get_num_threads()} thread(s)" if self.device.startswith("cpu") else ""
        return (
            f"one call on the example inputs, in eval mode, on {self.device}{threads}, as the machine was busy then; "
            f"the times of single layers are summed, which missed whole networks by at most {self.error:.0%}"
        )

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
