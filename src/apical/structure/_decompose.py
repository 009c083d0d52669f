"""Operations that torch computes by others: an operation without a rule is followed through those."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx


def decomposed(node: fx.Node) -> tuple[fx.GraphModule, list[fx.Node]] | None:
    """A graph of the operations of which a node's consists, and the nodes whose results it reads, in its order.

    Its nodes are said to lie in the modules of the node. None if torch computes the operation at once, or if the
    operations cannot be found out.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    at_once = not target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    if (at_once and target not in decomposition_table) or target._schema.is_mutable:
        return None
    operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]

    def call(*tensors: Tensor) -> Any:
        given = dict(zip(operands, tensors, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: given.get(n, n.meta["val"]))
        return target(*args, **kwargs)

    examples = [torch.empty(n.meta["val"].shape, dtype=n.meta["val"].dtype, device="cpu") for n in operands]
    table = {target: decomposition_table[target]} if at_once else {}
    try:
        region = make_fx(call, decomposition_table=table, tracing_mode="fake")(*examples)
    except Exception:  # noqa: BLE001 (whatever does not run without values)
        return None
    inner = [n for n in region.graph.nodes if n.op == "call_function"]
    if any(n.op == "get_attr" for n in region.graph.nodes) or any(_is_no_part(n, target) for n in inner):
        return None  # a constant that is made of values, or nothing that would be known
    for n in inner:
        n.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
    return region, operands


def _is_no_part(node: fx.Node, target: Any) -> bool:
    name = str(node.target)
    writes = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
    return node.target is target or writes or name.startswith("prims.") or "as_strided" in name
