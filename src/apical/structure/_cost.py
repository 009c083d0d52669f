"""What a choice of group sizes costs: sums of products of sizes, in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SizeAxis:
    """The length of one dimension as a function of the group sizes k: ``base + sum(count * k[group])``.

    Attributes:
        base: positions that belong to no group and always stay.
        counts: pairs (index of the group, positions that each of its units contributes).
    """

    base: int
    counts: tuple[tuple[int, int], ...] = ()

    def length(self, sizes: Sequence[int] | npt.NDArray[np.int64]) -> int:
        """The dimension's length when group g has ``sizes[g]`` units."""
        return self.base + sum(count * int(sizes[group]) for group, count in self.counts)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> SizeAxis:
        """The inverse of `dataclasses.asdict`."""
        return SizeAxis(data["base"], tuple((g, c) for g, c in data["counts"]))


@dataclass(frozen=True)
class CostTerm:
    """One summand of a cost: ``coefficient * product(axis lengths)``, gone when one of its modules is skipped.

    Attributes:
        coefficient: what does not depend on the groups (output pixels times kernel size, time steps, …).
        axes: the factors that do.
        modules: module paths that use it; the term disappears when all of them lie in skipped blocks.
    """

    coefficient: int
    axes: tuple[SizeAxis, ...]
    modules: tuple[str, ...]

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> CostTerm:
        """The inverse of `dataclasses.asdict`."""
        return CostTerm(data["coefficient"], tuple(SizeAxis.from_dict(a) for a in data["axes"]), tuple(data["modules"]))


def lies_in(path: str, block: str) -> bool:
    """Whether the module path is the block itself or below it."""
    return path == block or path.startswith(block + ".")


def _lies_in_any(path: str, blocks: Iterable[str]) -> bool:
    return any(lies_in(path, block) for block in blocks)


class CostModel:
    """Terms compiled to arrays, so that pricing a choice takes microseconds.

    Args:
        terms: the summands.
        full_sizes: group sizes of the template.
        blocks: for each skippable block the paths of the modules that leave with it.
    """

    def __init__(self, terms: Sequence[CostTerm], full_sizes: Sequence[int], blocks: Sequence[Sequence[str]]) -> None:
        self.full_sizes: npt.NDArray[np.int64] = np.asarray(full_sizes, dtype=np.int64)
        axes = {axis: i for i, axis in enumerate(dict.fromkeys(a for t in terms for a in t.axes))}
        self._base = np.array([a.base for a in axes] + [1], dtype=np.int64)
        self._weights = np.zeros((len(axes) + 1, len(full_sizes)), dtype=np.int64)
        for axis, row in axes.items():
            for group, count in axis.counts:
                self._weights[row, group] = count
        width = max((len(t.axes) for t in terms), default=0)
        self._factors = np.array(
            [[axes[a] for a in t.axes] + [len(axes)] * (width - len(t.axes)) for t in terms], dtype=np.int64
        ).reshape(len(terms), width)
        self._coefficients = np.array([t.coefficient for t in terms], dtype=np.int64)
        self._in_block = np.array(
            [[bool(t.modules) and all(_lies_in_any(m, b) for m in t.modules) for t in terms] for b in blocks],
            dtype=bool,
        ).reshape(len(blocks), len(terms))
        self._several = [t.modules if len(t.modules) > 1 else () for t in terms]
        self._blocks = list(blocks)

    def price(self, sizes: npt.NDArray[np.int64], skipped: Sequence[int]) -> int:
        """The cost for group sizes ``sizes`` (groups,) without the blocks of these indices."""
        lengths = self._base + self._weights @ sizes  # (axes + 1,)
        values = self._coefficients * lengths[self._factors].prod(axis=1)  # (terms,)
        if skipped:
            gone: npt.NDArray[np.bool_] = np.asarray(self._in_block[list(skipped)].any(axis=0))
            paths = [path for i in skipped for path in self._blocks[i]]
            for i, modules in enumerate(self._several):
                if modules and not gone[i]:
                    gone[i] = all(_lies_in_any(m, paths) for m in modules)
            values = values[~gone]
        return int(values.sum())
