"""Batches of images that do not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from apical.data import Augment, BlockShuffleSampler, FolderImages, ParquetImages
from apical.errors import ConfigError

_AUGMENT_SEED_OFFSET = 1_000_003  # keeps the two generators' streams apart


class StreamLoader:
    """Reads and decodes images in worker processes; batches are changed and normalised on the device.

    Its state between two epochs decides the next one: order, augmentation and the workers' seeds.

    Args:
        images: the data set; its transform runs in the workers.
        batch_size: images a batch.
        shuffle: a new order in every epoch, random within windows of the files' blocks.
        drop_last: leave out a last, smaller batch.
        augment: changes to each batch, in order.
        normalize: from uint8 to the model's input.
        device: where the batches go.
        workers: number of processes; 0 reads in this one.
        seed: of everything random.

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
    ) -> None:
        if len(images) < (batch_size if drop_last else 1):
            raise ConfigError(f"{len(images)} images do not fill one batch of {batch_size}")
        self._order = torch.Generator().manual_seed(seed)
        self._augment_generator = torch.Generator().manual_seed(seed + _AUGMENT_SEED_OFFSET)
        self._augment, self._normalize, self._device = tuple(augment), normalize, device
        self._loader: DataLoader[Any] = DataLoader(
            images,
            batch_size,
            sampler=BlockShuffleSampler(images.block_lengths, generator=self._order) if shuffle else None,
            drop_last=drop_last,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            generator=self._order,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._loader:
            batch = images.to(self._device, non_blocking=True)
            for change in self._augment:
                batch = change(batch, self._augment_generator)
            yield self._normalize(batch), labels.to(self._device, non_blocking=True)

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
