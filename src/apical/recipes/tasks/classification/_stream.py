"""Batches of images that do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from apical.data import Augment, FolderImages, ParquetImages
from apical.data._contents import contents
from apical.data._sampler import BlockShuffleSampler
from apical.errors import ConfigError

_AUGMENT_SEED_OFFSET = 1_000_003  # keeps the two generators' streams apart


class StreamLoader:
    """Reads and decodes images in worker processes; batches are changed and normalised on the device.

    Its state between two epochs decides the next one: order, augmentation and the workers' seeds.

    Args:
        images: the data set; its transform runs in the workers.
        batch_size: images a batch (in each process).
        shuffle: a new order in every epoch, random within windows of the files' blocks.
        drop_last: leave out a last, smaller batch.
        augment: changes to each batch, in order.
        normalize: from uint8 to the model's input.
        device: where the batches go.
        workers: number of processes; 0 reads in this one.
        seed: of everything random.
        rank: of this process.
        world_size: number of processes; each takes its share of every batch.

    Raises:
        ConfigError: there is not a single batch.
    """

    def __init__(
        self,
        images: FolderImages | ParquetImages,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool = False,
        augment: Sequence[Augment] = (),
        normalize: Callable[[Tensor], Tensor],
        device: torch.device,
        workers: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self._order = torch.Generator().manual_seed(seed)
        self._augment_generator = torch.Generator().manual_seed(seed + _AUGMENT_SEED_OFFSET)
        self._augment = tuple(augment)
        self._normalize = normalize
        self._device = device
        self._images = images
        if len(images) < (batch_size * world_size if drop_last else world_size):
            raise ConfigError(f"{len(images)} images do not fill one batch of {batch_size} x {world_size}")
        self._loader = DataLoader[Any](
            images,
            batch_size,
            sampler=_sampler(images, self._order if shuffle else None, rank, world_size),
            drop_last=drop_last,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=self._order if world_size == 1 else self._augment_generator,  # it seeds the workers
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.world_size > 1:  # the draw with which one alone seeds its workers: any process' state resumes all
            base = int(torch.empty((), dtype=torch.int64).random_(generator=self._order))
            self._augment_generator.manual_seed((base + self.rank) % 2**62)
        for images, labels in self._loader:
            batch = images.to(self._device, non_blocking=True)
            for change in self._augment:
                batch = change(batch, self._augment_generator)
            yield self._normalize(batch), labels.to(self._device, non_blocking=True)

    def contents(self) -> dict[str, Any]:
        """The images by number, labels, classes and names."""
        images = self._images
        return contents(len(images), images.labels, (*images.classes, *images.names))

    def state_dict(self) -> dict[str, Any]:
        """The generators, between two epochs."""
        return {"order": self._order.get_state(), "augment": self._augment_generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: it is the state of images in memory: `data.memory_gb` was another.
        """
        if set(state) != {"order", "augment"}:
            raise ConfigError(
                f"a stream's state has order and augment, got {sorted(state)}; was data.memory_gb changed?"
            )
        self._order.set_state(state["order"].cpu())
        self._augment_generator.set_state(state["augment"].cpu())


def _sampler(
    images: FolderImages | ParquetImages, order: torch.Generator | None, rank: int, world_size: int
) -> Sampler[int] | Sequence[int] | None:
    """What a process reads: its share of a random order, or every `world_size`-th image."""
    if order is not None:
        return BlockShuffleSampler(images.block_lengths, generator=order, rank=rank, world_size=world_size)
    return range(rank, len(images), world_size) if world_size > 1 else None
