"""Finding residual blocks that become the identity when the last affine of their branch is zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

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


@dataclass(frozen=True)
class _Call:
    """The nodes that one module's forward pass added to the graph, what enters it, and what leaves it."""

    path: str
    entry: fx.Node
    exit: fx.Node


def find_blocks(walk: Walk, graph: fx.Graph) -> tuple[SkippableBlock, ...]:
    """The innermost modules that are ``x + f(x)`` with an ``f`` whose last affine can be zeroed."""
    found: dict[str, SkippableBlock] = {}
    owners = _owners(walk)
    for call in _calls(graph):
        if any(path.startswith(call.path + ".") for path in found):
            continue
        axes = _zeroing(walk, call.exit, call.entry, depth=0)
        names = tuple(sorted({name for name, _ in axes})) if axes else ()
        if names and all(owner.startswith(call.path + ".") or owner == call.path for n in names for owner in owners[n]):
            found[call.path] = SkippableBlock(call.path, names)
    order = {call.path: i for i, call in enumerate(_calls(graph))}
    return tuple(sorted(found.values(), key=lambda b: order[b.name]))


def _owners(walk: Walk) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = {}
    for alias, name in walk.canonical.items():
        owners.setdefault(name, []).append(alias.rpartition(".")[0])
    return owners


def _calls(graph: fx.Graph) -> list[_Call]:
    """Modules called once, with one tensor in and one tensor of the same shape out; inner ones first."""
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
        once = path and path not in repeated and len(exits) == 1 and len(entries) == 1
        if once and _shape(exits[0]) is not None and _shape(exits[0]) == _shape(entries[0]):
            calls.append(_Call(path, entries[0], exits[0]))
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
