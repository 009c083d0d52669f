"""Whether a model runs when a structure that was brought along makes it smaller."""

from __future__ import annotations

from torch import nn

from apical.errors import ResizeError
from apical.resizing._culprit import explained
from apical.resizing._disagreement import FAILS, chosen, keep_odd
from apical.resizing._guards import misfits
from apical.resizing._indexing import TemplateMap
from apical.resizing._resize import resize_
from apical.resizing._selection import Selection
from apical.resizing._testbed import Example, other_shapes
from apical.structure import Call, Structure
from apical.structure._running import analysis_copy


def check_smaller_runs(model: nn.Module, structure: Structure, call: Call) -> None:
    """Refuse a structure with which a copy of the model, made smaller, fails or returns other shapes.

    What no comparison of names and shapes shows: that a changed file leaves a layer's bias out of a group, say. A trace
    has removed the same units and blocks in its dry run. Nothing is checked where the whole model does not run on the
    call.

    Args:
        model: at full size; it is not changed.
        structure: not traced here, but from a file or another process.
        call: an example.

    Raises:
        ResizeError: the structure is not one of this model.
    """
    if misfits(model, TemplateMap(structure), Selection.full(structure)):
        return  # other names or sizes, which every resize refuses by name
    example = Example(call.args, call.kwargs)
    try:
        twin = analysis_copy(model)
        whole = example.run(twin)
    except Exception:  # noqa: BLE001 (whatever the user's forward pass raises: it is not the structure's fault)
        return
    try:
        resize_(twin, structure, *chosen([*structure.groups, *structure.blocks], keep_odd))
        found = example.run(twin)
        problem = None if structure.states else other_shapes(whole, found)  # a carried state may change its size
    except Exception as error:  # noqa: BLE001 (whatever the user's forward pass raises is the reason)
        problem = f"{FAILS}{explained(error, twin)}"
    if problem:
        raise ResizeError(
            f"the structure is not one of this {type(model).__name__}: {problem}. Trace the model again with "
            "apical.trace, and save that."
        )
