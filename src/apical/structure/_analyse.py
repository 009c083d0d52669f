"""Analysing a model: export its forward pass, push channel identities through it, assemble the structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from apical.structure._actual_sizes import settle_sizes_
from apical.structure._blocks import find_blocks
from apical.structure._groups import assemble
from apical.structure._rectangles import resolve_rectangles
from apical.structure._running import export_graph
from apical.structure._states import state_slices, unit_dim
from apical.structure._structure import Structure
from apical.structure._training import note_of_unread, training_graph
from apical.structure._types import TensorSpec
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


def propose(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    state_outputs: Sequence[int | str] = (),
    resize_streams: bool = False,
) -> Structure:
    """The structure as the rules see it, not yet confirmed by a dry run.

    Args:
        model: a copy of the user's model that may be used freely, in eval mode.
        args: positional example inputs.
        kwargs: keyword example inputs.
        state_outputs: positions (or keys) of outputs whose size may change, such as carried recurrent states.
        resize_streams: whether channels under LayerNorm and RMSNorm may go, although that is not exact.
    """
    tensors = tensor_specs(model)
    # one graph of eval mode, in which every size is a number; its lines of code are for reasons
    program = export_graph(model, args, kwargs, lines=True)
    settle_sizes_(program, args, kwargs)
    # the graph of training mode, where that is another
    training = training_graph(model, args, kwargs, program)
    if isinstance(training, ExportedProgram):
        settle_sizes_(training, args, kwargs)
    names = {alias: name for name, spec in tensors.items() for alias in (name, *spec.aliases)}
    unread = note_of_unread([program, *([training] if isinstance(training, ExportedProgram) else [])], tensors)

    def walked(turned: frozenset[str]) -> tuple[Walk, list[AnyValue | None]]:
        walk = Walk(model, names, resize_streams, turned)
        walk.run(program.graph, _sources(walk, program))
        states = _outputs(walk, program, state_outputs)
        if isinstance(training, str):
            walk.notes.append(training)
        elif training is not None:
            _join(walk, training, state_outputs)
        return walk, states

    walk, states = walked(frozenset())
    stuck = walk.stuck()
    if stuck:  # another dimension may go: the hidden units of stacked experts, or whole heads of a recurrence
        other, other_states = walked(stuck)
        if other.stuck() < stuck:
            walk, states = other, other_states
    elif stays := walk.stays():  # heads that each have a weight of their own, which stays otherwise
        other, other_states = walked(stays)
        if other.free_positions() > walk.free_positions():
            walk, states = other, other_states
    # atoms are joined for the last time here: labels, one for each set of joined atoms, hold from now on
    resolve_rectangles(walk)
    # what the walk joined, froze and priced, as data
    assembly = assemble(walk, tensors)
    return Structure(
        groups=assembly.groups,
        blocks=find_blocks(walk, program.graph),
        frozen=assembly.frozen,
        tensors=tensors,
        attributes=assembly.attributes,
        terms=assembly.terms,
        param_axes=assembly.param_axes,
        notes=(*walk.notes, *([unread] if unread else [])),
        states=tuple(state_slices(walk, assembly.groups, states)),
    )


def _sources(walk: Walk, program: ExportedProgram) -> dict[str, str]:
    """The parameter or buffer that enters the graph at each placeholder."""
    return {
        spec.arg.name: spec.target
        for spec in program.graph_signature.input_specs
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER) and spec.target in walk.canonical
    }


def _join(walk: Walk, program: ExportedProgram, state_outputs: Sequence[int | str]) -> None:
    """Follow the graph of training mode too: its readers and producers are joined with those of eval mode.

    Its cost is not counted: MACs are those of eval mode.
    """
    terms, attributes = len(walk.terms), dict(walk.attributes)
    walk.run(program.graph, _sources(walk, program))
    del walk.terms[terms:]
    walk.attributes.update(attributes)
    paths = _output_paths(program, len(_output_leaves(program)))
    _outputs(walk, program, [s for s in state_outputs if s in paths])


def _output_leaves(program: ExportedProgram) -> tuple[Any, ...]:
    """The flat outputs, constants such as None among them."""
    return tuple(next(n for n in program.graph.nodes if n.op == "output").args[0])


def _outputs(walk: Walk, program: ExportedProgram, state_outputs: Sequence[int | str]) -> list[AnyValue | None]:
    """The leaves of the state outputs, in their order; everything else that is returned keeps its size."""
    leaves = _output_leaves(program)
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
