"""From joined atoms to channel groups, gate sites, size axes and the list of what is frozen."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from apical.structure._atoms import depends_only_on, drop_constant_dims, line
from apical.structure._cost import CostTerm, SizeAxis
from apical.structure._nodes import place_of
from apical.structure._sizes import HEAD_ATTRIBUTES, WIDTH_ATTRIBUTES
from apical.structure._types import AttributeAxis, ChannelGroup, Frozen, ParamSlice, TensorSpec
from apical.structure._values import AxisKey
from apical.structure._walk import Walk

TOGETHER = "all its channels must go together (or there is only one)"
NORMED = (
    "the norm of a weight is taken over the channels that it writes, so that none can begin without changing the "
    "others; that of weight_norm is each channel's own with dim=0, of a transposed convolution with dim=1"
)


@dataclass(frozen=True)
class Assembly:
    """Everything that follows from the equivalences between atoms."""

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[Frozen, ...]
    attributes: tuple[AttributeAxis, ...]
    terms: tuple[CostTerm, ...]
    param_axes: tuple[CostTerm, ...]


def assemble(walk: Walk, tensors: Mapping[str, TensorSpec]) -> Assembly:
    """Turn the walk's findings, whose rectangles are resolved, into groups, in the order of the forward pass.

    The units of a group are alike in every respect.
    """
    _size_attributes(walk)
    labels = walk.atoms.labels()
    # labels that stay: frozen by a rule, written or read by no weight
    reasons = _frozen_labels(walk, labels)
    alive = torch.ones(walk.atoms.count, dtype=torch.bool, device="cpu")
    alive[torch.tensor(list(reasons), dtype=torch.long, device="cpu")] = False
    sites = _site_pairs(walk, labels)
    groups: list[ChannelGroup] = []
    averaged = _labels_of(walk.averaged, labels)
    group_of = torch.full((walk.atoms.count,), -1, dtype=torch.long, device="cpu")  # label -> group
    taken: dict[str, int] = defaultdict(int)
    summed = _labels_of(_sums_of_producers(walk), labels)
    mixed = _mixed_by_label(walk, labels)
    # labels that own alike parts everywhere are the units of one group; what cannot be one is frozen with the reason
    parts = _alike(walk, labels, alive, sites, averaged)
    part_of = torch.full((walk.atoms.count,), -1, dtype=torch.long, device="cpu")  # label -> part
    for i, units in enumerate(parts):
        part_of[torch.tensor(units, device="cpu")] = i
    for units, keys in zip(parts, _axes_of_parts(walk, labels, part_of, len(parts)), strict=True):
        group = _group(walk, units, keys, labels, sites, taken, summed)
        group = mixed.get(units[0], group) if group is TOGETHER else group
        group = group if isinstance(group, str) else replace(group, exact=averaged.isdisjoint(units))
        if isinstance(group, str):
            reasons.update((label, (group, None)) for label in units)
        else:
            group_of[torch.tensor(units, device="cpu")] = len(groups)
            groups.append(group)
    # every axis, of costs and of attributes, becomes a base and so many positions for each unit of the groups
    sizer = _Sizer(labels, group_of, [g.size for g in groups])
    return Assembly(
        tuple(groups),
        _frozen_list(walk, labels, reasons),
        tuple(AttributeAxis(m, a, axis) for (m, a), ids in walk.attributes.items() if (axis := sizer(ids)).counts),
        tuple(_term(t.coefficient, t.axes, sizer, (t.module,)) for t in walk.terms),
        tuple(_param_term(walk, name, spec, sizer) for name, spec in tensors.items() if spec.is_parameter),
    )


def _size_attributes(walk: Walk) -> None:
    """Tie ``num_heads`` and the like to the units that a view lays out."""
    labels = walk.atoms.labels()
    for path, ids in walk.splits:
        if bool((ids < 0).any()):
            continue
        narrow = drop_constant_dims(ids)
        table = labels[narrow]
        for d in range(table.dim()):
            if depends_only_on(table, d):
                for name in (*HEAD_ATTRIBUTES, *WIDTH_ATTRIBUTES):
                    walk.attribute(name, line(narrow, d), path=path)


def _frozen_labels(walk: Walk, labels: Tensor) -> dict[int, tuple[str, fx.Node | None]]:
    reasons = walk.atoms.frozen_reasons()
    written = torch.zeros(walk.atoms.count, dtype=torch.bool, device="cpu")
    read = torch.zeros(walk.atoms.count, dtype=torch.bool, device="cpu")
    for key in walk.producers:
        written[labels[walk.axes[key]]] = True
    for reading in walk.readings:
        read[labels[reading.ids[reading.ids >= 0]]] = True
    # a unit needs a weight that writes it and a weight that reads it, else nothing could hold its gate or be saved
    every = labels.unique()
    for label in every[~written[every]].tolist():
        reasons.setdefault(label, ("no layer that can shrink writes it", None))
    for label in every[written[every] & ~read[every]].tolist():
        reasons.setdefault(label, ("no later layer reads it through a weight", None))
    return reasons


def _site_pairs(walk: Walk, labels: Tensor) -> dict[int, set[AxisKey]]:
    """For each label the axes at which its gate must sit."""
    pairs: dict[frozenset[AxisKey], list[Tensor]] = defaultdict(list)
    for reading in walk.readings:
        pairs[walk.all_of(reading.site)].append(labels[reading.ids[reading.ids >= 0]])
    found: dict[int, set[AxisKey]] = defaultdict(set)
    for site, vectors in pairs.items():
        for label in torch.cat(vectors).unique().tolist():
            found[label] |= site
    return found


def _axes_of_parts(walk: Walk, labels: Tensor, part_of: Tensor, n: int) -> list[list[AxisKey]]:
    """The axes on which each part (alike labels) has positions."""
    found: list[list[AxisKey]] = [[] for _ in range(n)]
    for key, ids in walk.axes.items():
        for part in part_of[labels[ids]].unique().tolist():
            if part >= 0:
                found[part].append(key)
    return found


def _positions(own: Tensor, units: Tensor) -> Tensor:
    """Where each of these labels is found among an axis's own, equally often  # (units, positions)"""
    ordered, unit_of = units.sort()
    place = torch.searchsorted(ordered, own).clamp(max=len(units) - 1)
    among = (ordered[place] == own).nonzero().reshape(-1)
    return among[unit_of[place[among]].argsort(stable=True)].view(len(units), -1)


