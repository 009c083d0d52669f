"""Channel identities ("atoms") and the equivalences between them.

An atom stands for one position along one dimension of one parameter; the id -1 marks a position that no parameter
produces, so that nothing can remove it. Tracing joins atoms that must live and die
together; the classes that remain are the units of the channel groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx


class Atoms:
    """A growing set of atoms with a union-find over them, vectorised over index tensors."""

    def __init__(self) -> None:
        self.count = 0
        self._starts: list[int] = []
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._labels = torch.empty(0, dtype=torch.long, device="cpu")
        self._frozen: list[tuple[Tensor, str, fx.Node | None]] = []
        self.node: fx.Node | None = None  # the operation that is followed

    def new(self, n: int) -> Tensor:
        """``n`` fresh atoms  # (n,)"""
        self._starts.append(self.count)
        self.count += n
        return torch.arange(self.count - n, self.count, device="cpu")

    def origins(self, ids: Tensor) -> frozenset[int]:
        """Which calls of `new` these atoms come from, by their number: places in `Walk.axes`."""
        (ids,) = shrink_constant_dims(ids)
        starts = torch.tensor(self._starts, device="cpu")
        return frozenset((torch.searchsorted(starts, ids[ids >= 0], right=True) - 1).unique().tolist())

    def join(self, a: Tensor, b: Tensor) -> None:
        """Declare a[i] and b[i] the same unit, for tensors of one (broadcast) shape; fixed positions are left out."""
        a, b = torch.broadcast_tensors(a, b)
        a, b = shrink_constant_dims(a, b)
        a, b = a.reshape(-1), b.reshape(-1)
        real = (a >= 0) & (b >= 0) & (a != b)
        if bool(real.any()):
            self._edges.append((a[real], b[real]))

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Units with one of these atoms cannot be removed."""
        (ids,) = shrink_constant_dims(ids)
        ids = ids.reshape(-1).unique()
        ids = ids[ids >= 0]
        if ids.numel():
            self._frozen.append((ids, reason, self.node))

    def joined(self, ids: Tensor) -> Tensor:
        """All atoms that are the same unit as one of these, as far as is known by now  # (atoms,)"""
        labels = self.labels()
        (ids,) = shrink_constant_dims(ids)
        return torch.isin(labels, labels[ids[ids >= 0]]).nonzero().reshape(-1)

    def all_frozen(self, ids: Tensor) -> bool:
        """Whether none of these can be removed, as far as is known by now."""
        (ids,) = shrink_constant_dims(ids)
        ids = ids[ids >= 0]
        return self.count_frozen(ids) == ids.numel()

    def count_frozen(self, ids: Tensor) -> int:
        """How many of these atoms cannot be removed, as far as is known by now."""
        labels = self.labels()
        frozen = torch.zeros(self.count, dtype=torch.bool, device="cpu")
        for gone, _, _ in self._frozen:
            frozen[labels[gone]] = True
        return int(frozen[labels[ids]].sum())

    def are_one(self, ids: Tensor) -> bool:
        """Whether these atoms are several, and all joined."""
        return ids.numel() > 1 and self.labels()[ids].unique().numel() == 1

    def labels(self) -> Tensor:
        """The smallest atom of each atom's class  # (count,)"""
        known = self._labels
        labels = torch.cat([known, torch.arange(known.numel(), self.count, device="cpu")])
        if self._edges:
            a = torch.cat([e[0] for e in self._edges])
            b = torch.cat([e[1] for e in self._edges])
            labels = _propagate(labels, a, b)
            self._edges = [(torch.arange(self.count, device="cpu"), labels)]
        self._labels = labels
        return labels

    def frozen_reasons(self) -> dict[int, tuple[str, fx.Node | None]]:
        """For each frozen class (by its label) the first reason given, and the operation that gave it."""
        labels = self.labels()
        reasons: dict[int, tuple[str, fx.Node | None]] = {}
        for ids, reason, node in self._frozen:
            for label in labels[ids].unique().tolist():
                reasons.setdefault(label, (reason, node))
        return reasons


def _propagate(labels: Tensor, a: Tensor, b: Tensor) -> Tensor:
    while True:
        low = torch.minimum(labels[a], labels[b])
        new = labels.clone()
        new.scatter_reduce_(0, labels[a], low, "amin")
        new.scatter_reduce_(0, labels[b], low, "amin")
        new.scatter_reduce_(0, a, low, "amin")
        new.scatter_reduce_(0, b, low, "amin")
        while True:  # pointer jumping
            jumped = new[new]
            if torch.equal(jumped, new):
                break
            new = jumped
        if torch.equal(new, labels):
            return labels
        labels = new


# ---- id tensors: one atom per element, constant dimensions held with stride 0 ------------------------------------


def is_constant(ids: Tensor, dim: int) -> bool:
    """Whether the ids are known not to vary along ``dim`` (size 1 or stride 0)."""
    return ids.shape[dim] == 1 or ids.stride(dim) == 0


def varying_dims(ids: Tensor) -> list[int]:
    """Dimensions along which the ids vary (after `compress`)."""
    return [d for d in range(ids.dim()) if not is_constant(ids, d)]


def shrink_constant_dims(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cut every dimension along which none of these equally shaped tensors varies down to length 1."""
    for d in range(tensors[0].dim()):
        if tensors[0].shape[d] > 1 and all(is_constant(t, d) for t in tensors):
            tensors = tuple(t.narrow(d, 0, 1) for t in tensors)
    return tensors


def drop_constant_dims(ids: Tensor) -> Tensor:
    """The ids with one dimension for each along which they vary."""
    for d in range(ids.dim()):
        if is_constant(ids, d):
            ids = ids.narrow(d, 0, 1)
    return ids.reshape([n for n in ids.shape if n > 1])


def line(ids: Tensor, dim: int) -> Tensor:
    """The ids along ``dim`` at the first position of every other dimension  # (size of dim,)"""
    for d in range(ids.dim()):
        if d != dim:
            ids = ids.narrow(d, 0, 1)
    return ids.reshape(-1)


def depends_only_on(table: Tensor, dim: int) -> bool:
    """Whether a table of labels varies along no other dimension."""
    return torch.equal(spread(line(table, dim), table.shape, dim), table)


def compress(ids: Tensor) -> Tensor:
    """The same ids, with stride 0 along every dimension in which they do not vary."""
    for d in range(ids.dim()):
        if ids.shape[d] > 1 and ids.stride(d) != 0:
            first = ids.narrow(d, 0, 1)
            if torch.equal(first.expand_as(ids), ids):
                ids = first.expand(ids.shape)
    return ids


def spread(vector: Tensor, shape: tuple[int, ...] | torch.Size, dim: int) -> Tensor:
    """A vector of ids laid along ``dim`` of ``shape``, constant elsewhere."""
    view = [1] * len(shape)
    view[dim] = vector.numel()
    return vector.view(view).expand(tuple(shape))
