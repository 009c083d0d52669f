"""Finding residual blocks that become the identity when the last affine of their branch is zero."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from apical.structure._cost import lies_in
from apical.structure._nodes import node_modules, unused_nodes
from apical.structure._registry import op_name
from apical.structure._types import Feeder, SkippableBlock
from apical.structure._values import AxisKey, ParamValue, Value
from apical.structure._walk import Walk

PASSES = frozenset({"dropout", "feature_dropout", "contiguous", "clone", "to", "alias", "view", "reshape", "flatten",
                    "unflatten"})  # fmt: skip
UNIT = frozenset({"sigmoid", "hardsigmoid", "softmax", "relu6"})  # results in [0, 6]
# What an activation after the addition leaves alone: relu(x + 0) = x where x came from one of these.
RANGES = {"relu6": UNIT, "relu": UNIT | {"relu", "abs", "square", "exp", "softplus"}}
KEEP_RANGE = PASSES | {f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)}


# Operations that give zero for a zero as their first argument.
KEEP_ZERO = PASSES | {"mul", "div", "transpose", "permute", "t", "squeeze", "unsqueeze", "expand", "slice", "float"}
PRICED = ("conv", "linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product", "lstm", "gru",
          "rnn", "bilinear")  # fmt: skip


@dataclass(frozen=True)
class _Module:
    """What one module's forward pass added to the graph.

    Attributes:
        path: of the module.
        nodes: its operations.
        entries: activations that enter it.
        exits: those of its results that others read and cannot make themselves.
        readers: the operations that read them.
        once: whether it is called once.
    """

    path: str
    nodes: frozenset[fx.Node]
    entries: tuple[fx.Node, ...]
    exits: tuple[fx.Node, ...]
    readers: frozenset[fx.Node]
    once: bool


@dataclass(frozen=True)
class _Branch:
    """What lies between a tensor and the sum to which its result is added.

    Attributes:
        start: the tensor.
        end: the result.
        kept: what it is added to: ``start``, or a sum with ``start`` in it.
        total: the sum.
        nodes: the operations from the start to the end, in their order.
        priced: those of them that multiply.
        after: those of them that follow one of these, and these.
    """

    start: fx.Node
    end: fx.Node
    kept: fx.Node
    total: fx.Node
    nodes: tuple[fx.Node, ...]
    priced: frozenset[fx.Node]
    after: frozenset[fx.Node]


def find_blocks(walk: Walk, graph: fx.Graph) -> tuple[SkippableBlock, ...]:
    """The innermost modules that are ``x + f(x)`` with an ``f`` whose last affine can be zeroed.

    Where the sum ``x + f(x)`` lies in a parent that is no such block, the modules that compute ``f`` are a block: zeros
    stand in for them.
    """
    found: dict[str, SkippableBlock] = {}
    owners, modules = _owners(walk), _modules(graph)
    # modules that are x + f(x) themselves; inner ones come first, and one around a block is none
    for call in _calls(modules):
        if any(path.startswith(call.path + ".") for path in found):
            continue
        for entry in call.entries:
            names = _gate(walk, call, _zeroing(walk, call.exits[0], entry, depth=0), owners)
            if names and _shape(call.exits[0]) == _shape(entry):
                found[call.path] = SkippableBlock(call.path, names)
                break
    # sums that lie in a parent
    found |= _branches(walk, graph, modules, owners, found)
    order = {path: i for i, path in enumerate(modules)}
    return tuple(sorted(found.values(), key=lambda b: order[b.name]))


def _gate(
    walk: Walk, module: _Module, axes: frozenset[AxisKey] | None, owners: dict[str, list[str]]
) -> tuple[str, ...]:
    """The parameters of these axes, if they are all the module's own."""
    names = tuple(sorted({name for name, _ in walk.all_of(axes)})) if axes else ()
    inside = all(lies_in(owner, module.path) for name in names for owner in owners[name])
    return names if inside else ()


