"""Formats that run without this library, and the proof that what was written computes the same."""

from __future__ import annotations

import copy
import inspect
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from apical._atomic import atomic_file, make_folder
from apical._checks import fits, shown
from apical.errors import ExportError
from apical.resizing._guards import refuse_wrapped
from apical.structure import Call, ExampleInputs
from apical.structure._quiet import quiet
from apical.structure._running import make_traceable_

TOLERANCE = 1e-5
PLAIN = (bool, int, float, str)  # options of the call that become constants
CHECKED_BATCHES = (3, 1)
"""Batch sizes at which a file with a free batch size is compared with the model, beside that of the example."""


@dataclass(frozen=True)
class Equivalence:
    """How far the outputs of a written file are from those of the model.

    Attributes:
        format: `"onnx"` or `"pt2"`.
        path: the file.
        batch_sizes: of the inputs that were compared; empty where the batch size is fixed.
        difference: largest |file − model| / max(1, largest |model|) over all outputs and inputs.
        tolerance: what `difference` may not exceed.
        runtime: what ran the file, with its version.
    """

    format: str
    path: Path
    batch_sizes: tuple[int, ...]
    difference: float
    tolerance: float
    runtime: str

    def __str__(self) -> str:
        sizes = f" at batch sizes {', '.join(map(str, self.batch_sizes))}" if self.batch_sizes else ""
        return (
            f"{self.path}: {self.format}, largest difference {self.difference:.1e} "
            f"(allowed {self.tolerance:.0e}){sizes}, checked with {self.runtime}"
        )


def export_pt2(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: str | os.PathLike[str],
    *,
    batch_dim: int | None = 0,
    tolerance: float = TOLERANCE,
) -> Equivalence:
    """Write a model as a `torch.export` program (`.pt2`), read it back, and compare its outputs with the model's.

    The program is that of eval mode on the CPU. `torch.export.load(path).module()` runs it without the model's code.
    The model itself is left as it is; the file appears only if the outputs agree.

    Args:
        model: any module that `torch.export` accepts, unwrapped.
        example_inputs: arguments of one call: a tensor, a tuple, or a dict of keyword arguments; tensors, or nests of
            tensors such as a recurrent state.
        path: the file to write.
        batch_dim: dimension of every input that may have any size; None fixes all sizes.
        tolerance: largest difference allowed, relative to max(1, largest output).

    Returns:
        What was compared.

    Raises:
        ExportError: the model cannot be exported, the outputs disagree, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_pt2(nn.Linear(2, 3), torch.ones(1, 2), f"{folder}/model.pt2")
        >>> report.batch_sizes, report.difference <= 1e-5
        ((1, 3), True)
    """
    check_options(batch_dim, tolerance)
    frozen, inputs = frozen_twin(model, example_inputs, batch_dim)
    program = trace_program(frozen, inputs, batch_dim)

    return write_checked(
        "pt2",
        Path(path),
        frozen,
        inputs,
        batch_dim,
        tolerance,
        write=partial(_write_program, program),
        load=lambda aside: torch.export.load(aside).module(),
        runtime=f"torch {torch.__version__}",
    )


def _write_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """In memory first: torch's writer of files ends the process where a disk is full."""
    held = io.BytesIO()
    torch.export.save(program, held)
    path.write_bytes(held.getbuffer())


def check_options(batch_dim: Any, tolerance: Any) -> None:
    """Refuse what is no dimension, or no number that a difference can be compared with."""
    if batch_dim is not None and not fits(batch_dim, int):
        raise ExportError(f"batch_dim must be the number of a dimension, or None, got {shown(batch_dim)}")
    if not fits(tolerance, float):
        raise ExportError(f"tolerance must be a number, got {shown(tolerance)}")


def frozen_twin(model: nn.Module, example_inputs: ExampleInputs, batch_dim: int | None) -> tuple[nn.Module, Call]:
    """A copy of the model in eval mode on the CPU, and the example inputs there, checked."""
    refuse_wrapped(model, ExportError)
    call = Call.of(example_inputs)
    leaves = call.tensors()
    options = [value for value in call.kwargs.values() if isinstance(value, PLAIN)]
    kinds = [type(value).__name__ for value in pytree.tree_leaves((call.args, dict(call.kwargs)))]
    if not leaves or len(leaves) + len(options) < len(kinds):
        raise ExportError(f"example_inputs must be a tensor or a tuple or dict of tensors, got {kinds}")
    if any(value.is_meta for value in (*leaves, *model.parameters(), *model.buffers())):
        raise ExportError("the model or example_inputs are on the meta device, without values; pass those with values")
    if batch_dim is not None:
        for number, value in enumerate(leaves):
            if not -value.ndim <= batch_dim < value.ndim:
                raise ExportError(
                    f"input {number} has shape {tuple(value.shape)} and no dimension {batch_dim} that could be the "
                    "batch; pass another batch_dim, or None to fix all sizes"
                )
            if not value.shape[batch_dim]:
                raise ExportError(
                    f"input {number} has shape {tuple(value.shape)}, no example along dimension {batch_dim}; pass one "
                    "example or more"
                )
    twin = copy.deepcopy(model).cpu().eval()
    make_traceable_(twin)
    return twin, call.map(lambda value: value.detach().cpu())


