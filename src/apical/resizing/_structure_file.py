"""A structure as a file, so that another process or a later run need not trace the model again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from os import PathLike
from typing import Any, get_args, get_type_hints

from torch import nn

from apical._atomic import atomic_file
from apical._checks import as_path, fits, in_words, shown
from apical._reading import read_record
from apical.errors import LoadError, SaveError, why_not_written
from apical.resizing._guards import misfits
from apical.resizing._indexing import TemplateMap
from apical.resizing._selection import Selection
from apical.structure import ParamSlice, Structure
from apical.structure._local_sizes import can_have
from apical.structure._sizes import stated

FORMAT = "apical-structure"
VERSION = 1
MAX_BYTES = 2**30  # every position is written out
SHOWN = 3  # problems of a message


def save_structure(structure: Structure, path: str | PathLike[str]) -> None:
    """Write a structure as JSON: whole, or not at all.

    Args:
        structure: what `apical.trace` returned.
        path: the file; one that is there is replaced.

    Raises:
        SaveError: it cannot be written.

    Example:
        >>> import tempfile, torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> file = tempfile.mkdtemp() + "/structure.json"
        >>> apical.save_structure(apical.trace(net, torch.zeros(1, 3)), file)
        >>> apical.load_structure(file, net).groups
        (<ChannelGroup '0': 8 units, inner, 3 slices>,)
    """
    if not isinstance(structure, Structure):
        raise SaveError(f"structure must be the Structure that apical.trace returned, got {shown(structure)}")
    path = as_path(path, "path", SaveError)
    content = structure.to_dict()
    data = {"format": FORMAT, "version": VERSION, "sha256": _digest(content), "structure": content}
    try:
        with atomic_file(path) as aside:
            aside.write_text(json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise SaveError(f"cannot write {path}: {why_not_written(path, error)}. Name another file.") from error


def load_structure(path: str | PathLike[str], model: nn.Module) -> Structure:
    """The structure that `save_structure` wrote, if it is one of this model; nothing is traced.

    Pass it on as ``apical.Grower(..., structure=...)``, or to `apical.resize_`. What is compared are the names and
    shapes of all parameters and buffers, and the sizes that modules state (``num_heads``, ``out_channels``). The code
    of the model is not: after a change of its forward pass, trace it again. `Structure.macs` keeps pricing the
    example that was traced.

    Args:
        path: the file.
        model: as it was when it was traced: unwrapped and of full size.

    Raises:
        LoadError: the file is missing, damaged, of another format, or belongs to another model.
    """
    path = as_path(path, "path", LoadError)
    data = read_record(path, MAX_BYTES, FORMAT, "a file that apical.save_structure wrote")
    if data.get("version") != VERSION:
        raise LoadError(
            f"{path} has format version {data.get('version')!r}, this apical reads {VERSION}; trace the model again"
        )
    if data.get("sha256") != _digest(data.get("structure")):
        raise LoadError(f"{path} is damaged: its contents do not have the digest that it states; save it again")
    try:
        structure = Structure.from_dict(data["structure"])
        problems = [*_mistyped(structure, Structure, "structure")] or [*_contradictions(structure)]
        problems = problems or [*_impossible_costs(structure)]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as problem:
        raise LoadError(f"{path} is damaged: {type(problem).__name__}: {problem}") from problem
    if problems:
        raise LoadError(f"{path} contradicts itself: {_listed(problems)}")
    problems = [*misfits(model, TemplateMap(structure), Selection.full(structure)), *_other_sizes(structure, model)]
    if problems:
        raise LoadError(
            f"{path} is the structure of another model than this {type(model).__name__}: {_listed(problems)}. Build "
            "the model that was traced, at full size, or trace this one with apical.trace"
        )
    return structure


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _listed(problems: list[str]) -> str:
    more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _mistyped(value: Any, hint: Any, where: str) -> Iterator[str]:
    """What is of another type than the field of a dataclass that holds it."""
    if not dataclasses.is_dataclass(value):
        arguments = get_args(hint)
        if isinstance(value, tuple) and arguments and dataclasses.is_dataclass(arguments[0]):
            for i, item in enumerate(value):
                yield from _mistyped(item, arguments[0], f"{where}[{i}]")
        elif isinstance(value, Mapping) and arguments:
            for name, item in value.items():
                yield from _mistyped(item, arguments[1], f"{where}[{name!r}]")
        elif not fits(value, hint):
            yield f"{where}: expected {in_words(hint)}, got {shown(value)}"
        return
    kind: Any = type(value)
    for name, expected in _hints(kind).items():
        yield from _mistyped(getattr(value, name), expected, f"{where}.{name}")


def _contradictions(structure: Structure) -> Iterator[str]:
    """What cannot be so in any model: slices outside their tensors, sizes of groups that do not exist."""

    def outside(part: ParamSlice, size: int) -> bool:
        spec = structure.tensors.get(part.tensor)
        if spec is None or not 0 <= part.dim < len(spec.shape) or len(part.positions) != size:
            return True
        if len(set(map(len, part.positions))) > 1:  # each unit has as many
            return True
        return not all(0 <= position < spec.shape[part.dim] for unit in part.positions for position in unit)

    taken: dict[tuple[str, int], set[int]] = {}
    for group in structure.groups:
        parts = (*group.members, *group.gate_site, *group.readers)
        yield from (f"{part!r} of group {group.name!r} is not there" for part in parts if outside(part, group.size))
        for part in group.members:
            own, here = taken.setdefault((part.tensor, part.dim), set()), [p for unit in part.positions for p in unit]
            if len(set(here)) < len(here) or not own.isdisjoint(here):
                yield f"{part!r} of group {group.name!r} has positions that other units have"
            own.update(here)
    terms = (*structure.terms, *structure.param_axes)
    axes = [*(axis for term in terms for axis in term.axes), *(a.axis for a in structure.attributes)]
    known, names = range(len(structure.groups)), {group.name for group in structure.groups}
    if any(group not in known for axis in axes for group, _ in axis.counts):
        yield f"a size follows a group that is not one of the {len(known)}"
    gates = [(block.name, name) for block in structure.blocks for name in block.gate_site]
    yield from (f"the gate {n} of block {b} is not there" for b, n in gates if n not in structure.tensors)
    yield from (f"{state!r} is of no known group" for state in structure.states if state.group not in names)


def _impossible_costs(structure: Structure) -> Iterator[str]:
    """Numbers that are none of a cost, or that are too large to be counted with (an `OverflowError`)."""
    costs = {"multiply-adds": structure.macs(), "parameters": structure.num_params()}
    yield from (f"it has {cost} {what}" for what, cost in costs.items() if cost < 0)


def _other_sizes(structure: Structure, model: nn.Module) -> Iterator[str]:
    """Modules that are not there, and sizes that they state otherwise (heads of the same weights, say)."""
    modules = dict(model.named_modules(remove_duplicate=False))
    blocks = [path for block in structure.blocks for path in block.modules]
    yield from (f"there is no module {path}" for path in blocks if path not in modules)
    sizes = [group.size for group in structure.groups]
    for spec in structure.attributes:
        expected = spec.axis.length(sizes)
        got = stated(modules[spec.module], spec.attribute) if spec.module in modules else None
        if got is None and spec.module in modules and can_have(modules[spec.module], spec.attribute):
            continue
        if got != expected:
            got = "missing" if got is None else got
            yield f"{spec.module}.{spec.attribute}".lstrip(".") + f" is {got}, expected {expected}"
