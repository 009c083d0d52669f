"""Analysing a model: export its forward pass, push channel identities through it, assemble the structure."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from apical.errors import TraceError
from apical.structure import (  # noqa: F401  (importing them registers the rules)
    _rules_contract,
    _rules_elementwise,
    _rules_norm,
    _rules_reduce,
    _rules_rnn,
    _rules_scatter,
    _rules_shape,
)
from apical.structure._blocks import find_blocks
from apical.structure._groups import assemble
from apical.structure._states import state_slices, unit_dim
from apical.structure._types import Structure, TensorSpec
from apical.structure._values import AnyValue, Value
from apical.structure._walk import Walk

OUTPUT = "reaches the model's output"


def tensor_specs(model: nn.Module) -> dict[str, TensorSpec]:
    """Every parameter and buffer under its first name, with its other names."""
    first: dict[int, str] = {}
    found: dict[str, tuple[Tensor, bool, list[str]]] = {}
    for is_parameter, items in ((True, model.named_parameters(remove_duplicate=False)),
                                (False, model.named_buffers(remove_duplicate=False))):  # fmt: skip
        for name, tensor in items:
            if id(tensor) in first:
                found[first[id(tensor)]][2].append(name)
            else:
                first[id(tensor)] = name
                found[name] = (tensor, is_parameter, [])
    return {n: TensorSpec(tuple(t.shape), p, tuple(aliases)) for n, (t, p, aliases) in found.items()}


def analysis_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode without hooks, so that tracing leaves the user's model exactly as it was."""
    try:
        twin = copy.deepcopy(model)
    except Exception as problem:
        raise TraceError(
            f"the model cannot be copied for tracing ({type(problem).__name__}: {problem}); remove non-leaf tensors "
            "from its attributes, or trace a freshly built model"
        ) from problem
    for module in twin.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, hooks).clear()
        for hooks in ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"):
            getattr(module, hooks).clear()
    for parameter in twin.parameters():
        parameter.grad = None
    return twin.eval()


@contextmanager
def quiet_rng() -> Iterator[None]:
    """No effect on the global random state of the CPU, and no warnings or log lines of the exporter's."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def export_graph(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ExportedProgram:
    """The model's forward pass as a graph of torch operations, every size fixed to the example's."""
    try:
        with quiet_rng(), torch.enable_grad(), redirect_stderr(io.StringIO()):  # export prints failing graphs
            return torch.export.export(model, own(args), own(dict(kwargs)), strict=False)
    except Exception as problem:
        check_runs(model, args, kwargs)
        first = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
        raise TraceError(
            f"torch.export cannot trace {type(model).__name__}: {type(problem).__name__}: {first}. Branches that "
            "depend on tensor values and packed sequences are the usual causes. Trace a variant without them, or "
            "describe the channels by hand: apical.trace(model, example_inputs, groups={name: {tensor: dim}})."
        ) from problem


def own(tree: Any) -> Any:
    """The same nest of containers with copies of its tensors, for a call that may write into them."""
    return torch.utils._pytree.tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, tree)


def check_runs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise `TraceError` unless the model runs on the example inputs."""
    try:
        with quiet_rng(), torch.no_grad():
            args_, kwargs_ = own((args, dict(kwargs)))
            model(*args_, **kwargs_)
    except Exception as problem:
        raise TraceError(
            f"the model does not run on the example inputs ({_describe(args, kwargs)}): {type(problem).__name__}: "
            f"{problem}. Pass the inputs of one ordinary call, on the model's device and with its dtype."
        ) from problem


def propose(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], state_outputs: Sequence[int | str] = ()
) -> Structure:
    """The structure as the rules see it, not yet confirmed by a dry run.

    Args:
        model: a copy of the user's model that may be used freely, in eval mode.
        args: positional example inputs.
        kwargs: keyword example inputs.
        state_outputs: positions (or keys) of outputs whose size may change, such as carried recurrent states.
    """
    tensors = tensor_specs(model)
    program = export_graph(model, args, kwargs)
    names = {alias: name for name, spec in tensors.items() for alias in (name, *spec.aliases)}
    walk = Walk(model, names)
    sources = {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in names
    }
    walk.run(program.graph, sources)
    states = _outputs(walk, program, state_outputs)
    assembly = assemble(walk, tensors)
    return Structure(
        groups=assembly.groups,
        blocks=find_blocks(walk, program.graph),
        frozen=assembly.frozen,
        tensors=tensors,
        attributes=assembly.attributes,
        terms=assembly.terms,
        param_axes=assembly.param_axes,
        notes=tuple(walk.notes),
        states=tuple(state_slices(walk, assembly.groups, states)),
    )


def _outputs(walk: Walk, program: ExportedProgram, state_outputs: Sequence[int | str]) -> list[AnyValue | None]:
    """The leaves of the state outputs, in their order; everything else that is returned keeps its size."""
    output = next(n for n in program.graph.nodes if n.op == "output")
    leaves: tuple[Any, ...] = tuple(output.args[0])  # constants such as None are leaves too
    paths = _output_paths(program, len(leaves))
    unknown = [s for s in state_outputs if s not in paths]
    if unknown:
        names = ", ".join(map(repr, dict.fromkeys(p for p in paths if p is not None))) or "a single tensor"
        raise TraceError(f"state_outputs names {unknown[0]!r}, but the model's outputs are {names}")
    states: list[tuple[int, AnyValue | None]] = []
    for node, top in zip(leaves, paths, strict=True):
        value = walk.values[node] if isinstance(node, fx.Node) else None
        if top is None or top not in state_outputs:
            if value is not None:
                walk.freeze_value(value, OUTPUT)
            continue
        if isinstance(value, Value) and value.ids is not None and unit_dim(value) is None:
            walk.freeze_value(value, "lies along several dimensions of a recurrent state")
        states.append((list(state_outputs).index(top), value))
    return [value for _, value in sorted(states, key=lambda item: item[0])]


def _output_paths(program: ExportedProgram, n: int) -> list[int | str | None]:
    """For each flat output the index or key of the top-level output that it belongs to."""
    tree = torch.utils._pytree.tree_unflatten(list(range(n)), program.call_spec.out_spec)
    items: Any = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (tuple, list)) else []
    top: list[int | str | None] = [None] * n
    for key, subtree in items:
        for leaf in torch.utils._pytree.tree_leaves(subtree):
            if isinstance(leaf, int):
                top[leaf] = key
    return top


def _describe(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    shown = [_shape(a) for a in args] + [f"{k}={_shape(v)}" for k, v in kwargs.items()]
    return ", ".join(shown) or "none"


def _shape(value: Any) -> str:
    return (
        f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )
