"""`trace`: propose a structure from the graph, then let the dry run decide."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.errors import TraceError
from apical.resizing._follow import settled
from apical.resizing._guards import refuse_wrapped
from apical.resizing._testbed import DIFFERS, Example, Testbed, is_random, testbeds
from apical.structure import Call, ExampleInputs, HandGroups, Structure
from apical.structure._analyse import OUTPUT, propose
from apical.structure._manual import describe
from apical.structure._quiet import quiet_rng
from apical.structure._running import analysis_copy, make_traceable_
from apical.structure._training import UNREAD
from apical.structure._types import by_reason, reason_in_words

# Reasons that follow from an architecture; all others can often be mended, and are told before them.
LAST = ("no later layer reads", "no layer that can shrink", "all its channels must go together", OUTPUT)
RANDOM = (
    "the model's output is random in eval mode (two calls with the same inputs differ), so that nothing can be "
    "compared: draw random numbers only if self.training, which F.dropout takes as training=self.training"
)
# Code between a user's line and `trace`: of this package, and of what decorates `trace`.
OWN = (str(Path(__file__).parents[1]), str(contextmanager.__code__.co_filename))


@contextmanager
def _collecting_only_new() -> Iterator[None]:
    """Let Python's search for cycles pass over what there was before, which takes a tenth of the time of a trace."""
    freeze = not gc.get_freeze_count()  # else it is for whoever froze it to thaw it
    if freeze:
        gc.freeze()
    try:
        yield
    finally:
        if freeze:
            gc.unfreeze()


@_collecting_only_new()
def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    state_outputs: Sequence[int | str] | None = None,
    groups: HandGroups | None = None,
    streams: Literal["keep", "resize"] = "keep",
) -> Structure:
    """Find what can be removed from a model and brought back: channels, hidden units, heads, residual blocks.

    The model is exported with ``torch.export`` (non-strict, eval mode) from a copy, so that it is left exactly as it
    was. Channel identities are followed through the graph; then a dry run in float64 checks that removing a part
    equals zeroing its gate. What does not pass, reaches the output, or goes through an operation without a rule is
    listed in ``structure.frozen`` with the reason.

    Args:
        model: any ``nn.Module``, unwrapped; its present sizes become the template.
        example_inputs: arguments of one call, on the model's device: a tensor, a tuple of positional arguments, or a
            dict of keyword arguments; `Structure.macs` prices this call.
        example_kwargs: further keyword arguments of the call.
        state_outputs: positions (tuple) or keys (dict) of outputs that carry a recurrent state from call to call,
            whose size may therefore change (`resize_state` resizes such a state). By default what the model says in
            an attribute ``state_outputs``, else none. All other outputs keep their size.
        groups: for a model that cannot be exported, its groups by hand: ``{group: {tensor: dimension}}``, with the
            weights of later layers at the dimension that reads the units. The model is then only run, not exported,
            and the dry run checks the description.
        streams: what happens to channels over which LayerNorm, RMSNorm or a written-out mean is taken (the embedding
            width of transformers), or the mean of the weights that read them (BiT, NFNet). ``"keep"``: they are frozen,
            since without one of them the statistics change, so that no gate stands for its absence. ``"resize"``: they
            can go and come back all the same. For these groups (``group.exact`` is False) the dry run checks that the
            smaller model runs and returns the same shapes, not that it equals a gated one; everything else is checked
            exactly, with these groups whole and shrunk.

    Returns:
        The structure: pure data, printable, serialisable.

    Raises:
        TraceError: if the model is wrapped, on several devices or on meta, does not run on the inputs, cannot be
            exported, or has nothing that can be removed.

    Example:
        >>> import torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
        >>> structure = apical.trace(net, torch.zeros(1, 3, 8, 8))
        >>> [(g.name, g.size) for g in structure.groups]
        [('0', 8)]
        >>> structure.frozen[0].reason
        "reaches the model's output"
        >>> structure.macs({"0": range(4)}) / structure.macs()
        0.5
    """
    refuse_wrapped(model, TraceError)
    if streams not in ("keep", "resize"):
        raise TraceError(f"streams must be 'keep' or 'resize', got {streams!r}")
    call = Call.of(example_inputs, example_kwargs)
    state_outputs = getattr(model, "state_outputs", ()) if state_outputs is None else state_outputs
    if isinstance(state_outputs, (int, str)):
        state_outputs = (state_outputs,)
    if not isinstance(state_outputs, Iterable):
        raise TraceError(f"state_outputs must list positions or keys of the model's outputs, got {state_outputs!r}")
    _check_devices(model, (call.args, call.kwargs))
    call.check_values()
    twin, states = analysis_copy(model), tuple(state_outputs)
    structure = _confirmed(twin, call, states, groups, streams)
    if not structure.groups and not structure.blocks:
        _refuse_lost_outputs(analysis_copy(model), call)  # the twin holds its weights in float64 by now
        raise TraceError(f"nothing in {type(model).__name__} can be grown or removed. {_reasons(structure)}")
    _warn_of_unread(structure)
    return structure