def trace_program(model: nn.Module, inputs: Call, batch_dim: int | None) -> torch.export.ExportedProgram:
    """The program of one call, with the batch dimension free if one is named."""
    shapes, given = None, inputs
    if batch_dim is not None:  # a batch of one would be taken for a constant
        inputs = with_batch(inputs, 2, batch_dim)
        shapes = _free_shapes(model, inputs, batch_dim)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(
                model, inputs.args, dict(inputs.kwargs) or None, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        _outputs(model, given)  # a model that does not run itself is said to be just that
        raise ExportError(
            f"torch.export cannot export {type(model).__qualname__}: {_first_line(error)}. If it depends on the batch "
            "size, pass batch_dim=None in Python; if its code branches on values, it has no export."
        ) from error


def _outputs(model: nn.Module, inputs: Call) -> Any:
    """What the model itself computes."""
    try:
        with torch.no_grad():
            return inputs.run(model)
    except Exception as error:
        raise ExportError(
            f"the model itself does not run on inputs {_described(inputs)}: {_first_line(error)}. Pass example inputs "
            "(example_inputs, or --input) with which it runs on the CPU in eval mode."
        ) from error


def _free_shapes(model: nn.Module, inputs: Call, batch_dim: int) -> Any:
    """Which dimensions may have any size, in the order of the positional arguments, or by the name of each argument."""

    def free(value: Any) -> Any:
        return {batch_dim % value.ndim: torch.export.Dim.AUTO} if isinstance(value, Tensor) else None

    if not inputs.kwargs:
        return pytree.tree_map(free, inputs.args)
    try:
        named = inspect.signature(model.forward).bind(*inputs.args, **inputs.kwargs).arguments
    except TypeError as error:
        raise ExportError(f"{type(model).__qualname__}.forward does not take these example_inputs: {error}") from error
    return {name: pytree.tree_map(free, value) for name, value in named.items()}


def write_checked(
    kind: str,
    path: Path,
    model: nn.Module,
    inputs: Call,
    batch_dim: int | None,
    tolerance: float,
    write: Callable[[Path], None],
    load: Callable[[Path], Callable[..., Any]],
    runtime: str,
) -> Equivalence:
    """Write aside, read back, compare, and only then move into place."""
    with _aside(path) as aside:
        write(aside)
        try:
            with quiet():
                run = load(aside)
        except OSError:
            raise
        except Exception as error:  # torch's and onnxruntime's readers raise anything, for odd names of files, too
            raise ExportError(f"the {kind} file {str(path)!a} cannot be read back: {_first_line(error)}") from error
        sizes = _batch_sizes(inputs, batch_dim)
        worst = 0.0
        for number, size in enumerate(sizes or (0,)):
            call = inputs if number == 0 or batch_dim is None else with_batch(inputs, size, batch_dim)
            worst = max(worst, _compare(kind, model, run, call))
        _require_close(kind, path, worst, tolerance)
        return Equivalence(kind, path, sizes, worst, tolerance, runtime)


def _require_close(kind: str, path: Path, difference: float, tolerance: float) -> None:
    if not difference <= tolerance:  # also catches nan
        raise ExportError(
            f"the {kind} file does not compute what the model computes: largest difference {difference:.2e}, allowed "
            f"{tolerance:.0e}; {path} was not written. Pass a larger tolerance if that is precise enough."
        )


def _compare(kind: str, model: nn.Module, run: Callable[..., Any], inputs: Call) -> float:
    expected = _outputs(model, inputs)
    with torch.no_grad():
        try:
            got = inputs.run(run)
        except Exception as error:
            raise ExportError(
                f"the {kind} file does not run on inputs {_described(inputs)}: "
                f"{_first_line(error)}. If the model cannot have a free batch size, pass batch_dim=None in Python."
            ) from error
    return largest_difference(expected, got)


def _described(inputs: Call) -> str:
    """Shape and dtype of each tensor."""
    return ", ".join(f"{tuple(value.shape)} {value.dtype}" for value in inputs.tensors())


def with_batch(inputs: Call, size: int, batch_dim: int) -> Call:
    """Inputs of another batch size: the examples repeated, floating-point ones with some noise."""
    generator = torch.Generator().manual_seed(size)

    def repeated(value: Tensor) -> Tensor:
        chosen = value.index_select(batch_dim, torch.arange(size) % value.shape[batch_dim])
        if chosen.is_floating_point():
            chosen = chosen + torch.randn(chosen.shape, generator=generator).to(chosen.dtype) / 4
        return chosen

    return inputs.map(repeated)


def largest_difference(expected: Any, got: Any) -> float:
    """Largest |got − expected| / max(1, largest |expected|) over all tensors; infinite if they do not correspond."""
    pairs = _tensors(expected), _tensors(got)
    if [tuple(t.shape) for t in pairs[0]] != [tuple(t.shape) for t in pairs[1]]:
        return float("inf")
    worst = 0.0
    for a, b in zip(*pairs, strict=True):
        if not a.numel():
            continue
        a, b = a.double(), b.double()
        difference = float((a - b).abs().max() / a.abs().max().clamp(min=1))
        worst = difference if difference != difference else max(worst, difference)
    return worst


def _tensors(value: Any) -> list[Tensor]:
    return [torch.as_tensor(leaf) for leaf in pytree.tree_leaves(value) if leaf is not None]


def _batch_sizes(inputs: Call, batch_dim: int | None) -> tuple[int, ...]:
    if batch_dim is None:
        return ()
    own = inputs.tensors()[0].shape[batch_dim]
    return tuple(dict.fromkeys((own, *(CHECKED_BATCHES if own != 1 else CHECKED_BATCHES[:1]))))


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A temporary file beside the target that replaces it at the end, or disappears after an error."""
    try:
        make_folder(path.parent)
        with atomic_file(path) as aside:
            yield aside
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error}. Choose another file, or free space.") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
