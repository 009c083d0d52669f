"""What a run's folder says about the full model, beside the network that it became."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import nn

from apical.growth._record import template_record
from apical.structure import Structure
from apical.structure._cost import lies_in


def template_facts(method: object) -> dict[str, Any]:
    """Costs, widths, blocks and frozen parts of the model that a method started from; empty if it traced none."""
    structure = getattr(method, "structure", None)
    if not isinstance(structure, Structure):
        return {}
    return template_record(structure)


def layer_facts(
    structure: Structure, model: nn.Module, widths: Mapping[str, int], skipped: Sequence[str]
) -> list[dict[str, Any]]:
    """Each layer with a weight matrix: its shapes, parameters and MACs in the full model and in the final one.

    Returns:
        Dicts with `name`, `type`, `full` and `final` (shapes of the matrices; `final` is None where the layer is
        gone), `params` and `macs` (each for the full model and the final one).
    """
    kept = dict(model.named_parameters(remove_duplicate=False))
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    layers: dict[str, list[str]] = {}
    for name, spec in structure.tensors.items():
        if spec.is_parameter:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    full_macs, final_macs = _macs(structure, None, ()), _macs(structure, widths, skipped)
    found = []
    for layer, names in layers.items():
        matrices = [name for name in names if len(structure.tensors[name].shape) >= 2]
        if matrices:
            there = all(name in kept for name in names)
            found.append(
                {
                    "name": layer,
                    "type": types.get(layer, "") if there else "",
                    "full": [list(structure.tensors[name].shape) for name in matrices],
                    "final": [list(kept[name].shape) for name in matrices] if there else None,
                    "params": [
                        sum(prod(structure.tensors[name].shape) for name in names),
                        sum(kept[name].numel() for name in names) if there else 0,
                    ],
                    "macs": [full_macs.get(layer, 0), final_macs.get(layer, 0) if there else 0],
                }
            )
    return found


def _macs(structure: Structure, widths: Mapping[str, int] | None, skipped: Sequence[str]) -> dict[str, int]:
    """By the first module that a cost term names."""
    sizes = [(widths or {}).get(group.name, group.size) for group in structure.groups]
    costs: dict[str, int] = {}
    absent = structure.left_out(skipped)
    for term in structure.terms:
        gone = term.modules and all(any(lies_in(path, module) for module in absent) for path in term.modules)
        if term.modules and not gone:
            cost = term.coefficient * prod(axis.length(sizes) for axis in term.axes)
            costs[term.modules[0]] = costs.get(term.modules[0], 0) + cost
    return costs