def _confirmed(twin: nn.Module, call: Call, states: tuple[int | str, ...], groups: HandGroups | None,
               streams: str) -> Structure:  # fmt: skip
    """What the graph of a copy, or a description by hand, proposes and the dry run confirms."""
    changed = make_traceable_(twin)
    if groups is None:
        structure = propose(twin, call.args, call.kwargs, states, streams == "resize")
    else:
        structure = describe(twin, call.args, call.kwargs, groups)
    structure = replace(structure, notes=(*structure.notes, *(f"traced with {setting}" for setting in changed)))
    bed, quick = testbeds(twin, Example(call.args, call.kwargs, states))
    return _chance_named(settled(structure, bed, quick), quick or bed)


def _chance_named(structure: Structure, bed: Testbed) -> Structure:
    """The structure with chance as the reason of what the dry run refuted, where eval mode is random."""
    told = (*(part.reason for part in structure.frozen), *structure.notes)
    if not any(DIFFERS in said for said in told) or not is_random(bed):
        return structure

    def named(said: str) -> str:
        before, differs, _ = said.partition(DIFFERS)
        return before + RANDOM if differs else said

    frozen = tuple(replace(part, reason=named(part.reason)) for part in structure.frozen)
    return replace(structure, frozen=frozen, notes=tuple(map(named, structure.notes)))


def _warn_of_unread(structure: Structure) -> None:
    """Warn, at the user's line, of parameters of which the example call does not tell what feeds them."""
    for note in structure.notes if structure.groups else ():
        if note.startswith(UNREAD):
            frame, level = sys._getframe(), 1
            while frame.f_back is not None and frame.f_code.co_filename.startswith(OWN):
                frame, level = frame.f_back, level + 1
            warnings.warn(note, stacklevel=level)


def _refuse_lost_outputs(twin: nn.Module, call: Call) -> None:
    """Say that outputs are not numbers, where that is why nothing could be compared."""
    with torch.no_grad(), quiet_rng():
        outputs = torch.utils._pytree.tree_leaves(call.map(Tensor.clone).run(twin))
    if any(isinstance(o, Tensor) and o.is_floating_point() and bool(o.isnan().any()) for o in outputs):
        weights = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
        lost = [name for name, w in weights.items() if w.is_floating_point() and not bool(w.isfinite().all())]
        cause = f"{', '.join(lost[:3])} of the model is not finite" if lost else "its inputs are too large or infinite"
        raise TraceError(
            f"the outputs of {type(twin).__name__} on the example inputs are not numbers (NaN), so that nothing can be "
            f"compared: {cause}. Pass an ordinary batch and finite weights."
        )


def _reasons(structure: Structure) -> str:
    """Why everything is frozen: each reason once with its layers, those that tell most first."""
    found = by_reason(structure.frozen)
    ordered = sorted(found, key=lambda reason: next((i for i, t in enumerate(LAST) if reason.startswith(t)), -1))
    said = []
    for parts in (found[reason] for reason in ordered[:8]):
        names = ", ".join(f"{part.name} ({part.size})" for part in parts[:3])
        said.append(f"{names}{' and others' if len(parts) > 3 else ''}: {reason_in_words(parts)}")
    return "; ".join([*said, *structure.notes[: 8 - len(said)]]) or "It has no layers."


def _check_devices(model: nn.Module, inputs: Any) -> None:
    device = next((t.device for t in [*model.parameters(), *model.buffers()]), None)
    for leaf in torch.utils._pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.device != device and leaf.dim() > 0:
            raise TraceError(f"an example input is on {leaf.device}, the model on {device}: move the input there")
