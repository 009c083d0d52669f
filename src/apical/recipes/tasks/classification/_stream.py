"""Batches of images that do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from apical.data import Augment, FolderImages, ParquetImages
from apical.data._place import EpochPlace, PlacedLoader, check_rank, contents
from apical.errors import ConfigError


class StreamLoader(PlacedLoader):
    """Reads and decodes images in worker processes; batches are changed and normalised on the device.

    All that is drawn in an epoch follows from one number, which is drawn at its beginning: the order, what each image
    is cut by (from the image's place in the order), what a batch is changed by (from its number and the rank). So
    what comes out does not depend on the number of workers; `state_dict` may be taken at any time, also inside an
    epoch, and any process' state resumes all.
    """

    def __init__(
        self,
        images: FolderImages | ParquetImages,  # the data set
        batch_size: int,  # images a batch (in each process)
        *,
        shuffle: bool,  # a new order in every epoch, random within windows of the files' blocks
        drop_last: bool = False,  # leave out a last, smaller batch
        cut: Augment | None = None,  # change to each single image, in the workers
        augment: Sequence[Augment] = (),  # changes to each batch, in order
        normalize: Callable[[Tensor], Tensor],  # from uint8 to the model's input
        device: torch.device,  # where the batches go
        workers: int = 0,  # number of processes; 0 reads in this one
        seed: int = 0,  # of everything random
        rank: int = 0,  # of this process
        world_size: int = 1,  # number of processes; each takes its share of every batch
    ) -> None:
        if len(images) < (batch_size * world_size if drop_last else world_size):
            raise ConfigError(f"{len(images)} images do not fill one batch of {batch_size} x {world_size}")
        self.rank = rank
        self.world_size = world_size
        self._batch_size = batch_size
        self._shuffle = shuffle
        self._drop_last = drop_last
        self._epochs = torch.Generator().manual_seed(seed)  # a number for each epoch
        self._place = EpochPlace(order=self._epochs)
        self._augment = tuple(augment)
        self._normalize = normalize
        self._device = device
        self._workers = workers
        self._images = images
        self._cut = _Cut(images, cut)

    def __len__(self) -> int:
        images, size = len(self._images), self._batch_size
        if self._shuffle:
            own = images // self.world_size
        else:
            own = len(range(self.rank, images, self.world_size))
        return own // size if self._drop_last else -(-own // size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        done = self._place.begin()
        seed = int(torch.empty((), dtype=torch.int64).random_(2**62, generator=self._epochs))
        generator = torch.Generator()
        batches = iter(self._read(seed, done * self._batch_size))
        for number in self._place.rest(len(self)):
            images, labels = next(batches)
            batch = images.to(self._device, non_blocking=True)
            generator.manual_seed(_derived(seed, -1 - number * self.world_size - self.rank))
            for change in self._augment:
                batch = change(batch, generator)
            yield self._normalize(batch), labels.to(self._device, non_blocking=True)

    def _read(self, seed: int, done: int) -> DataLoader[Any]:
        """This process' batches of an epoch without its first images."""
        return DataLoader[Any](
            self._cut,
            self._batch_size,
            sampler=islice(self._drawn(seed), done, None),  # any iterable will do
            drop_last=self._drop_last,
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # seeds the workers, which draw from no generator but an image's own
        )

    def _drawn(self, seed: int) -> Iterator[tuple[int, int]]:
        """What this process reads in an epoch, in order: the image, and the seed of what it is cut by."""
        for place, index in enumerate(self._order(seed)):
            yield index, _derived(seed, 1 + place * self.world_size + self.rank)

    def _order(self, seed: int) -> Iterable[int]:
        """Its share of a random order, or every `world_size`-th image."""
        if not self._shuffle:
            return range(self.rank, len(self._images), self.world_size)
        order = torch.Generator().manual_seed(seed)
        lengths = self._images.block_lengths
        return BlockShuffleSampler(lengths, generator=order, rank=self.rank, world_size=self.world_size)

    def contents(self) -> dict[str, Any]:
        """The images by number, labels, classes and names."""
        images = self._images
        return contents(len(images), images.labels, (*images.classes, *images.names))


def _derived(seed: int, number: int) -> int:
    """A seed for each number of an epoch: 0 is the order, images are counted up from there and batches down."""
    return (seed + 0x9E3779B97F4A7C15 * number) % 2**63  # odd, so that no two are equal


class _Cut(Dataset[tuple[Tensor, int]]):
    """Images, each cut by what a generator of its own draws."""

    def __init__(self, images: FolderImages | ParquetImages, cut: Augment | None) -> None:
        self._images = images
        self._cut = cut

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, int]:
        index, seed = drawn
        image, label = self._images[index]
        return (image if self._cut is None else self._cut(image, torch.Generator().manual_seed(seed))), label


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
