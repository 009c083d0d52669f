"""Shuffling data that can only be read in blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, islice

import torch
from torch.utils.data import Sampler

from apical.data._place import check_rank
from apical.errors import ConfigError


class BlockShuffleSampler(Sampler[int]):
    """Random order that needs only a few blocks at a time.

    Blocks (row groups of a file) are shuffled and gathered until they hold ``window`` images; these are shuffled
    together. With blocks of one image it is a plain shuffle.

    Args:
        block_lengths: images in each block, as ``dataset.block_lengths``.
        window: images that are shuffled together, unless a block is larger; keep ``cached_images`` of the data set at
            least as large.
        generator: of the order; save its state to resume.
        rank: of this process. All draw the same order; each takes every ``world_size``-th image of it, and all take
            equally many: up to ``world_size - 1`` images at the end are left out.
        world_size: number of processes.

    Raises:
        ConfigError: the window is smaller than one, or there is no such rank.

    Example:
        >>> sampler = BlockShuffleSampler((2, 3, 2), window=4, generator=torch.Generator().manual_seed(0))
        >>> len(sampler), sorted(sampler)
        (7, [0, 1, 2, 3, 4, 5, 6])
    """

    def __init__(
        self,
        block_lengths: Sequence[int],
        window: int = 4096,
        generator: torch.Generator | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        check_rank(rank, world_size)
        if window < 1:
            raise ConfigError(f"window must be at least 1 image, got {window}")
        self.block_lengths = tuple(block_lengths)
        self.window = window
        self.generator = generator
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return sum(self.block_lengths) // self.world_size

    def __iter__(self) -> Iterator[int]:
        return islice(self._all(), self.rank, len(self) * self.world_size, self.world_size)

    def _all(self) -> Iterator[int]:
        """The order of all images, the same in every process."""
        starts = [0, *accumulate(self.block_lengths)]
        gathered: list[int] = []
        for block in torch.randperm(len(self.block_lengths), generator=self.generator).tolist():
            gathered += range(starts[block], starts[block + 1])
            if len(gathered) >= self.window:
                yield from self._shuffled(gathered)
                gathered = []
        yield from self._shuffled(gathered)

    def _shuffled(self, positions: list[int]) -> Iterator[int]:
        for index in torch.randperm(len(positions), generator=self.generator).tolist():
            yield positions[index]