def _alike(
    walk: Walk, labels: Tensor, alive: Tensor, sites: Mapping[int, set[AxisKey]], averaged: set[int]
) -> list[list[int]]:
    """Labels partitioned by what they own (how many positions of each axis, attribute and cost, which sites), and by
    whether a mean is taken over them."""
    generator = torch.Generator().manual_seed(0)
    code = torch.zeros(walk.atoms.count, dtype=torch.long, device="cpu")
    seen: set[tuple[int, int, int]] = set()
    # a hash: each axis has a random number, and a label adds up those of the positions that it owns
    vectors = [*walk.axes.values(), *walk.attributes.values(), *(a for t in walk.terms for a in t.axes)]
    for ids in vectors:
        mark = (ids.data_ptr(), ids.numel(), ids.stride(0) if ids.dim() else 0)
        salt = torch.randint(1, 2**62, (1,), generator=generator, device="cpu")
        if mark not in seen:
            seen.add(mark)
            own = ids.reshape(-1)
            code.index_add_(0, labels[own[own >= 0]], salt.expand(int((own >= 0).sum())))
    # ... and those of its gate sites, each once
    salts = {key: int(torch.randint(1, 2**62, (1,), generator=generator, device="cpu")) for key in walk.axes}
    together: dict[frozenset[AxisKey], list[int]] = defaultdict(list)
    for label, keys in sites.items():
        together[frozenset(keys)].append(label)
    for site, own_labels in together.items():
        code[torch.tensor(own_labels, device="cpu")] ^= sum(salts.get(k, 0) for k in site) % 2**62
    parts: dict[tuple[int, bool], list[int]] = defaultdict(list)
    every = labels[alive[labels]].unique()
    for label, mark in zip(every.tolist(), code[every].tolist(), strict=True):
        parts[(mark, label in averaged)].append(label)
    # in the order in which the forward pass first writes them
    written = [label for key in walk.producers for label in labels[walk.axes[key]].tolist()]
    order = {label: i for i, label in enumerate(written[::-1])}
    return sorted(parts.values(), key=lambda part: -max(order.get(label, -1) for label in part))


def _mixed_by_label(walk: Walk, labels: Tensor) -> dict[int, str]:
    """For each label why all its channels are one unit, where an operation joined them along their own dimension."""
    found: dict[int, str] = {}
    for ids, why in walk.mixed:
        first = int(ids[(0,) * ids.dim()])
        if first >= 0:
            found.setdefault(int(labels[first]), f"all its channels must go together, since {why}")
    return found


def _group(
    walk: Walk,
    units: list[int],
    keys: Sequence[AxisKey],
    labels: Tensor,
    sites: Mapping[int, set[AxisKey]],
    taken: dict[str, int],
    summed: set[int],
) -> ChannelGroup | str:
    """The group of these alike units, or the reason why they are frozen."""
    writers = [k for k in walk.producers if k in keys]
    order = torch.tensor(units, device="cpu")
    if writers:  # as the first writer has them
        order = order[_positions(labels[walk.axes[writers[0]]], order)[:, 0].argsort()]
    shared: dict[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]] = {}  # most members lie alike

    def positions(key: AxisKey) -> tuple[tuple[int, ...], ...]:
        found = tuple(map(tuple, _positions(labels[walk.axes[key]], order).tolist()))
        return shared.setdefault(found, found)

    slices = {key: ParamSlice(*key, positions(key)) for key in keys}
    gate = tuple(slices[k] for k in keys if k in sites[units[0]])
    if not gate:
        return "no parameter can hold its gate"
    if len(units) == 1:
        return TOGETHER
    # newborns begin with gates of zero, where those that a weight's norm couples must still get a gradient
    normed = [k for k in writers if k in walk.coupled]
    if any(not _can_begin(walk, key, writers, keys, sites[units[0]]) for key in normed):
        return NORMED
    # a group is named after the module that writes it first
    path = writers[0][0].rpartition(".")[0] or writers[0][0]
    taken[path] += 1
    name = path if taken[path] == 1 else f"{path}:{taken[path]}"
    stream = len(writers) > 1 and any(u in summed for u in units)
    # a normed writer is itself zero at first, so that those who read it need not be; where every writer is a reader as
    # well (tied weights), both would be zero
    apart = not normed and not walk.columns.keys() >= set(writers)
    # (a buffer that reads them, a fixed projection, would stay zero for ever)
    readers = tuple(slices[k] for k in walk.columns if k in slices and walk.is_parameter(k[0])) if apart else ()
    return ChannelGroup(name, len(units), "stream" if stream else "inner", tuple(slices.values()), gate, readers)


def _can_begin(
    walk: Walk, key: AxisKey, writers: Sequence[AxisKey], keys: Iterable[AxisKey], site: Iterable[AxisKey]
) -> bool:
    """Whether units whose gates are all zero get a gradient, though one of their writers is normed over them.

    They do unless a second factor is zero as well: the scale of a norm, or a normed reader if the writer has no bias.
    What other writers add is no factor.
    """
    owners = {_owner(name) for name, _ in writers}
    biases = {k for k in keys if k[0].endswith("bias") and _owner(k[0]) in owners}
    factors = set(site) - set(writers) - {walk.gates[k] for k in writers if k in walk.gates} - biases
    return not factors or (factors <= walk.coupled and any(_owner(name) == _owner(key[0]) for name, _ in biases))


def _owner(tensor: str) -> str:
    """The module that a tensor belongs to, also if it is one of those that a weight is computed from."""
    before, parametrized, _ = tensor.partition(".parametrizations.")
    return before if parametrized else tensor.rpartition(".")[0]


def _sums_of_producers(walk: Walk) -> list[Tensor]:
    """The atoms of additions of what different producers write.

    Rotary positions add two halves of what one producer writes, and a table of position biases writes no channels.
    """
    writing = frozenset(i for i, key in enumerate(walk.axes) if key in walk.producers)
    return [ids for ids, origins in walk.summed if len({writing & o for o in origins if writing & o}) > 1]


def _labels_of(tensors: Iterable[Tensor], labels: Tensor) -> set[int]:
    found: set[int] = set()
    for ids in tensors:
        flat = drop_constant_dims(ids).reshape(-1)
        found.update(labels[flat[flat >= 0]].unique().tolist())
    return found


class _Sizer:
    """Turns vectors of ids into size axes."""

    def __init__(self, labels: Tensor, group_of: Tensor, sizes: list[int]) -> None:
        self._group = group_of[labels] if labels.numel() else labels
        self._sizes = sizes

    def __call__(self, ids: Tensor) -> SizeAxis:
        real = ids.reshape(-1)
        owner = self._group[real[real >= 0]]
        counts: list[tuple[int, int]] = []
        for group, n in zip(*(t.tolist() for t in owner[owner >= 0].unique(return_counts=True)), strict=True):
            if n % self._sizes[group]:
                raise AssertionError(f"units of group {group} do not share an axis evenly")
            counts.append((group, n // self._sizes[group]))
        return SizeAxis(int(ids.numel() - (owner >= 0).sum()), tuple(counts))


def _term(coefficient: int, axes: Iterable[Tensor], sizer: _Sizer, modules: tuple[str, ...]) -> CostTerm:
    kept = []
    for axis in (sizer(a) for a in axes):
        if axis.counts:
            kept.append(axis)
        else:
            coefficient *= axis.base
    return CostTerm(coefficient, tuple(kept), modules)


def _param_term(walk: Walk, name: str, spec: TensorSpec, sizer: _Sizer) -> CostTerm:
    coefficient, axes = 1, []
    for dim, size in enumerate(spec.shape):
        if (name, dim) in walk.axes:
            axes.append(walk.axes[(name, dim)])
        else:
            coefficient *= size
    owners = dict.fromkeys(n.rpartition(".")[0] for n in (name, *spec.aliases))
    return _term(coefficient, axes, sizer, tuple(owners))


def _frozen_list(walk: Walk, labels: Tensor, reasons: Mapping[int, tuple[str, fx.Node | None]]) -> tuple[Frozen, ...]:
    counts: dict[tuple[str, str], int] = defaultdict(int)  # of all weights that a module writes with
    nodes: dict[tuple[str, str], fx.Node | None] = {}
    for (name, dim), rows in walk.producers.items():
        path = name.rpartition(".")[0] or name
        own = Counter(reasons[label] for label in labels[walk.axes[(name, dim)]].tolist() if label in reasons)
        for (reason, node), n in own.items():
            counts[path, reason] += -(-n // rows)
            nodes.setdefault((path, reason), node)
    found = [(path, n, reason, nodes[path, reason]) for (path, reason), n in counts.items()]
    parts = [Frozen(p, n, why, place_of(node) if node else "") for p, n, why, node in (*found, *walk.untracked)]
    return tuple(dict.fromkeys(parts))
