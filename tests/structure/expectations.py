"""Saying in one line what a structure should hold."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

import apical
from apical import Structure
from structure.contract import check_contract, doubled, generic_

Groups = dict[str, tuple[int, str, str]]  # name -> (units, role, gate site)

# Reasons for being frozen that many nets share.
OUTPUT = "reaches the model's output"
OVER_CHANNELS = "normalised over channels"


def site(structure: Structure, name: str) -> str:
    """The gate site of a group: ``"bn.weight bn.bias"``, with the dimension where it is not the first."""
    parts = structure.group(name).gate_site
    return " ".join(p.tensor if p.dim == 0 else f"{p.tensor}/{p.dim}" for p in parts)


def groups_of(structure: Structure) -> Groups:
    """Every group with its size, its role and its gate site."""
    return {g.name: (g.size, g.role, site(structure, g.name)) for g in structure.groups}


def members_of(structure: Structure, name: str) -> dict[str, int]:
    """How many positions each unit of a group has in each tensor: ``{"conv.weight": 1, "fc.weight/1": 49}``."""
    found = {}
    for part in structure.group(name).members:
        (per_unit,) = {len(unit) for unit in part.positions}
        found[part.tensor if part.dim == 0 else f"{part.tensor}/{part.dim}"] = per_unit
    return found


def reasons_of(structure: Structure) -> dict[str, str]:
    """Why each frozen layer is frozen; several reasons of one layer are joined."""
    found: dict[str, str] = {}
    for frozen in structure.frozen:
        found[frozen.name] = "; ".join(filter(None, [found.get(frozen.name), f"{frozen.size}: {frozen.reason}"]))
    return found


def traced(model: nn.Module, inputs: tuple[Any, ...], **options: Any) -> Structure:
    """The structure, after the contract was checked on a float64 copy of the model."""
    structure = apical.trace(model, inputs, **options)
    if "example_kwargs" not in options:
        twin = generic_(copy.deepcopy(model))
        check_contract(twin, structure, doubled(inputs), state_outputs=options.get("state_outputs", ()))
    return structure


def expect(model: nn.Module, inputs: tuple[Any, ...], groups: Groups, frozen: dict[str, str], **options: Any) -> None:
    """Trace, check the contract, and compare: groups exactly, frozen layers by a part of the reason."""
    structure = traced(model, inputs, **options)
    assert groups_of(structure) == groups
    reasons = reasons_of(structure)
    assert reasons.keys() == frozen.keys(), reasons
    wrong = {name: reasons[name] for name, part in frozen.items() if part not in reasons[name]}
    assert not wrong, wrong
