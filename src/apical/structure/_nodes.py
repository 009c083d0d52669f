"""What the nodes of an exported graph say: where they come from, what they give, and what they write into."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, fx

from apical.structure._registry import is_pointwise, op_name

NOT_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))  # whole names of folders
FRAME = re.compile(r'File "(.+)", line (\d+), in .*\n *(.*)')
PARTIAL_VIEWS = ("aten::slice", "aten::select", "aten::narrow")  # unlike aten::index, which copies


@dataclass(frozen=True)
class WrittenPart:
    """A slice of a tensor.

    Attributes:
        base: the node that makes the tensor.
        dim: the dimension that is cut.
        start: first position of the slice.
        end: the position after its last.
    """

    base: fx.Node
    dim: int
    start: int
    end: int


def written_part(view: fx.Node) -> WrittenPart | None:
    """What part a view is, if it is a slice without steps of a tensor that an operation made."""
    if op_name(view.target) != "aten::slice":
        return None
    base: Any = view.args[0]
    while op_name(base.target) == "aten::slice" and shapes_of(base.meta["val"]) == shapes_of(base.args[0].meta["val"]):
        base = base.args[0]  # x[:, a:b] is x[:][:, a:b]
    given: tuple[Any, ...] = view.args[1:]
    defaults: tuple[Any, ...] = (0, None, None, 1)
    dim, start, end, step = given + defaults[len(given) :]
    schema = getattr(base.target, "_schema", None)
    is_new = schema is not None and all(r.alias_info is None for r in schema.returns)  # neither input nor view
    shapes = shapes_of(base.meta["val"])
    shape = shapes[0] if shapes else ()
    if not is_new or not shape or step != 1:
        return None
    start, end, _ = slice(start, end).indices(shape[dim])
    return WrittenPart(base, dim % len(shape), start, end)


def written_dims(view: fx.Node) -> tuple[fx.Node, dict[int, int]] | None:
    """The tensor that an operation made of which a view is a part, and where the dimensions are that it has whole.

    Returns:
        The node that makes it, and its dimension for each dimension of the view along which nothing is cut off. None
        if the view is no slice or entry of such a tensor, or one of several views in between is used otherwise.
    """
    views: list[fx.Node] = []
    base: Any = view
    while op_name(base.target) in PARTIAL_VIEWS:
        if views and len(base.users) > 1:
            return None
        views.append(base)
        base = base.args[0]
    schema = getattr(base.target, "_schema", None)
    if not views or schema is None or any(r.alias_info is not None for r in schema.returns):
        return None
    before = shapes_of(base.meta["val"])[0]
    whole: list[int | None] = list(range(len(before)))
    for node in views[::-1]:
        after = shapes_of(node.meta["val"])[0]
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        dim = given % len(before)
        if len(after) < len(before):
            del whole[dim]
        elif after != before:
            whole[dim] = None
        before = after
    return base, {d: of for d, of in enumerate(whole) if of is not None}


def is_unshared(view: fx.Node) -> bool:
    """Whether no other operation reads the tensor of which this is a view: then a write into the view is nobody else's.

    As in ``scores = scores[:, 1:]; scores *= mask``.
    """
    node: Any = view
    while is_view(node):
        node = node.args[0]
        if not isinstance(node, fx.Node) or len(node.users) > 1:
            return False
    return bool(node.op == "call_function")


def is_view(node: fx.Node) -> bool:
    """Whether an operation gives elements of another tensor, in another shape or order, without copying them."""
    schema = getattr(node.target, "_schema", None)
    writes = getattr(schema, "is_mutable", True)
    return schema is not None and not writes and any(r.alias_info is not None for r in schema.returns)


def makes_weight(node: fx.Node) -> bool:
    """Whether what elementwise operations and views make of a result is the weight or bias of a layer."""
    for user in node.users:
        name = op_name(user.target)
        if name.startswith(("aten::conv", "aten::linear")):
            return node in user.args[1:3]
        if (is_pointwise(user.target) or name in ("aten::view", "aten::reshape")) and makes_weight(user):
            return True
    return False


def unused_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Operations whose results reach nothing: attention weights that are averaged and then dropped, for example."""
    unused: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        writes = getattr(getattr(node.target, "_schema", None), "is_mutable", True)
        if node.op == "call_function" and not writes and all(user in unused for user in node.users):
            unused.add(node)
    return unused


def node_modules(node: fx.Node) -> list[str]:
    """Paths of the modules whose forward passes enclose a node, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return [re.sub(r"@\d+", "", path) for path, _ in stack.values()]


def place_of(node: fx.Node) -> str:
    """Where an operation comes from: the module that runs, and the innermost line of code outside of torch."""
    path = next(iter(node_modules(node)[::-1]), "")
    frames = FRAME.findall(node.meta.get("stack_trace") or "")
    lines = [(file, line, code) for file, line, code in frames if not file.startswith(NOT_USERS)]
    where = [f"in {path}"] if path else []
    if lines:
        file, line, code = lines[-1]
        where.append(f"at {Path(file).name}:{line}" + (f", `{shorten(code, 80, placeholder=' …')}`" if code else ""))
    return ", ".join(where)


def shapes_of(val: Any) -> list[tuple[int, ...]]:
    """The shapes of a node's results, by what it holds as ``val``."""
    if isinstance(val, Tensor):
        return [tuple(int(s) for s in val.shape)]
    if isinstance(val, (tuple, list)):
        return [tuple(int(s) for s in v.shape) if isinstance(v, Tensor) else () for v in val]
    return []


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of nested arguments, None among them."""
    if isinstance(tree, (tuple, list)):
        return [leaf for item in tree for leaf in leaves_of(item)]
    if isinstance(tree, dict):
        return [leaf for item in tree.values() for leaf in leaves_of(item)]
    return [tree]