def _owners(walk: Walk) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for alias, name in walk.canonical.items():
        owners.setdefault(name, []).append(alias.rpartition(".")[0])
    return owners


def _modules(graph: fx.Graph) -> dict[str, _Module]:
    """Every module that computes something, by its path; inner ones first."""
    inside: dict[str, list[fx.Node]] = {}
    repeated: set[str] = set()
    unused = unused_nodes(graph)
    for node in graph.nodes:
        if node.op == "call_function":
            raw = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            for path, plain in zip(raw, node_modules(node), strict=True):
                inside.setdefault(plain, []).append(node)
                if "@" in path:
                    repeated.add(plain)
    found = {}
    for path, nodes in sorted(inside.items(), key=lambda item: -item[0].count(".")):
        members = frozenset(nodes)
        entries = dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in members and _activation(i))
        readers = {n: [u for u in n.users if u not in members and u not in unused] for n in nodes}
        exits = _own_exits(nodes, [n for n in nodes if readers[n]], entries)
        others = frozenset(user for users in readers.values() for user in users)
        found[path] = _Module(path, members, tuple(entries), exits, others, path not in repeated)
    return found


def _own_exits(nodes: Sequence[fx.Node], exits: Sequence[fx.Node], entries: Iterable[fx.Node]) -> tuple[fx.Node, ...]:
    """The results of a module that are made with its weights, or of what enters with the shape of such a result.

    What else it hands on, its readers may well make themselves where they get None, as the zeros that T5's first
    cross-attention makes for all others. The dry run finds out.

    Args:
        nodes: the module's operations, in their order.
        exits: those whose results others read.
        entries: activations that enter.
    """

    def reached(sources: set[fx.Node], weights: bool) -> set[fx.Node]:
        for node in nodes:
            if any(i in sources or (weights and not _activation(i)) for i in node.all_input_nodes):
                sources.add(node)
        return sources

    weighted = [n for n in exits if n in reached(set(), weights=True)]
    alike = reached({e for e in entries if any(_same_shape(e, n) for n in weighted)}, weights=True)
    return tuple(n for n in exits if n in alike) if weighted else tuple(exits)


def _calls(modules: Mapping[str, _Module]) -> list[_Module]:
    """Modules called once, with a tensor in and one tensor of its shape out that is used."""
    return [
        m
        for m in modules.values()
        if m.path and m.once and len(m.exits) == 1 and any(_same_shape(e, m.exits[0]) for e in m.entries)
    ]


# ---- branches that are added in a parent ----------------------------------------------------------------------------


def _branches(
    walk: Walk,
    graph: fx.Graph,
    modules: Mapping[str, _Module],
    owners: dict[str, list[str]],
    blocks: Mapping[str, SkippableBlock],
) -> dict[str, SkippableBlock]:
    """Modules whose zeroed output is added to what their branch began with, outside of blocks that were found."""
    labels = walk.atoms.labels().clone()
    frozen = torch.tensor(list(walk.atoms.frozen_reasons()), dtype=torch.long, device="cpu")
    labels[torch.isin(labels, frozen)] = -1  # what stays anyway
    candidates: list[tuple[int, SkippableBlock]] = []
    for branch in _all_branches(graph, blocks):
        block = _block(walk, branch, modules, owners, labels)
        if block is not None:
            candidates.append((len(branch.nodes), block))
    found: dict[str, SkippableBlock] = {}
    taken = list(blocks)
    for _, block in sorted(candidates, key=lambda c: c[0]):  # inner ones first
        if not any(lies_in(own, path) or lies_in(path, own) for own in block.modules for path in taken):
            found[block.name] = block
            taken += block.modules
    return found


