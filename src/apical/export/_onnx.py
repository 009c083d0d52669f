"""ONNX files, checked through onnxruntime."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from apical._checks import shown
from apical._optional import import_optional
from apical.errors import ExportError
from apical.export._portable import TOLERANCE, Equivalence, check_options, frozen_twin, trace_program, write_checked
from apical.quantize import QuantizedTensor
from apical.quantize._packing import check_quantized, codes_of
from apical.resizing._install import lookup
from apical.structure import Call, ExampleInputs
from apical.structure._quiet import quiet


def export_onnx(
    model: nn.Module,
    example_inputs: ExampleInputs,
    path: str | os.PathLike[str],
    *,
    batch_dim: int | None = 0,
    tolerance: float = TOLERANCE,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    quantized: Mapping[str, QuantizedTensor] | None = None,
) -> Equivalence:
    """Write a model as one ONNX file, run it through onnxruntime, and compare its outputs with the model's.

    The file holds the graph of eval mode with the weights inside. Nests of tensors become one input or output for
    each tensor, in their order; the size that may vary is called ``batch``. The model itself is left as it is; the
    file appears only if the outputs agree.

    Args:
        model: any module that `torch.export` accepts, unwrapped.
        example_inputs: arguments of one call: a tensor, a tuple, or a dict of keyword arguments; tensors, or nests of
            tensors such as a recurrent state.
        path: the file to write.
        batch_dim: dimension of every input that may have any size in the file; None fixes all sizes.
        tolerance: largest difference allowed, relative to max(1, largest output).
        input_names: of every input tensor; if None the names of keyword arguments, and ``input`` for the only other
            one, else ``input_0``, ``input_1``, …
        output_names: of every output tensor; if None the keys of a dict, and ``output`` for a single tensor, else
            ``output_0``, ``output_1``, …
        quantized: bits and scale of weights that are integers times a scale, by name (``Grower.quantized``). The file
            holds them as int8 with a DequantizeLinear node each; activations stay floating-point.

    Returns:
        What was compared.

    Raises:
        ExportError: onnx, onnxscript or onnxruntime is not installed, the model cannot be exported, or the outputs
            disagree.
        LoadError: a weight is not what ``quantized`` says.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_onnx(nn.Linear(2, 3), torch.ones(1, 2), f"{folder}/model.onnx")
        >>> report.batch_sizes, report.difference <= 1e-5
        ((1, 3), True)
    """
    runtime = _import_all()
    check_options(batch_dim, tolerance)
    frozen, inputs = frozen_twin(model, example_inputs, batch_dim)
    check_quantized(quantized, dict(frozen.named_parameters(remove_duplicate=False)), ExportError)
    program = trace_program(frozen, inputs, batch_dim)
    names, returned = _default_names(inputs), _output_names(program)
    weights = set(frozen.state_dict())
    if input_names is not None:
        names = _checked(input_names, "input_names", len(names), weights)
    if output_names is not None:
        returned = _checked(output_names, "output_names", len(returned), {*weights, *names})

    def write(aside: Path) -> None:
        _convert(program, aside, names, returned, not quantized)
        if batch_dim is not None:
            _name_batch(aside, batch_dim)
        if quantized:
            _insert_codes(aside, {name: (codes_of(lookup(frozen, name), q), q.scale) for name, q in quantized.items()})

    return write_checked(
        "onnx",
        Path(path),
        frozen,
        inputs,
        batch_dim,
        tolerance,
        write,
        partial(_session, runtime),
        f"onnxruntime {runtime.__version__}",
    )


def _checked(names: Any, what: str, number: int, taken: Container[str]) -> list[str]:
    """Names for so many tensors, which nothing else in the file has."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise ExportError(f"{what} must be a list of names, got {shown(names)}")
    if len(names) != number:
        raise ExportError(f"{what} has {len(names)} names for {number} tensors")
    again = next((name for i, name in enumerate(names) if name in names[:i] or name in taken), None)
    if again is not None:
        raise ExportError(f"{what} names {again!r}, which names another tensor of the file; choose another name")
    return list(names)


def _default_names(inputs: Call) -> list[str]:
    """A keyword argument that is a tensor has its own name, the others are numbered if there are several."""
    named = {id(value): name for name, value in inputs.kwargs.items() if isinstance(value, Tensor)}
    tensors = inputs.tensors()
    alone = sum(id(value) not in named for value in tensors) == 1
    return [named.get(id(v), "input" if alone else f"input_{i}") for i, v in enumerate(tensors)]


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    """The keys of a dict of tensors; else ``output``, or numbers if there are several."""
    returned = program.graph_signature.user_outputs  # a name, or the constant that is returned
    tensors = [place for place, value in enumerate(returned) if isinstance(value, str)]
    tree = pytree.tree_unflatten(range(len(returned)), program.call_spec.out_spec)
    keys = {place: key for key, place in tree.items() if isinstance(place, int)} if isinstance(tree, Mapping) else {}
    if all(isinstance(keys.get(place), str) for place in tensors):
        return [keys[place] for place in tensors]
    return ["output"] if len(tensors) == 1 else [f"output_{i}" for i in range(len(tensors))]


def _import_all() -> Any:
    """The last of the packages that writing needs."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        module = import_optional(name, name, "export", "writing ONNX", ExportError)
    return module


def _convert(
    program: torch.export.ExportedProgram, path: Path, input_names: list[str], output_names: list[str],
    optimize: bool,
) -> None:  # fmt: skip
    try:
        with quiet("stdout"):
            torch.onnx.export(
                program,
                f=path,
                dynamo=True,
                external_data=False,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
                optimize=optimize,  # which would fold batch norms into the weights
            )
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"the ONNX exporter failed: {type(error).__name__}: {str(error).strip()[:400]}") from error


def _name_batch(path: Path, batch_dim: int) -> None:
    """Call the free size of the inputs ``batch``, and sizes that follow from it accordingly."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(path)
    shapes = {
        value.name: value.type.tensor_type.shape.dim
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    }
    free = {shapes[value.name][batch_dim].dim_param for value in model.graph.input} - {""}
    if free:
        symbol = re.compile(rf"\b({'|'.join(map(re.escape, free))})\b")
        for dim in (dim for shape in shapes.values() for dim in shape if dim.dim_param):
            dim.dim_param = symbol.sub("batch", dim.dim_param)
        onnx.save(model, path)


def _insert_codes(path: Path, weights: Mapping[str, tuple[Tensor, float]]) -> None:
    """Replace weights in a file by int8 codes that DequantizeLinear multiplies with their scale."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(path)
    graph = model.graph
    absent = sorted(set(weights) - {value.name for value in graph.initializer})
    if absent:
        raise ExportError(
            f"the exported graph has no weights called {', '.join(absent[:5])}, so that they cannot be written as "
            "integers; leave out quantized, which writes them as floating-point numbers of the same values"
        )
    kept = [value for value in graph.initializer if value.name not in weights]
    nodes = list(graph.node)
    del graph.initializer[:], graph.node[:]
    for name, (codes, scale) in weights.items():
        inputs = [f"{name}.codes", f"{name}.scale"]
        kept.append(onnx.numpy_helper.from_array(codes.numpy(), inputs[0]))
        kept.append(onnx.numpy_helper.from_array(torch.tensor(scale, dtype=torch.float32).numpy(), inputs[1]))
        graph.node.append(onnx.helper.make_node("DequantizeLinear", inputs, [name], name=f"{name}.dequantize"))
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _session(runtime: Any, path: Path) -> Callable[..., list[Tensor]]:
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        feed = {name: value.numpy() for name, value in zip(names, Call(args, kwargs).tensors(), strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return run
