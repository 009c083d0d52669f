"""What restructurings cost processes among which a model is divided, on paper: what `resize_` gathers and keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from apical.resizing._indexing import TemplateMap
from apical.resizing._selection import Selection
from apical.structure import Structure


@dataclass(frozen=True)
class Traffic:
    """One restructuring, in numbers (not bytes).

    Attributes:
        gathered: that every process puts together from the parts of all.
        at_once: the most of these that it holds whole at a time, for one tensor.
        renewed: of the new tensors, with their moments and gradients: they stand beside the old ones until all are
            made, divided among the processes.
        dormant: of everything that has changed so far, at full size: what the store holds from now on, divided. Moments
            are among it once something changed that had been trained.
    """

    gathered: int
    at_once: int
    renewed: int
    dormant: int


def traffic(structure: Structure, networks: Sequence[Selection], slots: int) -> list[Traffic]:
    """What it costs to go from each network to the next, the first of which is the one that training starts with.

    Of a tensor that changes, the values, each of the optimizer's moments and the gradient are gathered, one after
    another, and, but for the gradient, what is dormant of them.

    Args:
        structure: of the whole model.
        networks: in their order; the model has been whole before the first of them.
        slots: moments of the optimizer that are shaped like their parameter: 1 for momentum, 2 for Adam.

    Returns:
        One record less than there are networks.

    Example:
        >>> import torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> structure = apical.trace(net, torch.zeros(1, 3))
        >>> small, large = (Selection({"0": tuple(range(n))}, frozenset()) for n in (2, 4))
        >>> traffic(structure, [small, large], slots=1)  # (3 + 1 + 2) weights of each unit
        [Traffic(gathered=132, at_once=30, renewed=72, dormant=96)]
    """
    template = TemplateMap(structure)
    changed, trained = set(_changed(template, Selection.full(structure), networks[0])), set[str]()
    found = []
    for before, after in pairwise(networks):
        gathered = at_once = renewed = 0
        now = list(_changed(template, before, after))
        for name in now:
            if not structure.tensors[name].is_parameter:
                continue  # buffers are whole in every process
            full = prod(structure.tensors[name].shape)
            old, new = (_numel(template, name, network) for network in (before, after))
            each = full if old is None else full + old
            stays = old is not None and new is not None
            gathered += (1 + slots) * each + (old or 0 if stays else 0)
            at_once = max(at_once, each)
            renewed += (1 + slots + stays) * (new or 0)
        changed, trained = changed | set(now), trained | set(now)
        held = sum(
            prod(spec.shape) * ((name in changed) + slots * (name in trained and spec.is_parameter))
            for name, spec in structure.tensors.items()
        )
        found.append(Traffic(gathered, at_once, renewed, held))
    return found


def _changed(template: TemplateMap, before: Selection, after: Selection) -> Iterator[str]:
    """Tensors of which other positions are present afterwards."""
    differ = {name for name, kept in after.keep.items() if kept != before.keep[name]}
    touched = {m.tensor for group in template.structure.groups if group.name in differ for m in group.members}
    for name in template.structure.tensors:
        was, is_ = template.present(name, before), template.present(name, after)
        if was != is_ or (was and name in touched):
            yield name


def _numel(template: TemplateMap, name: str, network: Selection) -> int | None:
    return prod(template.shape(name, network)) if template.present(name, network) else None
