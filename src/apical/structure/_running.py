"""Running and exporting a copy of a model, in eval mode and in training mode."""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import config as fx_config
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from apical.errors import TraceError
from apical.structure._quiet import quiet_rng

# Code that is not the user's: an error's place is the last line outside of it.
LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<")

_NO_TRACES = "do_not_emit_stack_traces"  # a setting that older releases of torch do not know, and do not read


def analysis_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode without hooks, so that tracing leaves the user's model exactly as it was."""
    _refuse_computed_weights(model)
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


def _refuse_computed_weights(model: nn.Module) -> None:
    """Raise for weights that hooks compute before every call: they are no parameters, and a copy has none of them."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            name = getattr(hook, "name", None) or getattr(hook, "_tensor_name", "weight")
            advice = ""
            if isinstance(hook, (WeightNorm, SpectralNorm)):
                new = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
                advice = f"use torch.nn.utils.parametrizations.{new}, which replaces torch.nn.utils.{new}"
                if isinstance(hook, SpectralNorm):
                    advice += ", and whose layer keeps its size; that of parametrizations.weight_norm need not"
            elif isinstance(hook, BasePruningMethod):
                advice = f'call torch.nn.utils.prune.remove(module, "{name}"), which keeps the zeros, before tracing'
            if advice:
                where = f"{path}.{name}".lstrip(".")
                raise TraceError(f"{where} is computed by a {type(hook).__name__} hook before every call: {advice}")


def make_traceable_(twin: nn.Module) -> tuple[str, ...]:
    """Change what no exporter can follow in the configs of a copy of a transformers model; says what was changed.

    A cache of keys and values is an object that cannot be returned; training does not need it. The loop over the
    experts that some token chose depends on values; all experts at once compute the same.
    """
    changed: dict[str, None] = {}
    configs: list[Any] = [vars(module).get("config") for module in twin.modules()]
    for config in configs:
        if getattr(config, "use_cache", None) is True:
            config.use_cache = False
            changed["config.use_cache=False"] = None
        if getattr(config, "_experts_implementation", None) == "eager":
            config._experts_implementation = "batched_mm"
            changed["config.experts_implementation='batched_mm'"] = None
    return tuple(changed)


def export_graph(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], lines: bool = False
) -> ExportedProgram:
    """The model's forward pass as a graph of torch operations, every size fixed to the example's.

    ``lines``: each node knows the lines of code that it comes from, which takes a seventh longer.
    """
    try:
        with quiet_rng(), torch.enable_grad(), _stack_traces(lines):
            return torch.export.export(model, own(args), own(dict(kwargs)), strict=False)
    except Exception as problem:
        check_runs(model, args, kwargs)
        raise TraceError(
            f"torch.export cannot trace {type(model).__name__}: {first_line(problem)}. {_way_out(problem)}"
        ) from problem


def _way_out(problem: Exception) -> str:
    """What to do about a forward pass that torch cannot export."""
    text = str(problem)
    container = re.search(r"(?:Found|Unsupported input type) <class '(?:.*[.>])?(\w+)'>", text)
    if container:
        name = container[1]
        plain = "return its tensors in a tuple or dict" if "in output" in text else "let forward take its tensors"
        return f"If {name} is a dataclass, call torch.export.register_dataclass({name}) before tracing; else {plain}."
    if "fake tensor in the exported program constant" in text:
        return (
            "A write to a weight's .data in the forward pass (self.weight.data *= self.mask) is the usual cause: "
            "multiply in the call instead, as in F.conv2d(x, self.weight * self.mask, self.bias)."
        )
    return (
        "Branches that depend on tensor values and packed sequences are the usual causes. Trace a variant without "
        "them, or describe the channels by hand: apical.trace(model, example_inputs, groups={name: {tensor: dim}})."
    )


@contextmanager
def _stack_traces(wanted: bool) -> Iterator[None]:
    """Export with a stack trace for each node, or without. One at a time (`quiet_rng`)."""
    before = getattr(fx_config, _NO_TRACES, False)
    setattr(fx_config, _NO_TRACES, not wanted)
    try:
        yield
    finally:
        setattr(fx_config, _NO_TRACES, before)


def first_line(problem: BaseException) -> str:
    """An error in one line: its type, the first line of its text, and the line of the user's code that led to it."""
    text = next(iter(str(problem).strip().splitlines()), "").rstrip(".")
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if not f.filename.startswith(LIBRARIES)]
    name = type(problem).__name__
    said = f"{name}: {text}" if text else name
    if not frames or not frames[-1].line:
        return said
    return f"{said} at {Path(frames[-1].filename).name}:{frames[-1].lineno} ({frames[-1].line.strip()[:80]})"


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
            f"{problem}. {_advice(model, args, kwargs)}"
        ) from problem


def _advice(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """What to pass instead of inputs on which the model does not run."""
    leaves = torch.utils._pytree.tree_leaves((args, dict(kwargs)))
    if args and not kwargs and all(type(a) is int for a in args):
        return f"If this is the shape of the only input, pass torch.zeros({', '.join(map(str, args))})."
    shapes = ", ".join(str((1, *v.shape)) for v in leaves if isinstance(v, Tensor) and v.dim())
    args, kwargs = torch.utils._pytree.tree_map(
        lambda v: v.unsqueeze(0) if isinstance(v, Tensor) and v.dim() else v, own((args, dict(kwargs)))
    )
    with suppress(Exception), quiet_rng(), torch.no_grad():
        model(*args, **kwargs)
        return f"They lack the batch dimension: the model runs on {shapes}. Pass a batch, such as x.unsqueeze(0)."
    return "Pass the inputs of one ordinary call, on the model's device and with its dtype."


def _describe(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    shown = [_shape(a) for a in args] + [f"{k}={_shape(v)}" for k, v in kwargs.items()]
    return ", ".join(shown) or "none"


def _shape(value: Any) -> str:
    return (
        f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )
