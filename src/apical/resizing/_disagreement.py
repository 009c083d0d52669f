"""One comparison of the dry run: units whose gates are zero against their absence, in some parts of a network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from apical.resizing._copying import sharing_copy
from apical.resizing._culprit import explained
from apical.resizing._gates import gated_copy
from apical.resizing._resize import resize_
from apical.resizing._selection import first_units
from apical.resizing._testbed import Testbed, difference, other_shapes
from apical.structure import ChannelGroup, SkippableBlock, Structure
from apical.structure._without import Part

Count = Callable[[int, int], int]  # how many of so many units stay, by a shift that differs between groups
FAILS = "without some of it the forward pass fails: "


def disagreement(structure: Structure, bed: Testbed, parts: Sequence[Part], count: Count) -> str | None:
    """Why removing some of each part's units differs from zeroing their gates; None if it does not.

    Groups of one size lose different numbers of units, so that those which must change alike are found out.

    Groups that are not exact are removed from both networks: what is compared then is everything else beside them.
    """
    if bed.rough is not None and _agree_roughly(structure, replace(bed.rough, modes=bed.modes), parts, count):
        return None
    keep, skip = chosen(parts, count)
    inexact = {p.name: keep[p.name] for p in parts if isinstance(p, ChannelGroup) and not p.exact}
    found = _removed(structure, bed, keep, skip)  # before the gated copy is made: one changed copy at a time
    if isinstance(failed := found[False], str):
        return failed
    zeroed = {name: kept for name, kept in keep.items() if name not in inexact}
    with gated_copy(bed.model, structure, zeroed, skip) as gated:
        if inexact:
            resize_(gated, structure, inexact)
        return _differing(gated, bed, found, bool(inexact))


def _differing(gated: nn.Module, bed: Testbed, found: Mapping[bool, list[Tensor] | str], inexact: bool) -> str | None:
    """How what was found in each mode differs from what the gated model computes; None if it does not."""
    expected: list[Tensor] = []
    for training, outputs in found.items():
        where = "in training mode " if training else ""
        if isinstance(outputs, str):
            return where + outputs
        if not (training and bed.same_modes):
            try:
                expected = bed.example.run(gated, training)
            except Exception as problem:  # noqa: BLE001 (whatever the user's forward pass raises, such as out of memory)
                return f"{where}with gates of zero the forward pass fails: {explained(problem, gated)}"
        reason = difference(expected, outputs, bed.tolerance)
        if reason is None and inexact:
            reason = other_shapes(bed.example.run(bed.model, training), outputs)
        if reason is not None:
            return where + reason
    return None


def chosen(parts: Sequence[Part], count: Count) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Which units of the groups among some parts stay, drawn by chance, and which blocks are left out: all of them."""
    generator = torch.Generator().manual_seed(0)
    orders: dict[str, list[int]] = {}
    counts: dict[str, int] = {}
    kinds: dict[str, int] = {}
    met: dict[str, int] = {}
    for part in parts:
        if isinstance(part, ChannelGroup):
            kind = kind_of(part.name)
            met[kind] = met.get(kind, -1) + 1
            shift = kinds.setdefault(kind, len(kinds)) + met[kind]
            orders[part.name] = torch.randperm(part.size, generator=generator, device="cpu").tolist()
            counts[part.name] = count(part.size, shift)
    return first_units(orders, counts), tuple(p.name for p in parts if isinstance(p, SkippableBlock))


def _agree_roughly(structure: Structure, bed: Testbed, parts: Sequence[Part], count: Count) -> bool:
    """Whether there is no need to look closer; results that are no numbers, or none at all, are no answer."""
    try:
        return disagreement(structure, bed, parts, count) is None
    except Exception:  # noqa: BLE001 (whatever the user's forward pass raises in this type)
        return False


def _removed(
    structure: Structure, bed: Testbed, keep: Mapping[str, Sequence[int]], skip: tuple[str, ...]
) -> dict[bool, list[Tensor] | str]:
    """The smaller model's outputs in each mode, or why it fails there."""
    removed = sharing_copy(bed.model)
    found: dict[bool, list[Tensor] | str] = {}
    for training in bed.modes:
        try:
            if not found:
                resize_(removed, structure, keep, skip)
            found[training] = bed.example.run(removed, training)
        except Exception as problem:  # noqa: BLE001 (whatever the user's forward pass raises is the reason)
            found[training] = f"{FAILS}{explained(problem, removed)}"
            break
    return found


def keep_half(size: int, shift: int) -> int:
    """How many units stay: one more than half, so that a view's -1 cannot hide it; for other shifts other numbers."""
    return 1 if size < 3 else 1 + (size // 2 + shift) % (size - 1)


def keep_odd(size: int, shift: int) -> int:
    """How many units stay: an odd number above half, which no two equal parts have; for other shifts other numbers."""
    return 1 if size < 3 else 1 + (min((size // 2 + 1) | 1, size - 1) - 1 + shift) % (size - 1)


def kind_of(name: str) -> str:
    """A name without its numbers, which parts of one construction have in common."""
    return re.sub(r"\d+", "#", name)


def roles(names: Iterable[str]) -> dict[str, str]:
    """What each name has in common with those of the same layer in other blocks.

    Names of a kind, or of those the ones with the same last number if some have: layers of blocks that repeat.

    Example:
        >>> roles(["h.0.mlp.0", "h.0.mlp.2", "h.1.mlp.0", "h.1.mlp.2", "stem.0", "stem.3"])["h.1.mlp.2"]
        'h.#.mlp.2'
        >>> roles(["stem.0", "stem.3"])
        {'stem.0': 'stem.#', 'stem.3': 'stem.#'}
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind_of(name), []).append(name)
    found: dict[str, str] = {}
    for kind, alike in kinds.items():
        own = {name: re.sub(r"\d+(?=\D.*\d)", "#", name) for name in alike}
        repeats = len(set(own.values())) < len(own)
        found |= own if repeats else dict.fromkeys(own, kind)
    return found
