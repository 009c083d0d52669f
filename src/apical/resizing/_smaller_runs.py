"""Whether a model runs when a structure that was brought along makes it smaller."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor, nn

from apical.errors import ResizeError, TraceError
from apical.resizing._culprit import explained
from apical.resizing._disagreement import FAILS, chosen, keep_odd
from apical.resizing._guards import check_matches, refuse_wrapped
from apical.resizing._indexing import TemplateMap
from apical.resizing._resize import OTHER_STORE, resize_
from apical.resizing._selection import Selection
from apical.resizing._testbed import Example, other_shapes
from apical.structure import Call, Structure
from apical.structure._running import analysis_copy, check_runs


def check_smaller_runs(model: nn.Module, structure: Structure, call: Call) -> None:
    """Refuse a structure with which a copy of the model, made smaller, fails or returns other shapes.

    What no comparison of names and shapes shows: that a changed file leaves a layer's bias out of a group, say. A trace
    has removed the same units and blocks in its dry run. Nothing is checked of a model that cannot be copied.

    Args:
        model: at full size; it is not changed.
        structure: not traced here, but from a file or another process.
        call: an example.

    Raises:
        ResizeError: the structure is not one of this model.
        TraceError: the whole model does not run on the call in eval mode, as a trace says it.
    """
    refuse_wrapped(model, ResizeError)
    check_matches(model, TemplateMap(structure), Selection.full(structure), "the model", OTHER_STORE)
    example = Example(call.args, call.kwargs)
    try:
        twin = analysis_copy(model)
    except TraceError:
        return
    check_runs(twin, call.args, call.kwargs)
    whole: dict[bool, list[Tensor]] = {}  # outputs in training mode or not, which may read other parameters
    with suppress(Exception):  # whatever the user's forward pass raises then: it is not the structure's fault
        for training in (False, True):
            whole[training] = example.run(twin, training)
    problem = None
    try:
        resize_(twin, structure, *chosen([*structure.groups, *structure.blocks], keep_odd))
        for training, expected in whole.items():
            found = example.run(twin, training)
            if not structure.states:  # a carried state may change its size
                problem = problem or other_shapes(expected, found)
    except Exception as error:  # noqa: BLE001 (whatever the user's forward pass raises is the reason)
        problem = f"{FAILS}{explained(error, twin)}"
    if problem:
        raise ResizeError(
            f"the structure is not one of this {type(model).__name__}: {problem}. Trace the model again with "
            "apical.trace, and save that."
        )
