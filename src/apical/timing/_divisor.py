"""Which multiples of channels a device likes: training steps of single layers at neighbouring widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from apical._memory_format import has_channels_last
from apical.budget import Budget, rounding_step
from apical.budget._load import budget_share
from apical.structure import ExampleInputs, SizeAxis, Structure
from apical.structure._quiet import quiet_rng
from apical.timing._clock import time_step_ms
from apical.timing._latency_table import from_first
from apical.timing._layers import alike, axes_of, layer_inputs, layer_of, width_names

DIVISORS = (1, 2, 4, 8, 16, 32)
TOLERANCE = 0.05  # a smaller multiple is taken if steps take no more than this fraction longer than at the best one
LAYERS = 3  # kinds of layers that are measured: those that take the most time
ROUNDS = 3  # the widths of a layer are timed in turns, so often; the fastest counts

StepTimer = Callable[[nn.Module, Tensor], float]
"""Milliseconds of a training step (forward and backward) of a layer on an input that requires a gradient."""


@dataclass(frozen=True)
class DivisorChoice:
    """A multiple of channels, and what it was chosen by.

    Attributes:
        divisor: the choice.
        excess: for each candidate, by how much longer steps take than if all widths suited the device best; a fraction.
        layers: the layers that were measured.
        device: where.
    """

    divisor: int
    excess: tuple[tuple[int, float], ...]
    layers: tuple[str, ...]
    device: str

    def __str__(self) -> str:
        costs = ", ".join(f"{divisor}: {100 * excess:+.0f} %" for divisor, excess in self.excess)
        return f"divisor {self.divisor}, by steps of {', '.join(self.layers) or 'no layer'} on {self.device} ({costs})"


@dataclass(frozen=True)
class _Side:
    """A width of a layer that can move, and the size of the group that moves it."""

    name: str  # "in", "out", or "both" of a depthwise convolution
    size: int


@dataclass(frozen=True)
class _Kind:
    """Layers of one shape."""

    module: nn.Module
    path: str
    shape: tuple[int, ...]
    ins: int
    outs: int
    sides: tuple[_Side, ...]
    channels_last: bool
    count: int = 1


def divisor_for(model: nn.Module, structure: Structure, example_inputs: ExampleInputs, budget: Budget) -> DivisorChoice:
    """What `measure_divisor` finds near the widths of a budget. Of several processes the first one measures."""
    share = budget_share(budget, structure)
    return from_first(lambda: measure_divisor(model, structure, example_inputs, share))


def measure_divisor(
    model: nn.Module,
    structure: Structure,
    example_inputs: ExampleInputs,
    share: float,
    *,
    step_ms: StepTimer | None = None,
) -> DivisorChoice:
    """The smallest multiple of channels among 1, 2, 4, 8, 16, 32 at which this device is nearly as fast as at its best.

    A layer's time over its width is a line with steps. For a width B that suits the device,

        e_d = (t(B − d) + t(B + d)) / 2 − t(B)

    is what a width costs that is a multiple of d but not of 2d; whatever grows linearly with the width cancels out. Of
    the multiples of d one half are no multiples of 2d, so widths that are multiples of d cost, on average,
    E_d = (e_d + E_2d) / 2. The choice is the smallest d whose sum of E_d over the layers stays within 5 % of their time
    from the best. Groups of fewer than 2d channels are not rounded and count with E_1, so that a large multiple does
    not win by leaving small groups odd.

    Layers are timed one by one near the widths that uniform scaling to the budget gives, in the dtype and memory format
    of the model and under the autocast that is active; those that take the most time decide.

    Args:
        model: the template; it is not changed.
        structure: of it.
        example_inputs: one call's arguments, on the model's device. Its batch is what is measured, so give the batch
            of training.
        share: final cost as a fraction of the template's, in (0, 1]; see `apical.budget._load.budget_share`.
        step_ms: the timer; measures by wall clock if None.

    Returns:
        The choice. If no layer's width can move by more than one, it is 1.
    """
    step_ms = step_ms or time_step_ms
    with quiet_rng():
        kinds = _kinds(model, structure, example_inputs, share)
        timed = [(kind, _fastest(kind, [(kind.ins, kind.outs)], step_ms)[0]) for kind in kinds]
        timed.sort(key=lambda item: -item[0].count * item[1])
        chosen = timed[:LAYERS]
        excess = dict.fromkeys(DIVISORS, 0.0)
        for kind, _ in chosen:
            for side in kind.sides:
                own = _excess_ms(kind, side, step_ms)
                for divisor in DIVISORS:
                    excess[divisor] += kind.count * own[rounding_step(side.size, divisor)]
    whole = sum(kind.count * ms for kind, ms in chosen) or 1.0
    shares = tuple((divisor, ms / whole) for divisor, ms in excess.items())
    limit = min(value for _, value in shares) + TOLERANCE
    best = next(divisor for divisor, value in shares if value <= limit)
    device = str(next(model.parameters()).device)
    return DivisorChoice(best, shares, tuple(kind.path for kind, _ in chosen), device)


def _largest(size: int) -> int:
    """The largest candidate that rounds a group of this size."""
    return max(divisor for divisor in DIVISORS if rounding_step(size, divisor) == divisor)


def _excess_ms(kind: _Kind, side: _Side, step_ms: StepTimer) -> dict[int, float]:
    """E_d of one layer and side, by d; 0 at the largest multiple that the group allows."""
    smaller = [d for d in DIVISORS if d < _largest(side.size)]
    offsets = [0, *(sign * d for d in smaller for sign in (-1, 1))]
    times = dict(zip(offsets, _fastest(kind, [_moved(kind, side, o) for o in offsets], step_ms), strict=True))
    expected, found = 0.0, {_largest(side.size): 0.0}
    for d in reversed(smaller):
        expected = ((times[-d] + times[d]) / 2 - times[0] + expected) / 2
        found[d] = expected
    return found


def _moved(kind: _Kind, side: _Side, offset: int) -> tuple[int, int]:
    ins = kind.ins + offset if side.name in ("in", "both") else kind.ins
    return ins, kind.outs + offset if side.name in ("out", "both") else kind.outs


def _fastest(kind: _Kind, widths: Sequence[tuple[int, int]], step_ms: StepTimer) -> list[float]:
    """The fastest step at each pair of widths, taken in turns."""
    calls = [layer_of(kind.module, kind.shape, *pair, kind.channels_last) for pair in widths]
    rounds = [[step_ms(layer, x) for layer, x in calls] for _ in range(ROUNDS)]
    return [min(samples) for samples in zip(*rounds, strict=True)]


def _kinds(model: nn.Module, structure: Structure, example_inputs: ExampleInputs, share: float) -> list[_Kind]:
    """The layers whose widths can move, equal ones counted together, centred near their final widths."""
    shapes = layer_inputs(model, example_inputs, (_ConvNd, nn.Linear, nn.RNNBase))
    sizes = [group.size for group in structure.groups]
    final = [max(1, round(share**0.5 * size)) for size in sizes]  # MACs go with the square of the widths
    axes, channels_last = axes_of(structure), has_channels_last(model)
    found: dict[tuple[object, ...], _Kind] = {}
    for path, shape in shapes.items():
        ends = _ends(model.get_submodule(path), axes.get(path, {}), sizes, final)
        if ends is not None:
            kind = _Kind(model.get_submodule(path), path, shape, *ends, channels_last)
            key = (*alike(kind.module, shape), kind.ins, kind.outs, kind.sides)
            known = found.get(key)
            found[key] = kind if known is None else replace(known, count=known.count + 1)
    return list(found.values())


def _ends(
    module: nn.Module, axes: Mapping[str, SizeAxis], sizes: Sequence[int], final: Sequence[int]
) -> tuple[int, int, tuple[_Side, ...]] | None:
    """Input and output width near the final ones, and which of them can move; None if neither can."""
    if isinstance(module, nn.RNNBase) and (module.num_layers > 1 or module.bidirectional or module.proj_size):
        return None
    names = width_names(module)
    full = [int(getattr(module, name)) for name in names]
    groups = int(getattr(module, "groups", 1))
    depthwise = groups > 1
    if depthwise and not groups == full[0] == full[1]:
        return None
    ends, sides = [], []
    for name, width, end in zip(names, full, ("in", "out"), strict=True):
        axis = axes.get(name, SizeAxis(width))
        moves = axis.base == 0 and len(axis.counts) == 1 and axis.counts[0][1] == 1
        ends.append(axis.length(final))
        if moves:
            size = sizes[axis.counts[0][0]]
            largest = _largest(size)
            ends[-1] = max(largest, round(ends[-1] / largest) * largest)
            sides += [_Side("both" if depthwise else end, size)] if largest > 1 else []
    sides = sides[:1] if depthwise else sides
    return (ends[0], ends[1], tuple(sides)) if sides else None
