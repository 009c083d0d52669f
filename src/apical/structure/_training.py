"""What a forward pass computes in training mode only: auxiliary heads, deep supervision, extra outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apical.errors import TraceError
from apical.structure._quiet import quiet_rng
from apical.structure._running import check_runs, export_graph, first_line, own
from apical.structure._steady import steady, steady_training
from apical.structure._types import TensorSpec

MAX_NAMES = 8
FEW = 3  # parameters by name in a note
UNREAD = "the example call does not read"
Operation = tuple[str, tuple[Any, ...]]


def training_graph(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], program: ExportedProgram
) -> ExportedProgram | str | None:
    """The graph of training mode if that computes something else than eval mode.

    Args:
        model: a copy that may be used freely, in eval mode.
        args: positional example inputs.
        kwargs: keyword example inputs.
        program: the graph of eval mode.

    Returns:
        The graph; None if both modes do the same; a note if training mode cannot be followed, and all parameters that
        it reads are read in eval mode (so that nothing hangs on what was not seen).

    Raises:
        TraceError: training mode cannot be followed, and there are parameters that only it can read; or the model does
            not run on the inputs at all.
    """
    operations: list[Operation] | None = None
    try:
        operations = _operations(model, args, kwargs, training=True)
        if operations == _operations(model, args, kwargs, training=False):
            return None
        with steady_training(model):
            return export_graph(model, args, kwargs)
    except Exception as error:
        # what exports need not run: of inputs in half precision, say, the graph is made all the same
        check_runs(model, args, kwargs)
        first = str(error) if isinstance(error, TraceError) else first_line(error)
        read = {name for _, operands in (operations or ())[:-1] for name, _ in operands}  # the last are the outputs
        only = [name for name in unread(program) if operations is None or name in read]
        if not only:
            return f"training mode was not followed, only eval mode: {first}"
        more = f" and {len(only) - MAX_NAMES} more" if len(only) > MAX_NAMES else ""
        raise TraceError(
            f"in eval mode the model never reads {', '.join(only[:MAX_NAMES])}{more}, and its training mode cannot "
            f"be followed ({first}), so that what these parameters read is unknown. Pass inputs with which the model "
            "also runs in training mode, or trace it without the branch that they belong to."
        ) from error


def unread(program: ExportedProgram) -> list[str]:
    """Parameters that the graph does not use."""
    used = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    specs = program.graph_signature.input_specs
    return [str(s.target) for s in specs if s.kind is InputKind.PARAMETER and s.arg.name not in used]


def note_of_unread(programs: Sequence[ExportedProgram], tensors: Mapping[str, TensorSpec]) -> str | None:
    """What is said of parameters that no graph uses; None if there are none.

    What feeds them cannot be seen: they may be used by nobody, or by calls of another kind than the example.

    Args:
        programs: the graphs of eval and, where it is another, of training mode.
        tensors: every parameter with its other names, of which one may be read; single numbers fit any size.
    """
    of_each = [set(unread(program)) for program in programs]
    never = set.intersection(*of_each)
    left = [
        name
        for name, spec in tensors.items()
        if spec.is_parameter and max(spec.shape, default=1) > 1 and {name, *spec.aliases} <= never
    ]
    if not left:
        return None
    shown = ", ".join(left[:FEW]) + (f" and {len(left) - FEW} more" if len(left) > FEW else "")
    return (
        f"{UNREAD} {shown}: they keep their sizes, so that a call which reads them may fail once the network has "
        "changed. If any does, trace with inputs with which one call reads all, or name the groups by hand (groups=)."
    )


class _Recorder(TorchDispatchMode):
    """Writes down every operation: its name, the shapes that enter it, and which of the model's tensors these are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operands = [(self.names.get(id(t)), tuple(t.shape)) for t in tree_leaves(args) if isinstance(t, Tensor)]
        self.operations.append((str(func), tuple(operands)))
        return func(*args, **(kwargs or {}))


def _nothing(_: Any) -> Any:
    """In the place of a tensor that is kept for a backward pass, which there is not."""


def _operations(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool) -> list[Operation]:
    """Everything that one call computes, in its order; what is random, left out."""
    args, kwargs = own((args, dict(kwargs)))
    mode: Callable[[nn.Module], Any] = steady_training if training else steady
    # with gradients, as in training: without, transformer layers take a fused path; nothing is kept for them
    forget = torch.autograd.graph.saved_tensors_hooks(_nothing, _nothing)
    with quiet_rng(), torch.enable_grad(), forget, mode(model), _Recorder(model) as recorder:
        outputs = model(*args, **kwargs)
    shapes = tuple(tuple(t.shape) for t in tree_leaves(outputs) if isinstance(t, Tensor))
    return [*recorder.operations, ("outputs", shapes)]
