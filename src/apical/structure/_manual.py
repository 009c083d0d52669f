"""Structures described by hand, for models that cannot be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from apical._checks import fits, shown
from apical.errors import TraceError
from apical.structure._analyse import tensor_specs
from apical.structure._cost import CostTerm, SizeAxis
from apical.structure._quiet import quiet_rng
from apical.structure._running import check_runs, own
from apical.structure._structure import Structure
from apical.structure._types import AttributeAxis, ChannelGroup, Frozen, ParamSlice, TensorSpec

HandGroups = Mapping[str, Mapping[str, int] | Sequence[ParamSlice]]


def describe(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], groups: HandGroups) -> Structure:
    """A structure from groups that the user names; costs come from running the model once with hooks.

    Args:
        model: a copy that may be used freely, in eval mode.
        args: positional example inputs.
        kwargs: keyword example inputs.
        groups: for each group the tensors that hold its units: ``{tensor name: dimension}`` where unit u owns
            position u, or `ParamSlice` objects where units own other positions. Later layers' weights are named with
            the dimension that reads the units (1 for linear layers and convolutions): there the gate sits.

    Raises:
        TraceError: if a tensor does not exist, sizes within a group differ, or a group has no reader.
    """
    if not isinstance(groups, Mapping):
        raise TraceError(f"groups must be tensors and their dimensions by the name of a group, got {shown(groups)}")
    specs = tensor_specs(model)
    check_runs(model, args, kwargs)
    made = tuple(_group(name, members, specs) for name, members in groups.items())
    owners: dict[tuple[str, int, int], str] = {}
    for group in made:
        for key in ((m.tensor, m.dim, i) for m in group.members for unit in m.positions for i in unit):
            if owners.setdefault(key, group.name) != group.name:
                raise TraceError(f"{key[0]} (dim {key[1]}) is in two groups, {owners[key]!r} and {group.name!r}")
    axes: dict[tuple[str, int], SizeAxis] = {}
    for i, group in enumerate(made):
        for m in group.members:
            known = axes.get((m.tensor, m.dim), SizeAxis(specs[m.tensor].shape[m.dim]))
            axes[(m.tensor, m.dim)] = SizeAxis(known.base - _covered(m), (*known.counts, (i, len(m.positions[0]))))

    def axis(name: str, dim: int) -> SizeAxis:
        return axes.get((name, dim), SizeAxis(specs[name].shape[dim]))

    param_axes = tuple(
        CostTerm(1, tuple(axis(n, d) for d in range(len(s.shape))), (n.rpartition(".")[0],))
        for n, s in specs.items()
        if s.is_parameter
    )
    touched = {m.tensor.rpartition(".")[0] for g in made for m in g.members}
    others = [n for n, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear)) and n not in touched]
    return Structure(
        groups=made,
        blocks=(),
        frozen=tuple(Frozen(n, model.get_submodule(n).weight.shape[0], "named in no group") for n in others),  # type: ignore[arg-type, index]
        tensors=specs,
        attributes=tuple(_attributes(model, axes)),
        terms=tuple(_terms(model, args, kwargs, axis)),
        param_axes=param_axes,
        notes=("groups were described by hand",),
    )


def _covered(part: ParamSlice) -> int:
    return sum(len(p) for p in part.positions)


def _group(
    name: str, members: Mapping[str, int] | Sequence[ParamSlice], specs: Mapping[str, TensorSpec]
) -> ChannelGroup:
    listed = isinstance(members, Sequence) and all(isinstance(m, ParamSlice) for m in members)
    if not isinstance(name, str) or not (listed or isinstance(members, Mapping)):
        raise TraceError(
            f"group {shown(name)}: expected a name with a dimension for each tensor, or a list of ParamSlice, got "
            f"{shown(members)}"
        )
    pairs = list(members.items()) if isinstance(members, Mapping) else [(m.tensor, m.dim) for m in members]
    for tensor, dim in pairs:
        if tensor not in specs:
            raise TraceError(f"group {name!r}: the model has no parameter or buffer {tensor!r}")
        if not fits(dim, int):
            raise TraceError(f"group {name!r}: the dimension of {tensor} is {shown(dim)}, expected a whole number")
        if not 0 <= dim < len(specs[tensor].shape):
            raise TraceError(f"group {name!r}: {tensor} has shape {specs[tensor].shape}, no dimension {dim}")
    if isinstance(members, Mapping):
        sizes = {f"{t} (dim {d})": specs[t].shape[d] for t, d in pairs}
        slices = [ParamSlice(t, d, tuple((i,) for i in range(specs[t].shape[d]))) for t, d in pairs]
    else:
        slices = list(members)
        sizes = {f"{s.tensor} (dim {s.dim})": len(s.positions) for s in slices}
    if len(set(sizes.values())) != 1:
        raise TraceError(f"group {name!r}: its tensors have different numbers of units: {sizes}")
    for part in slices:
        outside = [i for unit in part.positions for i in unit if not 0 <= i < specs[part.tensor].shape[part.dim]]
        if outside:
            raise TraceError(f"group {name!r}: {part.tensor} has no position {outside[0]} in dimension {part.dim}")
    readers = tuple(s for s in slices if s.dim == 1)
    if not readers:
        raise TraceError(f"group {name!r} names no tensor that reads its units (dimension 1 of a later layer's weight)")
    return ChannelGroup(name, next(iter(sizes.values())), "inner", tuple(slices), readers, readers)


def _attributes(model: nn.Module, axes: Mapping[tuple[str, int], SizeAxis]) -> list[AttributeAxis]:
    found = []
    for (tensor, dim), axis in axes.items():
        path, _, leaf = tensor.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear) and leaf == "weight":
            found.append(AttributeAxis(path, ("out_features", "in_features")[dim], axis))
        elif isinstance(module, _ConvNd) and leaf == "weight" and module.groups == 1 and dim < 2:
            names = ("in_channels", "out_channels") if module.transposed else ("out_channels", "in_channels")
            found.append(AttributeAxis(path, names[dim], axis))
        elif hasattr(module, "num_features") and leaf == "weight":
            found.append(AttributeAxis(path, "num_features", axis))
        elif isinstance(module, nn.Embedding) and dim == 1:
            found.append(AttributeAxis(path, "embedding_dim", axis))
        elif isinstance(module, nn.RNNBase) and leaf == "weight_hh_l0" and dim == 1:
            found.append(AttributeAxis(path, "hidden_size", axis))
        elif isinstance(module, nn.RNNBase) and leaf == "weight_ih_l0" and dim == 1:
            found.append(AttributeAxis(path, "input_size", axis))
    return found


def _terms(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], axis: Any) -> list[CostTerm]:
    """Multiply-accumulates of every convolution, linear and recurrent layer, from the shapes of one call."""
    terms: list[CostTerm] = []

    def note(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        prefix = f"{path}." if path else ""
        if isinstance(module, nn.RNNBase):
            x = inputs[0].data if hasattr(inputs[0], "batch_sizes") else inputs[0]
            steps = x.numel() // x.shape[-1]
            for name, matrix in module.named_parameters(recurse=False):
                if matrix.dim() == 2:
                    terms.append(CostTerm(steps, (axis(prefix + name, 0), axis(prefix + name, 1)), (path,)))
        elif isinstance(module, (_ConvNd, nn.Linear)) and isinstance(output, Tensor):
            weight, name = module.weight, prefix + "weight"
            transposed = isinstance(module, _ConvNd) and module.transposed
            pixels = inputs[0].numel() // weight.shape[0] if transposed else output.numel() // weight.shape[0]
            terms.append(CostTerm(pixels * int(weight[0, 0].numel()), (axis(name, 0), axis(name, 1)), (path,)))

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_hook(lambda m, i, o, p=path: note(p, m, i, o)))
    args, kwargs = own((args, dict(kwargs)))
    try:
        with quiet_rng(), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return terms
