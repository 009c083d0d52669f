"""Sizes that depend on values (the tokens that a router sends to an expert): those of the example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils._pytree import tree_leaves, tree_map

from apical.errors import TraceError
from apical.structure._quiet import quiet_rng
from apical.structure._running import first_line, own


def settle_sizes_(program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Replace sizes that only running tells, in the nodes' ``val``, by those of a run on these inputs, 1 at least.

    A part that gets nothing in the example (an expert without a token) is so still followed.

    Raises:
        TraceError: the run fails, as it does without weights.
    """
    unsettled = {node for node in program.graph.nodes if _depends_on_values(node.meta.get("val"))}
    if not unsettled:
        return

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n in unsettled:
                n.meta["val"] = tree_map(_size_only, result)
            return result

    leaves = iter(tree_leaves((own(args), own(dict(kwargs)))))
    inputs = []
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in program.state_dict:
            inputs.append(program.state_dict[spec.target])
        elif spec.kind is InputKind.USER_INPUT:
            inputs.append(next(leaves))
        else:  # a constant, or a buffer that is not saved
            inputs.append(program.constants[str(spec.target)])
    try:
        with quiet_rng(), torch.no_grad():
            Recorder(program.graph_module).run(*inputs)
    except Exception as problem:
        raise TraceError(
            f"some sizes depend on values, which a run on the example did not tell ({first_line(problem)}). Pass "
            "inputs of an ordinary call to a model that has weights (not on the meta device, not with --no-weights)."
        ) from problem


def _depends_on_values(val: Any) -> bool:
    return any(
        free_unbacked_symbols(v) for v in tree_leaves(val) if isinstance(v, (Tensor, torch.SymInt, torch.SymBool))
    )


def _size_only(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty([max(1, n) for n in value.shape], dtype=value.dtype, device="meta")
