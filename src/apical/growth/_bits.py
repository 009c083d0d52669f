"""Bits as a part of growth: every layer's precision is grown and pruned while it trains, under a budget of bytes.

The model stays plain. Its weights are ordinary parameters that the user's optimizer steps; after every step, what
the optimizer made of a weight is handed to the weight behind it, and the weight becomes that, rounded: a sum of bit
planes, whose leading ones are the weight at each lower precision. What a plane is worth is measured as for units and
blocks: its mean squared gate product (`apical.growth._utility`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from apical.budget import Budget
from apical.errors import BudgetError, CheckpointError, ConfigError
from apical.growth._components import checked, widest_float
from apical.growth._growing_model import GrowingModel
from apical.growth._observer import StepWatch
from apical.growth._options import check_options
from apical.quantize import QuantizedTensor
from apical.quantize._packing import packed_size
from apical.quantize._planes import Rounded
from apical.quantize._precision import BitPrices, choose_bits, soft_gates
from apical.resizing._guards import unaveraged
from apical.resizing._install import lookup
from apical.resizing._selection import Selection
from apical.structure import CostModel, Structure
from apical.structure._analyse import tensor_specs
from apical.structure._cost import lies_in

KEPT = 0.5  # how much of the earlier estimate of a plane's worth stays when it is measured anew
CHOICES = 48  # of precisions, until they are settled
SHARPNESS = (2.0, 32.0)  # of the gates of planes, at the start and when they settle
FLOAT_BITS = 32  # of activations, and of weights that are not quantised


@dataclass(frozen=True)
class BitConfig:
    """How bits are grown. Times are fractions of what is left of training once widths are final.

    Attributes:
        precision: ``"mixed"``: each layer its own; ``"uniform"``: all the same, the most that fits.
        max_bits: of a code, sign included; training starts with so many.
        shrink_until: when the scheduled cost has come down to the budget.
        settle: when precisions are final.
        harden_until: when every weight is integers times a scale; from here they stay, and the rest trains on.
        ignore: module paths whose weights stay as they are (everything below them too).
    """

    precision: Literal["mixed", "uniform"] = "mixed"
    max_bits: int = 8
    shrink_until: float = 0.3
    settle: float = 0.5
    harden_until: float = 0.9
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_options(self, self._wrong_values)

    def _wrong_values(self) -> Iterator[str]:
        if not 3 <= self.max_bits <= 8:
            yield f"max_bits must be 3 to 8, got {self.max_bits}"
        if not 0 < self.shrink_until <= self.settle <= self.harden_until <= 1:
            yield "times must be in order, 0 < shrink_until <= settle <= harden_until <= 1"


def model_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are, shared ones once: what ``"10% size"`` is a share of."""
    return sum(lookup(model, n).numel() * lookup(model, n).element_size() for n in tensor_specs(model))


def quantizable(model: nn.Module, optimizers: Sequence[Optimizer], ignore: Sequence[str]) -> dict[str, int]:
    """Names of the weights of linear layers and convolutions that an optimizer trains, with the optimizer's number."""
    paths = [p for p, _ in model.named_modules()]
    for path in ignore:
        if path not in paths:
            raise ConfigError(f"bits: ignore names {path!r}, which is no module of the model; they are {paths[1:6]} …")
    held = {id(p): i for i, o in enumerate(optimizers) for group in o.param_groups for p in group["params"]}
    found = {}
    for name in tensor_specs(model):
        path, _, kind = name.rpartition(".")
        weight = lookup(model, name)
        trained = weight.requires_grad and id(weight) in held and weight.dtype == torch.float32
        layer = isinstance(model.get_submodule(path), (nn.Linear, _ConvNd)) and kind == "weight"
        if layer and trained and not any(lies_in(path, p) for p in ignore) and bool(weight.detach().any()):
            found[name] = held[id(weight)]
    return found


class BitGrowth:
    """The bits of a model whose widths are final.

    Args:
        growing: a plain model, whose weights become what its bit planes say, the user's optimizers, and copies, whose
            weights become the integers of the model's once those are final.
        structure: of the template.
        budget: limits of size and bit operations.
        full_bytes: of the template.
        config: the options.
        begin: epochs that are over, fractions of one included.
        epochs: of the whole training.
        steps_per_epoch: optimizer steps; None: as many as the last epoch had.

    Attributes:
        quantized: bits and scale of every quantised weight by name, once they are hard.

    Raises:
        BudgetError: two bits for every weight cost too much, or the most bits cost less than the budget.
        ConfigError: there is nothing to quantise.
    """

    def __init__(
        self, growing: GrowingModel, structure: Structure, budget: Budget, full_bytes: int, config: BitConfig,
        begin: float, epochs: int, steps_per_epoch: int | None,
    ) -> None:  # fmt: skip
        self.config, self._growing, self._model, self._optimizers = config, growing, growing.model, growing.optimizers
        model, device = growing.model, next(growing.model.parameters()).device
        self._held = quantizable(model, self._optimizers, config.ignore)
        if not self._held:
            raise ConfigError(
                "a budget of size or bitops needs weights to quantise: float32 weights of linear layers or "
                "convolutions that an optimizer trains; this model has none"
            )
        self._names = list(self._held)
        self._prices = _prices(model, self._names, structure, growing.selection, budget, full_bytes)
        self.most = self._prices.load([config.max_bits] * len(self._names))
        self._check(budget, final=begin > 0)
        self._begin, self._epoch, self._epochs = begin, int(begin), epochs
        self._per_epoch, self._count = steps_per_epoch, 0
        planes = config.max_bits - 1
        self._worth = np.zeros((len(self._names), planes))
        dtype = widest_float(device)
        self._squares = torch.zeros(len(self._names), planes, dtype=dtype, device=device)
        self._measured, self._chosen_at = 0, 0.0
        self._settled, self.quantized = False, dict[str, QuantizedTensor]()
        self._bits = {n: Rounded(lookup(model, n), planes) for n in self._names}
        self._gates = {n: torch.ones(planes, device=lookup(model, n).device) for n in self._names}
        self._contents: dict[str, Tensor] = {}
        self._last: dict[str, Tensor] = {}
        if config.precision == "uniform":
            fitting = [b for b in range(2, config.max_bits + 1) if self._prices.load([b] * len(self._names)) <= 1]
            self._settle([max(fitting, default=2)] * len(self._names))
        self._render(self._names)
        self._watch = StepWatch(self._optimizers, self._observe, self._stepped)

    def _check(self, budget: Budget, final: bool) -> None:
        """Refuse a budget that cannot be met or used up, or, where widths have been trained for it, warn."""
        least = self._prices.load([2] * len(self._names))
        problem = (
            f"two bits for every weight, the fewest there are, cost {least:.2%} of the budget {budget}; allow more"
        )
        if least > 1 and not final:
            raise BudgetError(problem)
        if least > 1:
            warnings.warn(f"{problem}. Training goes on with two bits.", stacklevel=4)
        if self.most < 0.99 and not final:
            raise BudgetError(
                f"{self.config.max_bits} bits for every weight, the most there are, cost only {self.most:.1%} of the "
                f"budget {budget}; ask for less"
            )

    # ---- time ------------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """How much of the time for bits is over, 0 to 1."""
        within = min(1.0, self._count / self._per_epoch) if self._per_epoch else 0.0
        now = min(max(self._begin, self._epoch) + within, self._epoch + 1)
        return (now - self._begin) / max(1e-9, self._epochs - self._begin)

    @torch.no_grad()
    def end_epoch(self) -> None:
        self._per_epoch = self._per_epoch or self._count or None
        self._epoch, self._count = self._epoch + 1, 0
        self._advance()
        self._render(self._names)

    def _advance(self) -> None:
        """Choose precisions, settle, harden, when it is time."""
        if self.quantized:
            return
        due = self.progress - self._chosen_at >= self.config.settle / CHOICES
        if not self._settled and self._measured and (due or self.progress >= self.config.settle):
            self._choose()
        if self._settled and self.progress >= self.config.harden_until:
            self._harden()

    # ---- steps -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _observe(self, index: int, _optimizer: Optimizer) -> None:
        """Gate products of all planes, before an optimizer steps; those that are not finite do not count."""
        if self._settled:
            return
        for row, name in enumerate(self._names):
            gradient = lookup(self._model, name).grad if self._held[name] == index else None
            if gradient is not None:
                products = (self._contents[name] * gradient).flatten(1).sum(1)
                squares = products.to(self._squares.dtype).square()
                self._squares[row] += torch.where(torch.isfinite(squares).all(), squares, 0.0)
        self._measured += index == 0

    @torch.no_grad()
    def _stepped(self, index: int, _optimizer: Optimizer) -> None:
        """Hand on what the optimizer did, and put into the weights what their bits say."""
        names = [n for n in self._names if self._held[n] == index]
        for name in names if not self.quantized else ():
            weight = lookup(self._model, name).detach().float()
            change = weight - self._last[name]
            self._bits[name].follow_(torch.where(torch.isfinite(change).all(), change, 0.0))
        if index == 0:
            self._count += 1
            self._advance()
        self._render(names)

    @torch.no_grad()
    def _render(self, names: Sequence[str]) -> None:
        for name in names:
            weight = lookup(self._model, name)
            if self.quantized:
                new = self._last[name]
            else:
                contents = self._bits[name].contents()
                new = (contents * self._gates[name].view(-1, *[1] * weight.dim())).sum(0)
                self._last[name] = new
                self._contents[name] = contents
            weight.detach().copy_(new)

    # ---- precision -------------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Take in what was measured, and let the planes that are worth most for their price have the budget."""
        mean = (self._squares / self._measured).double().cpu().numpy()
        self._worth = KEPT * self._worth + (1 - KEPT) * mean if self._worth.any() else mean
        self._squares.zero_()
        self._measured, self._chosen_at = 0, self.progress
        if self.progress >= self.config.settle:
            self._settle(self._integers())
            return
        # the cost comes down linearly to the budget, while the gates harden geometrically: soft early, when worth is
        # measured badly, and all but whole when they are rounded
        down = min(1.0, self.progress / self.config.shrink_until)
        load = self.most + (1.0 - self.most) * down if self.most > 1 else self.most
        first, last = SHARPNESS
        sharpness = first * (last / first) ** (self.progress / self.config.settle)
        for name, gates in zip(self._names, soft_gates(self._worth, self._prices, load, sharpness), strict=True):
            self._gates[name] = torch.tensor(gates, dtype=torch.float32, device=self._gates[name].device)

    def _integers(self) -> list[int]:
        two = [2] * len(self._names)
        return two if self._prices.load(two) > 1 else choose_bits(self._worth, self._prices)

    def _settle(self, bits: Sequence[int]) -> None:
        for name, count in zip(self._names, bits, strict=True):
            self._bits[name].keep_(count - 1)
            self._gates[name] = torch.ones(count - 1, device=self._gates[name].device)
        self._settled = True

    def _harden(self) -> None:
        found = {}
        for name in self._names:
            bits = self._bits[name]
            scale = float(bits.scale / 2**bits.planes)
            self._last[name] = bits.codes().float() * scale
            found[name] = QuantizedTensor(bits.planes + 1, scale)
            # a mean of past weights is no integer; it would be that of weights that stay, from now on
            for copy in self._growing.copies:
                lookup(unaveraged(copy), name).detach().copy_(self._last[name])
        self.quantized = found
        self._contents = {}

    @torch.no_grad()
    def finish(self) -> None:
        """Make the weights integers times a scale, if they are not yet, and let go of the optimizers."""
        self._watch.remove()
        if not self.quantized:
            if not self._settled:
                warnings.warn(
                    f"finish() after {self.progress:.0%} of the time for bits: precisions are chosen now, and the "
                    "weights are rounded without training after it. Give the Grower fewer epochs to end earlier.",
                    stacklevel=3,
                )
                self._settle(self._integers())
            self._harden()
            self._render(self._names)

    def bits(self) -> dict[str, float]:
        """Bits of the codes of every quantised weight now; between whole numbers until they are settled."""
        return {name: round(1 + float(self._gates[name].sum()), 2) for name in self._names}

    def load(self) -> float:
        """How much of the budget they use."""
        return self._prices.load([1 + float(self._gates[n].sum()) for n in self._names])

    # ---- state -----------------------------------------------------------------------------------------------------

    _PLAIN = ("_begin", "_epoch", "_count", "_per_epoch", "_measured", "_chosen_at", "_settled")

    def state_dict(self) -> dict[str, Any]:
        return {
            "config": _plain(self.config),
            "plain": {name: getattr(self, name) for name in self._PLAIN},
            "worth": torch.from_numpy(self._worth.copy()),
            "squares": self._squares.to("cpu", torch.float64, copy=True),
            "gates": {n: g.clone() for n, g in self._gates.items()},
            "quantizers": {n: q.state_dict() for n, q in self._bits.items()},
            "hard": bool(self.quantized),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if state is None or state["config"] != _plain(self.config):
            saved = "no bits" if state is None else state["config"]
            raise CheckpointError(f"the saved state grew bits with {saved}, this Grower with {_plain(self.config)}")
        for name in self._PLAIN:
            value = state["plain"][name]
            unknown = name == "_per_epoch" and value is None  # until an epoch is over, where the loop does not say
            setattr(self, name, None if unknown else checked(False if name == "_settled" else 0, value, name))
        self._worth = checked(torch.from_numpy(self._worth), state["worth"], "worth").double().cpu().numpy().copy()
        self._squares.copy_(checked(self._squares, state["squares"], "squares"))
        for name, quantizer in self._bits.items():
            quantizer.load_state_dict(state["quantizers"][name])
            if quantizer.planes >= self.config.max_bits:  # a code has a sign, too
                raise CheckpointError(f"{quantizer.planes} planes of {name} are saved, of {self.config.max_bits} bits")
            gates = self._gates[name].new_empty(quantizer.planes)
            self._gates[name] = checked(gates, state["gates"][name], "gates").to(gates, copy=True)
        self.quantized = {}
        if state["hard"]:
            self._harden()
        self._render(self._names)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_watch": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch = StepWatch(self._optimizers, self._observe, self._stepped)


def _plain(config: BitConfig) -> dict[str, Any]:
    return {**asdict(config), "ignore": list(config.ignore)}


def _prices(
    model: nn.Module, names: Sequence[str], structure: Structure, present: Selection, budget: Budget, full_bytes: int
) -> BitPrices:
    """What bits cost under each limit."""
    like = {n: (tuple(lookup(model, n).shape), lookup(model, n).dtype) for n in tensor_specs(model)}
    sizes = np.array([len(present.keep[g.name]) for g in structure.groups], dtype=np.int64)
    skipped = [i for i, b in enumerate(structure.blocks) if b.name in present.skip]
    blocks = [b.name for b in structure.blocks]
    fixed, per_bit = [], []
    for target in budget.targets:
        if target.kind == "size":
            whole = float(full_bytes)
            start = packed_size(like, dict.fromkeys(names, 8)) - sum(lookup(model, n).numel() for n in names)
            start += len(names)  # each layer's codes end at a whole byte
            costs = [lookup(model, n).numel() / 8 for n in names]
        else:
            whole = float(structure.macs() * FLOAT_BITS * FLOAT_BITS)
            paths = [n.rpartition(".")[0] for n in names]
            macs = [
                CostModel([t for t in structure.terms if set(t.modules) == {p}], sizes.tolist(), blocks)
                .price(sizes, skipped) for p in paths
            ]  # fmt: skip
            start = (structure.macs(present.keep, present.skip) - sum(macs)) * FLOAT_BITS**2
            costs = [m * FLOAT_BITS for m in macs]
        limit = target.amount * (whole if target.relative else 1)
        fixed.append(start / limit)
        per_bit.append(tuple(cost / limit for cost in costs))
    return BitPrices(tuple(fixed), tuple(per_bit))


def refuse_impossible_size(budget: Budget, structure: Structure, least: Mapping[str, int], full_bytes: int) -> None:
    """Stop before training where two bits a weight are too many even for the smallest network that can be grown."""
    smallest = structure.num_params(least, [b.name for b in structure.blocks]) / 4
    for target in budget.targets:
        limit = target.amount * (full_bytes if target.relative else 1)
        if target.kind == "size" and smallest > limit:
            raise BudgetError(
                f"no network meets the budget {target}: two bits for every weight of the smallest that can be grown "
                f"take {smallest:,.0f} of {limit:,.0f} bytes"
            )
