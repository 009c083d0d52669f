"""Finding residual blocks that become the identity when the last affine of their branch is zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from apical.structure._cost import lies_in
from apical.structure._registry import op_name
from apical.structure._types import SkippableBlock
from apical.structure._values import AxisKey, ParamValue, Value
from apical.structure._walk import Walk, node_modules

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
class _Call:
    """The nodes that one module's forward pass added to the graph, what enters it, and what leaves it."""

    path: str
    entries: tuple[fx.Node, ...]
    exit: fx.Node
    nodes: frozenset[fx.Node]


def find_blocks(walk: Walk, graph: fx.Graph) -> tuple[SkippableBlock, ...]:
    """The innermost modules that are ``x + f(x)`` with an ``f`` whose last affine can be zeroed.

    Where the sum ``x + f(x)`` lies in a parent that is no such block, the module that computes ``f`` is a block: zeros
    stand in for it.
    """
    found: dict[str, SkippableBlock] = {}
    owners, calls = _owners(walk), _calls(graph)
    for call in calls:
        if any(path.startswith(call.path + ".") for path in found):
            continue
        for entry in call.entries:
            names = _gate(call, _zeroing(walk, call.exit, entry, depth=0), owners)
            if names and _shape(call.exit) == _shape(entry):
                found[call.path] = SkippableBlock(call.path, names)
                break
    found |= _branches(walk, graph, calls, owners, found)
    order = {call.path: i for i, call in enumerate(calls)}
    return tuple(sorted(found.values(), key=lambda b: order[b.name]))


def _gate(call: _Call, axes: frozenset[AxisKey] | None, owners: dict[str, list[str]]) -> tuple[str, ...]:
    """The parameters of these axes, if they are all the module's own."""
    names = tuple(sorted({name for name, _ in axes})) if axes else ()
    inside = all(lies_in(owner, call.path) for name in names for owner in owners[name])
    return names if inside else ()


def _branches(
    walk: Walk, graph: fx.Graph, calls: list[_Call], owners: dict[str, list[str]], blocks: Mapping[str, SkippableBlock]
) -> dict[str, SkippableBlock]:
    """Modules whose zeroed output is added to what their branch began with, outside of blocks that were found."""
    labels = walk.atoms.labels().clone()
    frozen = torch.tensor(list(walk.atoms.frozen_reasons()), dtype=torch.long, device="cpu")
    labels[torch.isin(labels, frozen)] = -1  # what stays anyway
    by_sum: dict[fx.Node, list[tuple[_Call, SkippableBlock]]] = {}
    for call in calls:
        if any(lies_in(path, call.path) or lies_in(call.path, path) for path in blocks):
            continue
        names = _gate(call, _branch_zeros(walk, call.exit), owners)
        total = _residual_sum(graph, call) if names and _like_an_entry(walk, call, labels) else None
        if total is not None:
            by_sum.setdefault(total, []).append((call, SkippableBlock(call.path, names)))
    found: dict[str, SkippableBlock] = {}
    for candidates in by_sum.values():  # of nested modules with the same sum the outermost, else the innermost
        paths = [call.path for call, _ in candidates]
        for path, (_, block) in zip(paths, candidates, strict=True):
            nested = any(path != p and lies_in(path, p) for p in paths)
            if not nested and not any(lies_in(p, path) for p in found):
                found[path] = block
    return {p: b for p, b in found.items() if not any(p != q and lies_in(q, p) for q in found)}


def _like_an_entry(walk: Walk, call: _Call, labels: Tensor) -> bool:
    """Whether zeros like an input have the output's shape, at any width."""
    alike = [e for e in call.entries if _shape(e) == _shape(call.exit)]
    return bool(alike) and all(torch.equal(_labels(walk, e, labels), _labels(walk, call.exit, labels)) for e in alike)


def _labels(walk: Walk, node: fx.Node, labels: Tensor) -> Tensor:
    """For each element of a result which unit it belongs to."""
    value: Any = walk.computed.get(node)
    shape = _shape(node) or ()
    if not isinstance(value, Value) or value.ids is None:
        return torch.full((), -1, device="cpu").expand(shape)
    return torch.where(value.ids < 0, -1, labels[value.ids.clamp(min=0)])


def _residual_sum(graph: fx.Graph, call: _Call) -> fx.Node | None:
    """The addition of a module's output to what its branch began with, if the module computes the whole branch."""
    behind = _ancestors(call.exit)
    node = call.exit
    for _ in range(64):
        users = list(node.users)
        if len(users) != 1:
            return None
        user = users[0]
        name = op_name(user.target).split("::")[-1]
        others = [n for n in user.all_input_nodes if n is not node and _shape(n) is not None]
        if name == "add" and len(others) == 1 and _shape(others[0]) == _shape(user):
            starts = [n for n in _summands(others[0]) if n in behind]
            if starts:
                return user if any(_computes_all(graph, call, n, behind) for n in starts) else None
        elif name not in KEEP_ZERO or (user.args[0] is not node and name != "mul"):
            return None
        node = user
    return None


def _summands(node: fx.Node, depth: int = 0) -> list[fx.Node]:
    """A tensor, and if it is a sum its summands, theirs, and so on."""
    parts = node.all_input_nodes if op_name(node.target).split("::")[-1] == "add" and depth < 8 else []
    return [node, *(n for part in parts for n in _summands(part, depth + 1))]


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        new = [n for n in waiting.pop().all_input_nodes if n not in found]
        found.update(new)
        waiting += new
    return found


def _computes_all(graph: fx.Graph, call: _Call, start: fx.Node, behind: set[fx.Node]) -> bool:
    """Whether every priced operation between the start of a branch and the module's output is the module's."""
    reached, priced = {start}, [call.exit]
    for node in graph.nodes:
        if (node in behind or node is call.exit) and any(n in reached for n in node.all_input_nodes):
            reached.add(node)
            if op_name(node.target).split("::")[-1].startswith(PRICED):
                priced.append(node)
    return len(priced) > 1 and all(node in call.nodes for node in priced)


def _owners(walk: Walk) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for alias, name in walk.canonical.items():
        owners.setdefault(name, []).append(alias.rpartition(".")[0])
    return owners


def _calls(graph: fx.Graph) -> list[_Call]:
    """Modules called once, with a tensor in and one tensor of its shape out that is used; inner ones first."""
    inside: dict[str, list[fx.Node]] = {}
    repeated: set[str] = set()
    for node in graph.nodes:
        if node.op == "call_function":
            raw = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
            for path, plain in zip(raw, node_modules(node), strict=True):
                inside.setdefault(plain, []).append(node)
                if "@" in path:
                    repeated.add(plain)
    calls = []
    for path, nodes in inside.items():
        members = set(nodes)
        exits = [n for n in nodes if any(u not in members for u in n.users)]
        entries = list(
            dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in members and _activation(i))
        )
        once = path and path not in repeated and len(exits) == 1 and _shape(exits[0]) is not None
        if once and any(_shape(e) == _shape(exits[0]) for e in entries):
            calls.append(_Call(path, tuple(entries), exits[0], frozenset(members)))
    return sorted(calls, key=lambda c: (-c.path.count("."), list(inside).index(c.path)))


def _activation(node: fx.Node) -> bool:
    return node.op != "placeholder" or not node.name.startswith(("p_", "b_", "c_"))


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    val = node.meta.get("val")
    return tuple(val.shape) if isinstance(val, Tensor) else None


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