def _all_branches(graph: fx.Graph, blocks: Mapping[str, SkippableBlock]) -> Iterator[_Branch]:
    """For every sum of two tensors outside of these blocks: the summand that is computed from the other one, or from a
    summand of that."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for total in graph.nodes:
        parts = total.all_input_nodes
        if op_name(total.target) != "aten::add" or len(parts) != 2 or not all(_same_shape(p, total) for p in parts):
            continue
        if any(lies_in(path, block) for path in node_modules(total)[-1:] for block in blocks):
            continue
        for kept, end in (parts, parts[::-1]):
            for start in _summands(kept):
                nodes = _between(start, end, order)
                if nodes:
                    priced = [n for n in nodes if op_name(n.target).split("::")[-1].startswith(PRICED)]
                    after: set[fx.Node] = set()
                    for node in nodes:
                        if node in priced or any(n in after for n in node.all_input_nodes):
                            after.add(node)
                    yield _Branch(start, end, kept, total, tuple(nodes), frozenset(priced), frozenset(after))


def _summands(node: fx.Node, depth: int = 0) -> list[fx.Node]:
    """A tensor, and if it is a sum its summands, theirs, and so on."""
    parts = node.all_input_nodes if op_name(node.target).split("::")[-1] == "add" and depth < 8 else []
    return [node, *(n for part in parts for n in _summands(part, depth + 1))]


def _between(start: fx.Node, end: fx.Node, order: Mapping[fx.Node, int]) -> list[fx.Node]:
    """The operations through which one result depends on another, in their order, the last one with them."""
    # backwards: all that the end depends on, no further than the start in the order of the graph
    behind, waiting = {end}, [end]
    while waiting:
        new = [n for n in waiting.pop().all_input_nodes if n not in behind and order[n] >= order[start]]
        behind.update(new)
        waiting += new
    # forwards: of these, what depends on the start
    reached = {start}
    for node in sorted(behind, key=order.__getitem__):
        if any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return sorted(reached - {start}, key=order.__getitem__) if end in reached else []


def _block(
    walk: Walk, branch: _Branch, modules: Mapping[str, _Module], owners: dict[str, list[str]], labels: Tensor
) -> SkippableBlock | None:
    """The modules that compute a branch as a block, if they compute all of it that has a price."""
    # the modules with a price first; if none of them is zero alone, those after them, too (a last norm or scale)
    for to_end in (False, True):
        parts = _parts(branch, modules, to_end)
        last = _last(walk, branch, parts)
        if last is not None:
            break
    if last is None or not all(_takes_zeros(walk, branch, part, labels) for part in parts):
        return None
    names = _gate(walk, last, _branch_zeros(walk, last.exits[0]), owners)
    feeders = tuple(Feeder(part.path) for part in parts if part is not last)
    return SkippableBlock(last.path, names, None, feeders) if names else None


def _parts(branch: _Branch, modules: Mapping[str, _Module], to_end: bool) -> list[_Module]:
    """The outermost modules that compute nothing but what a branch reads: those with a price, and between them (also
    after them, ``to_end``) those with parameters; empty if something with a price lies outside of such modules."""
    ahead: set[fx.Node] = {branch.end} if to_end else set()  # what a later operation with a price reads, or the end
    for node in reversed(branch.nodes):
        if any(user in ahead or user in branch.priced for user in node.users):
            ahead.add(node)
    found: dict[str, _Module] = {}
    for node in branch.nodes:
        between = node in branch.after and node in ahead and not all(map(_activation, node.all_input_nodes))
        if node in branch.priced or between:
            serving = (m for path in node_modules(node) if (m := modules[path]).path and _serves(m, branch))
            part = next(serving, None)
            if part is not None:
                found[part.path] = part
            elif node in branch.priced:
                return []
    return list(found.values())


def _serves(module: _Module, branch: _Branch) -> bool:
    """Whether a module is called once, and nothing but the branch reads what it computes."""
    apart = module.nodes.isdisjoint((branch.start, branch.kept, branch.total))
    return module.once and apart and module.readers <= {*branch.nodes, branch.total}


def _last(walk: Walk, branch: _Branch, parts: Sequence[_Module]) -> _Module | None:
    """The module of a branch whose only result is zero where the branch is, at any rate when it is zero itself."""
    # from the end back through what leaves a zero a zero, to the module whose zero it is
    node = branch.end
    for _ in range(64):
        last = next((part for part in parts if node in part.nodes), None)
        if last is not None:
            return last if last.exits == (node,) else None
        name = op_name(node.target).split("::")[-1]
        operands = [n for n in node.all_input_nodes if n in branch.nodes]
        if name not in KEEP_ZERO or not operands or (name != "mul" and node.args[0] is not operands[0]):
            return None
        node = next((n for n in operands if _branch_zeros(walk, n)), operands[0])
        if len(node.users) != 1:
            return None
    return None


def _takes_zeros(walk: Walk, branch: _Branch, part: _Module, labels: Tensor) -> bool:
    """Whether zeros like an input have the shape of the branch's result, at any width.

    What an earlier module of the branch feeds, gets such zeros from that one's stand-in.
    """
    if any(entry in branch.after for entry in part.entries):
        return True
    alike = [e for e in part.entries if _same_shape(e, branch.end)]
    return bool(alike) and all(torch.equal(_labels(walk, e, labels), _labels(walk, branch.end, labels)) for e in alike)


def _labels(walk: Walk, node: fx.Node, labels: Tensor) -> Tensor:
    """For each element of a result which unit it belongs to."""
    value: Any = walk.computed.get(node)
    shape = _shape(node) or ()
    if not isinstance(value, Value) or value.ids is None:
        return torch.full((), -1, device="cpu").expand(shape)
    return torch.where(value.ids < 0, -1, labels[value.ids.clamp(min=0)])


# ---- operations -----------------------------------------------------------------------------------------------------


def _activation(node: fx.Node) -> bool:
    return node.op != "placeholder" or not node.name.startswith(("p_", "b_", "c_"))


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    val = node.meta.get("val")
    return tuple(val.shape) if isinstance(val, Tensor) else None


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    return _shape(a) is not None and _shape(a) == _shape(b)


def _zeroing(walk: Walk, node: fx.Node, entry: fx.Node, depth: int) -> frozenset[AxisKey] | None:
    """Axes whose zeroing makes ``node`` equal to ``entry``: empty if it is the entry, None if there are none."""
    if node is entry:
        return frozenset()
    if depth > 64 or node.op != "call_function":
        return None
    name = op_name(node.target).split("::")[-1]
    tensors = [a for a in node.args if isinstance(a, fx.Node) and _shape(a) is not None]
    if name in RANGES and not _lies_in_range(entry, RANGES[name]):
        return None
    if (name in PASSES or name in RANGES) and tensors:
        return _zeroing(walk, tensors[0], entry, depth + 1)
    if name != "add" or len(tensors) != 2:
        return None
    # a sum: one side is the entry, or becomes it, and the other side can be made zero
    for kept, branch in (tensors, tensors[::-1]):
        rest = _zeroing(walk, kept, entry, depth + 1)
        zeros = _branch_zeros(walk, branch)
        if rest is not None and zeros:
            return rest | zeros
    return None


def _lies_in_range(node: fx.Node, sources: frozenset[str], depth: int = 0) -> bool:
    """Whether a tensor comes from one of these operations, through others that keep its range."""
    if depth > 16 or node.op != "call_function":
        return False
    name = op_name(node.target).split("::")[-1]
    if name in sources:
        return True
    first = next((a for a in node.args if isinstance(a, fx.Node)), None)
    return first is not None and name in KEEP_RANGE and _lies_in_range(first, sources, depth + 1)


def _branch_zeros(walk: Walk, node: fx.Node) -> frozenset[AxisKey] | None:
    value: Any = walk.computed.get(node)
    if isinstance(value, ParamValue) or not isinstance(value, Value):
        return None
    return value.zeros
