"""`load`: shrink a freshly built full-size model to a saved shape and fill it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from apical._atomic import asides
from apical._checks import as_path
from apical.errors import LoadError
from apical.export._format import ARCHITECTURE, WEIGHTS, Architecture, SavedTensor, file_digest, read_architecture
from apical.quantize import QuantizedTensor, unpack
from apical.quantize._packing import SCALES
from apical.resizing._guards import SHRUNK, refuse_wrapped
from apical.resizing._install import Installation, lookup
from apical.resizing._stand_in import StandIn
from apical.structure import TensorSpec
from apical.structure._analyse import tensor_specs
from apical.structure._cost import lies_in
from apical.structure._local_sizes import can_have
from apical.structure._registry import module_refresh
from apical.structure._sizes import stated

LARGEST_HEADER = 10**8  # bytes, by the format of safetensors
LARGEST_NUMBER = 16  # bytes, of a complex one
_ATTEMPTS = 20  # at reading a folder that others keep saving to
_UNREADABLE = (SafetensorError, OSError, RuntimeError)  # the last one of torch, if a file goes while it is opened

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")


def load(model: M, folder: str | os.PathLike[str]) -> M:
    """Shrink a full-size model in place to the shape saved in a folder, and fill in the saved weights.

    Reads JSON and safetensors only, never a pickle, and trusts neither: names, shapes and types must fit the model,
    no size may exceed the model's, and only attributes that state sizes are set. After an error the model is as it
    was.

    Args:
        model: the model at the size at which it was traced, built by its own class; its device and floating-point
            type are kept.
        folder: what `save` wrote.

    Returns:
        The same model.

    Raises:
        LoadError: if the folder is missing, damaged, or does not belong to such a model.

    Example:
        >>> import tempfile, torch, apical
        >>> build = lambda: torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net = build()
        >>> structure = apical.trace(net, torch.zeros(1, 3))
        >>> _ = apical.resize_(net, structure, {"0": [1, 5]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = apical.save(net, folder)
        ...     small = apical.load(build(), folder)
        >>> small[0]
        Linear(in_features=3, out_features=2, bias=True)
    """
    refuse_wrapped(model, LoadError)
    path = as_path(folder, "folder", LoadError)
    architecture, values = _read_folder(model, path)
    install = Installation()
    size = sum(p.numel() for p in model.parameters())
    try:
        _install(model, architecture, values, install)
        _check_sizes(model)
    except BaseException as problem:
        install.undo()
        if isinstance(problem, LoadError) or not isinstance(problem, Exception):
            raise
        raise LoadError(f"{path} could not be loaded, the model is unchanged: {problem}") from problem
    if sum(p.numel() for p in model.parameters()) < size:
        SHRUNK.add(model)
    return model


def _read_folder(model: nn.Module, path: Path) -> tuple[Architecture, dict[str, Tensor]]:
    """The architecture, found to fit the model, and the weights that belong to it."""

    def read() -> tuple[Architecture, dict[str, Tensor]]:
        architecture, weights_digest = read_architecture(path / ARCHITECTURE)
        _check_fits(model, architecture, path)
        return architecture, _read_weights(path / WEIGHTS, architecture, weights_digest)

    return _settled(path, read)


def _settled(path: Path, read: Callable[[], T]) -> T:
    """What is read from a folder; once more, if that fails and somebody has saved another model there meanwhile."""
    for attempt in range(1, _ATTEMPTS + 1):
        before = _state(path)
        try:
            return read()
        except LoadError:
            if attempt == _ATTEMPTS or _state(path) == before:
                raise
    raise AssertionError("unreachable")


def _state(path: Path) -> list[tuple[int, ...] | None]:
    """By what one sees that somebody has saved another model."""
    return [_version(path / name) for name in (ARCHITECTURE, WEIGHTS)]


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # no file can have some names
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _check_fits(model: nn.Module, saved: Architecture, path: Path) -> None:
    """Collect everything in which the model and the saved architecture disagree."""
    expected = _remaining(model, saved)
    modules = dict(model.named_modules())
    problems = [f"it replaces {p}, which the model does not have" for p in saved.removed if p not in modules or not p]
    problems += [
        f"it has a stand-in at {p}, where it removes nothing" for p in saved.stand_ins if p not in saved.removed
    ]
    problems += [f"{n} is missing" for n in expected if n not in saved.tensors]
    for name, tensor in saved.tensors.items():
        if name not in expected:
            problems.append(f"{name} is not in the model")
        else:
            problems += _shape_problems(name, tensor, expected[name].shape)
            if (tensor.kind == "parameter") != expected[name].is_parameter:
                problems.append(f"{name} is a {tensor.kind} in the folder but not in the model")
    aliases = {a: n for n, s in expected.items() for a in s.aliases}
    if not problems and aliases != dict(saved.aliases):
        problems.append(f"other parameters are shared: {dict(saved.aliases)} in the folder, {aliases} in the model")
    problems += _attribute_problems(modules, saved)
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise LoadError(
            f"{path} holds a {saved.model} that does not fit this {type(model).__qualname__}: {'; '.join(problems[:5])}"
            f"{more}. Build the model with the arguments with which it was traced; it is unchanged."
        )


def _remaining(model: nn.Module, saved: Architecture) -> dict[str, TensorSpec]:
    """The model's tensors outside the removed modules, under the first name that is left of each."""
    remaining = {}
    for name, spec in tensor_specs(model).items():
        names = [n for n in (name, *spec.aliases) if not any(lies_in(n, b) for b in saved.removed)]
        if names:
            remaining[names[0]] = TensorSpec(spec.shape, spec.is_parameter, tuple(names[1:]))
    return remaining


def _shape_problems(name: str, tensor: SavedTensor, full: tuple[int, ...]) -> list[str]:
    if len(tensor.shape) != len(full) or any(not min(1, f) <= s <= f for s, f in zip(tensor.shape, full, strict=False)):
        return [f"{name} has shape {tensor.shape}, which is no part of {full}"]
    return []


def _attribute_problems(modules: Mapping[str, nn.Module], saved: Architecture) -> list[str]:
    """A size may only go down to 1 from what the module says, under a public name that it has."""
    problems = []
    for path, values in saved.attributes.items():
        for name, value in values.items():
            most = stated(modules[path], name) if path in modules else None
            if most is None and path in modules and can_have(modules[path], name):
                most = _largest(modules[path])  # it is in the module's code, which does not say it
            if isinstance(most, bool) or not isinstance(most, int) or name.startswith("_") or "._" in name:
                problems.append(f"{path}.{name} is {value}, the model states no such size")
            elif not min(1, most) <= value <= most:
                problems.append(f"{path}.{name} is {value}, the model has {most}")
    return problems


def _largest(module: nn.Module) -> int:
    """What no size in a module's code can exceed that follows its channels."""
    return max((t.numel() for t in (*module.parameters(), *module.buffers())), default=0)


def _read_weights(path: Path, architecture: Architecture, expected_digest: str) -> dict[str, Tensor]:
    try:
        path = _whole_weights(path, architecture, expected_digest)
        before = _version(path)
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if architecture.quantized:
                values = unpack({name: file.get_tensor(name) for name in names}, _like(architecture),
                                architecture.quantized)  # fmt: skip
            elif names != set(architecture.tensors):
                odd = sorted(names ^ set(architecture.tensors))
                raise LoadError(f"{path} and {ARCHITECTURE} disagree about {', '.join(odd[:5])}")
            else:
                values = {name: file.get_tensor(name) for name in architecture.tensors}
        if _version(path) != before:
            raise LoadError(f"{path} was replaced while it was read; load again")
    except _UNREADABLE as problem:
        raise LoadError(f"{path} is not a readable safetensors file: {problem}") from problem
    for name, spec in architecture.tensors.items():
        got = (tuple(values[name].shape), str(values[name].dtype).removeprefix("torch."))
        if got != (spec.shape, spec.dtype):
            raise LoadError(
                f"{name} is {got[1]} {got[0]} in {path.name}, but {spec.dtype} {spec.shape} in {ARCHITECTURE}"
            )
    return values


def load_quantized(folder: str | os.PathLike[str]) -> dict[str, QuantizedTensor]:
    """Bits and scale of the quantised weights in a folder that `save` wrote; empty if there are none.

    Raises:
        LoadError: the folder is missing or damaged.
    """
    path = Path(folder)

    def read() -> dict[str, QuantizedTensor]:
        architecture, digest = read_architecture(path / ARCHITECTURE)
        if not architecture.quantized:
            return {}
        try:
            with safe_open(_whole_weights(path / WEIGHTS, architecture, digest), framework="pt") as file:
                scales = file.get_tensor(SCALES).tolist()
        except _UNREADABLE as problem:
            raise LoadError(f"{path / WEIGHTS} is not a readable safetensors file: {problem}") from problem
        names = [name for name in architecture.tensors if name in architecture.quantized]
        return {n: QuantizedTensor(architecture.quantized[n], scale) for n, scale in zip(names, scales, strict=True)}

    return _settled(path, read)


def _like(architecture: Architecture) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor."""
    like = {}
    for name, tensor in architecture.tensors.items():
        dtype = getattr(torch, tensor.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise LoadError(f"{ARCHITECTURE} says that {name} is of type {tensor.dtype!r}, which is none: damaged")
        like[name] = (tensor.shape, dtype)
    return like


def _whole_weights(path: Path, architecture: Architecture, expected_digest: str) -> Path:
    """The file that has the digest: the weights, or what a save that was killed in its last step had written aside."""
    found = [p for p in (path, *asides(path)) if p.is_file()]
    most = LARGEST_HEADER + LARGEST_NUMBER * sum(prod(tensor.shape) for tensor in architecture.tensors.values())
    for candidate in found:
        # what is far too large might take hours to be read for its digest
        if candidate.stat().st_size <= most and file_digest(candidate) == expected_digest:
            return candidate
    if path in found and (size := path.stat().st_size) > most:
        raise LoadError(f"{path} has {size:,} bytes, more than the {most:,} that {ARCHITECTURE} can mean")
    if path in found:
        raise LoadError(f"{path} is damaged, or belongs to another save: its digest is not the one in {ARCHITECTURE}")
    if path.exists():
        raise LoadError(f"{path} is not a readable safetensors file: it is no file but a folder, a device or a pipe")
    raise LoadError(f"{path} does not exist; expected a folder that apical.save wrote")


def _install(model: nn.Module, saved: Architecture, values: Mapping[str, Tensor], install: Installation) -> None:
    specs = _remaining(model, saved)
    for block in saved.removed:
        replaced = model.get_submodule(block)
        if block in saved.stand_ins:
            install.module(model, block, StandIn(saved.stand_ins[block], replaced))
        elif type(replaced) is not nn.Identity:
            install.module(model, block, nn.Identity())
    for name, value in values.items():
        aliases = (name, *specs[name].aliases)
        old = lookup(model, name)
        if value.is_floating_point() != old.is_floating_point():
            raise LoadError(f"{name} is {value.dtype} in the folder and {old.dtype} in the model")
        new = value.to(old.device, old.dtype, copy=True)  # views into the file lie as they come, not as kernels want
        if specs[name].is_parameter:
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        for alias in aliases:
            install.tensor(model, alias, new)
    for path, attributes in saved.attributes.items():
        for attribute, size in attributes.items():
            install.attribute(model.get_submodule(path), attribute, size)
    for module in model.modules():
        refresh = module_refresh(module)
        if refresh is not None:
            install.attributes_changed_by(module, refresh)


def _check_sizes(model: nn.Module) -> None:
    """Convolutions and linear layers must say about themselves what their weights are."""
    for path, module in model.named_modules():
        if isinstance(module, _ConvNd):
            rows, columns = module.weight.shape[:2]
            ins, outs = (rows, columns * module.groups) if module.transposed else (columns * module.groups, rows)
            stated = (module.in_channels, module.out_channels)
        elif type(module) is nn.Linear:
            outs, ins = module.weight.shape
            stated = (module.in_features, module.out_features)
        else:
            continue
        if stated != (ins, outs):
            raise LoadError(f"{path} states sizes {stated}, its weight is {tuple(module.weight.shape)}: damaged folder")
