"""Pushing channel identities through an exported graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from apical.structure._atoms import Atoms, compress, drop_constant_dims, is_constant, shrink_constant_dims, varying_dims
from apical.structure._decompose import decomposed
from apical.structure._findings import Crossing, RawTerm, Reading, Rectangle, counted_macs
from apical.structure._nodes import (
    PARTIAL_VIEWS,
    is_unshared,
    is_view,
    leaves_of,
    node_modules,
    shapes_of,
    unused_nodes,
    written_dims,
    written_part,
)
from apical.structure._registry import is_pointwise, mutates_first_argument, op_name, op_rule
from apical.structure._values import (
    AnyValue,
    AxisKey,
    MadeAxis,
    ParamValue,
    Value,
    Zeros,
    param_axis_along,
    whole_parameter,
)

NOT_A_CHANNEL = (
    "meets a tensor whose units lie along another dimension, as after a linear layer over height, width or tokens; "
    "only a layer over the channels of both would let them go together"
)
WRITTEN = "the forward pass writes into a slice of it"


class Walk:
    """The state of one pass over a graph, and the vocabulary in which rules are written."""

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[str, str],
        resize_streams: bool = False,
        turned: frozenset[str] = frozenset(),
    ) -> None:
        self.model = model
        self.turned = turned  # weights whose last free dimension holds the units, not the first
        self.chosen: dict[str, int] = {}  # of a weight with several free dimensions, that which holds the units
        self.each: set[str] = set()  # weights that are one for each of several heads or experts
        self.resize_streams = resize_streams
        self.canonical = dict(names)
        self.atoms = Atoms()
        self.axes: dict[AxisKey, Tensor] = {}
        self.producers: dict[AxisKey, int] = {}  # with the rows of a channel: one, or one for each gate
        self.readings: list[Reading] = []
        self.columns: dict[AxisKey, None] = {}  # weight axes that read channels
        self.gates: dict[AxisKey, AxisKey] = {}  # of weight axes that may not be zero themselves: what zeroes them
        self.products: dict[str, tuple[AxisKey, ...]] = {}  # of a product of two weights: whose axes its own are
        self.summands: dict[str, set[str]] = {}  # of a sum of weights, by the one that stands for it: the others
        self.together: dict[AxisKey, set[AxisKey]] = {}  # of a sum of weights: what must be zero as well for it to be
        self.coupled: set[AxisKey] = set()  # weight axes over which the weight's own norm is taken
        self.rectangles: list[Rectangle] = []
        self.crossings: list[Crossing] = []
        self.terms: list[RawTerm] = []
        self.attributes: dict[tuple[str, str], Tensor] = {}
        self.splits: list[tuple[str, Tensor]] = []  # (module, ids after the view)
        self.summed: list[tuple[Tensor, set[frozenset[int]]]] = []  # of additions: atoms, each operand's origins
        self.averaged: list[Tensor] = []  # atoms over which a mean or variance is taken, where they may go
        self.made: dict[MadeAxis, Tensor] = {}  # the ids that each dimension of a created tensor met first
        self.mixed: list[tuple[Tensor, str]] = []  # ids that an operation joined along their own dimension, and which
        self.notes: list[str] = []
        self.untracked: list[tuple[str, int, str, fx.Node]] = []  # (module, channels, reason, operation) without atoms
        self.values: dict[fx.Node, Any] = {}
        self.computed: dict[fx.Node, Any] = {}  # as computed, whatever was written into it later
        self.parts: dict[tuple[fx.Node, int], dict[int, tuple[int, Value]]] = {}  # written so far: start -> (end, part)
        self.filled: set[fx.Node] = set()  # created tensors that have the channels of what was written into them
        self.node: fx.Node | None = None

    # ---- running -------------------------------------------------------------------------------------------------

    def run(self, graph: fx.Graph, sources: Mapping[str, str]) -> None:
        """Visit every node; ``sources`` maps placeholders to tensor names."""
        unused = unused_nodes(graph)
        for node in graph.nodes:
            self.node = self.atoms.node = node
            if node in unused and not (counted_macs(node) or self._combines(node) or is_view(node)):
                self.values[node] = self.fixed(node)  # what nobody reads ties nothing
            elif node.op == "placeholder":
                self.values[node] = self._source(node, sources)
            elif node.op == "get_attr":
                inner = getattr(graph.owning_module, str(node.target), None)
                self.values[node] = inner if isinstance(inner, fx.GraphModule) else self.fixed(node)
            elif node.op == "call_function" and isinstance(node.meta.get("val"), int):
                self.values[node] = node.meta["val"]  # a size
            elif node.op == "call_function":
                self.values[node] = self.computed[node] = self._call(node)
        self.atoms.node = None
        self._freeze_parts()

    def _combines(self, node: fx.Node) -> bool:
        """Whether an operation needs equal channels of several tensors, which it does whether or not anybody reads it.

        As the last of a WaveNet's residual sums: what is skipped at its end is computed all the same.
        """
        with_ids = [n for n in node.all_input_nodes if getattr(self.values[n], "ids", None) is not None]
        return len(with_ids) > 1 and is_pointwise(node.target)

    def _source(self, node: fx.Node, sources: Mapping[str, str]) -> Any:
        name = sources.get(node.name)
        if name is not None:
            tensor = self.tensor(self.canonical[name])
            known = tensor.dtype in (torch.long, torch.int32, torch.bool, torch.uint8) and not tensor.is_meta
            data = tensor.cpu() if known else None
            return whole_parameter(self.canonical[name], tuple(tensor.shape), data)
        return self.fixed(node)

    def _call(self, node: fx.Node) -> Any:
        args: Any = fx.node.map_arg(node.args, lambda n: self.values[n])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: self.values[n])
        if node.target is operator.getitem:
            return args[0][args[1]]
        inner = [i for i, a in enumerate(args) if isinstance(a, fx.GraphModule)]
        if len(inner) == 1:  # a region under torch.no_grad or autocast
            return self._inline(args[inner[0]], args[inner[0] + 1 :])
        rule = op_rule(node.target)
        if rule is None:
            parts = decomposed(node)
            if parts is None:
                return self.unknown(node, args, kwargs)
            return self._inline(parts[0], [self.values[n] for n in parts[1]], node)
        terms = len(self.terms)
        try:
            result = rule(self, *args, **kwargs)
            writes = mutates_first_argument(node.target) and op_name(node.target) != "aten::zero"  # zeros tie nothing
            if writes and isinstance(node.args[0], fx.Node):
                self._overwrite(node.args[0], result)
        except LookupError as problem:  # a case that the rule says it cannot express
            del self.terms[terms:]
            return self.unknown(node, args, kwargs, str(problem))
        except Exception as problem:  # noqa: BLE001 - a rule that fails must freeze, not break tracing
            del self.terms[terms:]
            said = str(problem) or "a case that its rule does not know"
            return self.unknown(node, args, kwargs, f"{type(problem).__name__}: {said}")
        return result

    def _inline(self, region: fx.GraphModule, operands: Sequence[Any], of: fx.Node | None = None) -> Any:
        """Walk through a nested graph in place of the operation that calls it, or consists of it (``of``)."""
        outer = self.node
        for node in region.graph.nodes:
            if node.op == "placeholder":
                self.values[node], operands = operands[0], operands[1:]
            elif node.op == "call_function":
                self.node, self.atoms.node = node, of or node
                self.values[node] = self.computed[node] = self._call(node)
            elif node.op == "output":
                self.node = self.atoms.node = outer
                return fx.node.map_arg(node.args[0], lambda n: self.values[n])
        raise LookupError("a nested graph without output")

    def _overwrite(self, written: fx.Node, result: Any) -> None:
        """After an in-place operation: later uses of what it wrote see its result."""
        alone = is_unshared(written)
        placed = not alone and isinstance(result, Value)
        if alone or (placed and (self._put_beside(written, result) or self._put_together(written, result))):
            pass
        elif op_name(written.target) in PARTIAL_VIEWS:
            for node in (written, *written.all_input_nodes):
                self.freeze_value(self.values[node], WRITTEN)
            self.freeze_value(result, WRITTEN)
        self.values[written] = result

    def _put_beside(self, view: fx.Node, result: Value) -> bool:
        """Give a created tensor the channels that are written into a part of it, if that part has all of them.

        As the modes that a Fourier layer keeps are written into zeros, or the steps of a loop into their places.
        """
        found = written_dims(view)
        if found is None or result.ids is None or any(node is found[0] for node, _ in self.parts):
            return False
        base, whole = found
        value = self.values[base]
        if not isinstance(value, Value) or not (value.flexible if value.ids is None else base in self.filled):
            return False
        moving = varying_dims(result.ids)
        if not moving or not set(moving) <= whole.keys():
            return False
        table = self.table(result, moving)
        assert table is not None
        placed = {whole[d]: n for d, n in zip(moving, table.shape, strict=True)}
        ids = table.reshape([placed.get(d, 1) for d in range(len(value.shape))]).expand(value.shape)
        if value.ids is not None:
            old, new = shrink_constant_dims(value.ids, ids)
            self.meet(old.reshape(-1), new.reshape(-1), "is written beside fixed positions")
        zeros = None if value.zeros is None or result.zeros is None else value.zeros | result.zeros
        self.values[base] = Value(value.shape, ids, zeros)
        self.filled.add(base)
        return True

    def _put_together(self, view: fx.Node, result: Value) -> bool:
        """Take a slice that is written for a part of a created tensor, which is their concatenation once all are there.

        As DeepSeek's keys are made, from a part that each head has of its own and one that all share.
        """
        found = written_part(view)
        value = None if found is None else self.values[found.base]
        if found is None or not isinstance(value, Value) or value.ids is not None or not value.flexible:
            return False
        base, dim, start, end = found.base, found.dim, found.start, found.end
        parts = self.parts.setdefault((base, dim), {})
        for at, (until, before) in parts.items():
            if at < end and start < until:  # written once more: whether it was read before is not known
                self.freeze_value(before, WRITTEN)
                self.freeze_value(result, WRITTEN)
        parts[start] = (end, result)
        order = sorted(parts)
        ends = [parts[at][0] for at in order]
        if order == [0, *ends[:-1]] and ends[-1] == value.shape[dim]:
            del self.parts[base, dim]
            cat = op_rule(torch.ops.aten.cat.default)
            assert cat is not None
            self.values[base] = cat(self, [parts[at][1] for at in order], dim)
        return True

    def _freeze_parts(self) -> None:
        """Freeze what was written into a part of a created tensor of which another part was not."""
        for _, value in (part for parts in self.parts.values() for part in parts.values()):
            self.freeze_value(value, WRITTEN)
        self.parts.clear()

    def unknown(self, node: fx.Node, args: Any, kwargs: Any, problem: str = "") -> Any:
        """Freeze whatever enters an operation that has no rule, and say so once."""
        name = op_name(node.target)
        reason = f"{name} cannot be followed here ({problem})" if problem else f"no rule for the operation {name}"
        touched = False
        for value in leaves_of((args, kwargs)):
            touched |= self.freeze_value(value, reason)
        note = f"{reason}; what it reads is frozen"
        if touched and note not in self.notes:
            self.notes.append(note)
        tables = [v for v in leaves_of((args, kwargs)) if isinstance(v, ParamValue) and len(v.shape) > 1]
        if any(v.data is None for v in tables):  # not of indices, such as the positions of tokens
            self.list_frozen(reason)
        macs = counted_macs(node)
        if macs:
            self.cost(macs)
        return self.fixed(node)

    # ---- the vocabulary of rules -----------------------------------------------------------------------------------

    @property
    def module_path(self) -> str:
        """Path of the innermost module whose forward pass called the current operation."""
        return node_modules(self.current)[-1] if node_modules(self.current) else ""

    @property
    def current(self) -> fx.Node:
        """The graph node being visited."""
        if self.node is None:
            raise RuntimeError("rules run inside Walk.run")
        return self.node

    @property
    def target(self) -> Any:
        """The current operation."""
        return self.current.target

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the current operation's (first) result."""
        return shapes_of(self.current.meta.get("val"))[0]

    @property
    def out_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of all results of the current operation."""
        return shapes_of(self.current.meta.get("val"))

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of this name; of a product of two, an empty one of its shape."""
        if name in self.products:
            return nn.Parameter(torch.empty([self.tensor(n).shape[d] for n, d in self.products[name]], device="meta"))
        path, _, leaf = name.rpartition(".")
        found = getattr(self.model.get_submodule(path), leaf)
        if not isinstance(found, Tensor):
            raise TypeError(f"{name} is not a tensor")
        return found

    def is_parameter(self, name: str) -> bool:
        """Whether the tensor of this name is trained, so that a gate may sit on it (on buffers none may)."""
        return isinstance(self.tensor(name), nn.Parameter)

    def fixed(self, node: fx.Node) -> Any:
        """Values without channel identity for all results of a node."""
        val = node.meta.get("val")
        if isinstance(val, (tuple, list)):
            return tuple(Value(s) for s in shapes_of(val))
        return Value(shapes_of(val)[0]) if shapes_of(val) else None

    def axis(self, name: str, dim: int) -> Tensor:
        """The atoms of a parameter's dimension  # (size,)"""
        key = self.key(name, dim)
        if key not in self.axes:
            self.axes[key] = self.atoms.new(self.tensor(name).shape[dim])
        return self.axes[key]

    def produce(self, name: str, dim: int) -> Tensor:
        """Like `axis`, for a dimension along which the parameter writes new channels."""
        self.producers[self.key(name, dim)] = 1
        return self.axis(name, dim)

    def key(self, name: str, dim: int) -> AxisKey:
        """The dimension of a parameter, which may be that of a product of two."""
        return self.products[name][dim] if name in self.products else (name, dim)

    def gate_of(self, name: str, dim: int) -> AxisKey:
        """What zeroes a dimension of a parameter."""
        key = self.key(name, dim)
        return self.gates.get(key, key)

    def all_of(self, site: Iterable[AxisKey]) -> frozenset[AxisKey]:
        """A gate site with what must be zero as well where it holds a summand of a weight."""
        found, waiting = set(site), list(site)
        while waiting:
            new = self.together.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return frozenset(found)

    def read(self, ids: Tensor, zeros: Zeros, columns: AxisKey | None, reason: str = "") -> None:
        """Note that the current operation sums over these channels.

        Args:
            ids: the channels  # (channels,)
            zeros: axes whose zeroing makes what is read zero, None if there are none.
            columns: the axis of the reader's own weight, the gate site if ``zeros`` is None.
            reason: why the channels are frozen if there is neither.
        """
        if columns is not None:
            self.columns[columns] = None
        if zeros is not None and columns not in self.coupled:
            self.readings.append(Reading(ids, zeros))
        elif columns is not None:
            self.readings.append(Reading(ids, frozenset([columns])))
        else:
            self.atoms.freeze(ids, reason or "no parameter can hide these channels from their reader")

    def couple(self, name: str, dim: int) -> None:
        """Note that a weight is normed over this dimension: what goes must be zero there, whatever else hides it."""
        self.coupled.add(self.key(name, dim))
        self.readings.append(Reading(self.axis(name, dim), frozenset([self.key(name, dim)])))

    def meet(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Join two equally long id vectors; a channel that meets a fixed position is frozen."""
        self.atoms.join(a, b)
        self.atoms.freeze(a[b < 0], reason)
        self.atoms.freeze(b[a < 0], reason)

    def channel_ids(self, value: Value, dim: int) -> Tensor | None:
        """The ids along ``dim``, everything that shares an index there joined  # (size of dim,)"""
        if not isinstance(value, Value):
            raise LookupError("a parameter in the place of an activation")
        table = self.table(value, [dim % len(value.shape)])
        return None if table is None else table.reshape(-1)

    def table(self, value: Value, dims: Sequence[int]) -> Tensor | None:
        """The ids along these dimensions, in this order, everything that shares an index there joined."""
        if value.ids is None:
            return None
        ids = value.ids
        for d in range(ids.dim()):
            if d not in dims:
                if not is_constant(ids, d):
                    self._mix(ids, d)
                ids = ids.narrow(d, 0, 1)
        rest = [d for d in range(ids.dim()) if d not in dims]
        return ids.permute(*dims, *rest).flatten(len(dims)).squeeze(-1) if rest else ids.permute(*dims)

    def tied_along(self, value: Value, dim: int) -> Value:
        """The value once everything along ``dim`` is one unit per position of the other channel dimension.

        For operations that mix the positions of a dimension: the width of a head, or one that only counts branches.
        """
        if value.ids is None or is_constant(value.ids, dim) or len(varying_dims(value.ids)) < 2:
            return value
        return replace(value, ids=self.held(value.ids, dim, ""))

    def as_channels(self, param: ParamValue, dim: int) -> Value:
        """A parameter in the place of an activation: its positions along ``dim`` are channels, all others fixed."""
        dim %= len(param.shape)
        ids: Tensor | None = None
        for pdim, coords in enumerate(param.coords):
            if varying_dims(coords) == [dim]:
                ids = compress(self.axis(param.name, pdim)[coords])
            elif varying_dims(coords):
                self.atoms.freeze(self.axis(param.name, pdim), NOT_A_CHANNEL)
        return Value(param.shape, ids)

    def list_frozen(self, reason: str) -> None:
        """List the channels of the current result as frozen, where they have no atoms of their own."""
        shape = self.out_shape
        channels = shape[1] if len(shape) > 3 else shape[-1] if shape else 0
        self.untracked.append((self.module_path, channels, reason, self.current))

    def freeze_value(self, value: Any, reason: str) -> bool:
        """Freeze every channel of a value; says whether there was any."""
        if isinstance(value, Value) and value.ids is not None:
            self.atoms.freeze(value.ids, reason)
            return True
        if isinstance(value, ParamValue):
            for dim, coords in enumerate(value.coords):
                (indices,) = shrink_constant_dims(coords)
                self.atoms.freeze(self.axis(value.name, dim)[indices.reshape(-1)], reason)
        return False

    def average(self, value: Value, reason: str) -> None:
        """Note that the current operation takes a mean or variance over channels: they stay, unless streams resize."""
        if self.resize_streams and value.ids is not None:
            self.averaged.append(value.ids)
        else:
            self.freeze_value(value, reason)

    def average_weight(self, name: str, dim: int, operation: str) -> None:
        """Note that a weight is normed by a mean or variance over this dimension: as `average`, of what it reads."""
        if self.resize_streams:
            self.averaged.append(self.axis(name, dim))
        else:
            why = f"{operation} over the weights that read these channels: without one of them it changes"
            self.atoms.freeze(self.axis(name, dim), f'{why}, unless streams="resize"')

    def param_ids(self, value: ParamValue, dim: int) -> Tensor | None:
        """The atoms along one dimension of a view of a parameter; None where it does not vary."""
        found = param_axis_along(value, dim % len(value.shape)) if value.shape else None
        if found is None:
            return None
        pdim, indices = found
        return self.axis(value.name, pdim)[indices]

    def cost(self, coefficient: int, *axes: Tensor | int) -> None:
        """Count multiply-accumulates of the current operation: the product of a number and of axis lengths."""
        tensors = []
        for axis in axes:
            if isinstance(axis, int):
                coefficient *= axis
            else:
                tensors.append(axis)
        self.terms.append(RawTerm(coefficient, tuple(tensors), self.module_path))

    def attribute(self, name: str, ids: Tensor | None, size: int | None = None, path: str | None = None) -> None:
        """State that an integer attribute of the calling module is the number of these positions.

        Modules that have no such attribute, or another value in it (``size``, by default the number of ids), are
        left alone.
        """
        path = self.module_path if path is None else path
        try:
            module = self.model.get_submodule(path)
        except AttributeError:
            return
        value = vars(module).get(name)
        if ids is None or isinstance(value, bool) or not isinstance(value, int):
            return
        if value == (ids.numel() if size is None else size):
            self.attributes[(path, name)] = ids

    def first_choice(self, weight: ParamValue, free: list[str], labels: str, each: Sequence[str]) -> list[str]:
        """The free dimensions of a weight (by their labels), that first which holds the units.

        Args:
            weight: that several dimensions of may hold units.
            free: its dimensions that the result has, but not the input.
            labels: of all its dimensions.
            each: dimensions that both have: the weight is one for each of several heads or experts.
        """
        if len(free) > 1:
            free = free[::-1] if weight.name in self.turned else free
        if len(free) > 1 or each:
            self.choose(weight, labels.index(free[0]))
        if len(free) == 1 and each:
            self.each.add(weight.name)
        return free

    def choose(self, weight: ParamValue, dim: int) -> None:
        """Note that of several dimensions of a weight this one holds the units."""
        found = param_axis_along(weight, dim)
        if found is not None:
            self.chosen[weight.name] = found[0]

    def stuck(self) -> frozenset[str]:
        """Weights with several dimensions for units of which the chosen one cannot go.

        Those that are one for each of several heads are stuck where all that they write is one unit.
        """

        def at_once(ids: Tensor) -> bool:
            return self.atoms.are_one(ids) and not self.atoms.all_frozen(ids)

        chosen = {name: self.axis(name, dim) for name, dim in self.chosen.items()}
        return frozenset(n for n, ids in chosen.items() if (at_once if n in self.each else self.atoms.all_frozen)(ids))

    def stays(self) -> frozenset[str]:
        """Weights that are one for each of several heads, of which nothing that they write can go."""
        return frozenset(n for n in self.each if self.atoms.all_frozen(self.axis(n, self.chosen[n])))

    def free_positions(self) -> int:
        """How many positions that weights write may go, as far as is known by now."""
        return sum(self.axes[key].numel() - self.atoms.count_frozen(self.axes[key]) for key in self.producers)

    def meet_rows(self, table: Tensor) -> None:
        """Join the entries of each row  # (rows, entries)"""
        self.atoms.join(table[:, 1:], table[:, :1].expand_as(table[:, 1:]))
        mixed = (table < 0).any(dim=1)
        self.atoms.freeze(table[mixed], "shares a group of channels with positions that are fixed")

    def note_split(self, value: Value, shape: tuple[int, ...]) -> None:
        """State the sizes that a view splits a dimension of channels into, for attributes such as ``num_heads``."""
        if value.ids is None:
            return
        probe = value.ids.reshape(shape)
        dims = varying_dims(compress(probe))
        if len(dims) > 1 or (len(dims) == 1 and shape[dims[0]] != value.ids.shape[varying_dims(value.ids)[0]]):
            self.splits.append((self.module_path, compress(probe)))

    def rectangle(self, ids: Tensor, fixed_first: bool = False) -> None:
        """Require that what is kept of these ids stays rectangular (they vary along several dimensions)."""
        if len(varying_dims(ids)) > 1:
            self.rectangles.append(Rectangle(drop_constant_dims(ids), self.module_path, fixed_first))

    def cross(self, ids: Tensor, dim: int, vector: Tensor) -> None:
        """Join channels that lie along one dimension with ids that vary along more, if that dimension is the units'."""
        self.rectangle(ids)
        self.crossings.append(Crossing(drop_constant_dims(ids), varying_dims(ids).index(dim), vector, self.current))

    def held(self, ids: Tensor, dim: int, reason: str) -> Tensor:
        """The ids once positions along ``dim`` cannot go: units lie along the other dimensions, or are frozen."""
        if varying_dims(ids) == [dim]:
            self.atoms.freeze(ids, reason)
            return ids
        if bool((ids < 0).any()):
            self.atoms.freeze(ids, reason or "lies beside positions that are fixed")
        self._mix(ids, dim)
        return ids.narrow(dim, 0, 1).expand_as(ids)

    def _mix(self, ids: Tensor, dim: int) -> None:
        """Join all ids along a dimension, positions of which the current operation needs all."""
        self.atoms.join(ids, ids.narrow(dim, 0, 1).expand_as(ids))
        name = op_name(self.target).rpartition("::")[2]
        instead = "; linear layers over the channels (squeeze and excitation) would not" if "conv" in name else ""
        self.mixed.append((ids, f"{name} in {self.module_path or 'the model'} takes them all at once{instead}"))


def structural(walk: Walk, value: AnyValue, fn: Callable[[Tensor], Tensor], split: bool = False) -> AnyValue:
    """The value after an operation that only moves elements, replayed on ids (or on a parameter's coordinates)."""
    if isinstance(value, ParamValue):
        coords = tuple(compress(fn(c)) for c in value.coords)
        data = fn(value.data) if value.data is not None else None
        shape = tuple(coords[0].shape) if coords else walk.out_shape
        return replace(value, shape=shape, coords=coords, whole=False, data=data)
    if value.ids is None:
        return Value(walk.out_shape, None, value.zeros, value.flexible)
    ids = compress(fn(value.ids))
    if split:
        walk.rectangle(ids)
    return Value(tuple(ids.shape), ids, value.zeros, value.flexible)
