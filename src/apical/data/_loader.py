"""Batches from images that live in memory, on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apical.data._arrays import ImageArrays
from apical.data._augment import Augment
from apical.data._place import EpochPlace, PlacedLoader, check_rank, contents
from apical.errors import ConfigError

_AUGMENT_SEED_OFFSET = 1_000_003  # keeps the two generators' streams apart


class ImageLoader(PlacedLoader):
    """Iterates over ``(images, labels)`` batches: shuffled, augmented and normalised on the device.

    One generator orders the images, another one augments; the global one is never touched. `state_dict` may be taken
    at any time, also inside an epoch: after `load_state_dict` the next iteration goes on with the batch that would have
    come next.

    Several processes draw the same order, the one that one alone would draw, and each takes its share of every batch.
    What each augments with follows from the order's generator, the batch and the rank, so that the state of any of them
    resumes all, and also another number of processes, as long as ``batch_size * world_size`` stays what it was.

    Args:
        arrays: moved to the device as a whole.
        batch_size: images a batch (in each process).
        shuffle: a new random order in every epoch.
        drop_last: leave out a last, smaller batch.
        augment: changes to each batch, in order.
        normalize: from uint8 to the model's input.
        device: where the images live.
        seed: of order and augmentation.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ConfigError: ``batch_size`` or ``rank`` out of range, or not a single batch; shuffling for several processes
            without ``drop_last`` (their last batches would differ in number).

    Example:
        >>> from apical.data import Normalize, synthetic_images
        >>> loader = ImageLoader(synthetic_images(num_images=10), 4, normalize=Normalize((0.5,) * 3, (0.25,) * 3))
        >>> [tuple(images.shape) for images, labels in loader]
        [(4, 3, 16, 16), (4, 3, 16, 16), (2, 3, 16, 16)]
    """

    def __init__(
        self,
        arrays: ImageArrays,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        augment: Sequence[Augment] = (),
        normalize: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(len(arrays), batch_size, shuffle, drop_last, rank, world_size)
        self.arrays = replace(arrays, images=arrays.images.to(device), labels=arrays.labels.to(device))
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.augment = tuple(augment)
        self.normalize = normalize
        self.rank = rank
        self.world_size = world_size
        self._order = torch.Generator().manual_seed(seed)
        self._augment = torch.Generator().manual_seed(seed + (rank + 1) * _AUGMENT_SEED_OFFSET)
        self._place = EpochPlace(epoch_start=self._order)

    def __len__(self) -> int:
        full, rest = divmod(len(self.arrays), self.batch_size * self.world_size)
        return full + (rest > self.rank and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._place.begin()
        order = self._draw_order()
        base = shared_seed(self._place.began["epoch_start"]) if self.world_size > 1 else None
        for position in self._place.rest(len(self)):
            if base is not None:
                self._augment.manual_seed(base + position * self.world_size + self.rank)
            yield self._batch(self._share(order, position))

    def contents(self) -> dict[str, Any]:
        """The images by number, labels, classes and names."""
        arrays = self.arrays
        return contents(len(arrays), arrays.labels, (*arrays.classes, *arrays.names))

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: generators and position in the epoch."""
        return {**super().state_dict(), "augment": self._augment.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: it is the state of another kind of loader, or its position lies beyond this loader's epoch.
        """
        if "augment" not in state:
            names = ", ".join(sorted(self.state_dict()))
            raise ConfigError(f"this loader's state has {names}, got {', '.join(sorted(state)) or 'none'}")
        super().load_state_dict({name: value for name, value in state.items() if name != "augment"})
        self._augment.set_state(state["augment"].cpu())

    def _draw_order(self) -> Tensor:
        if self.shuffle:
            return torch.randperm(len(self.arrays), generator=self._order)
        return torch.arange(len(self.arrays))

    def _share(self, order: Tensor, position: int) -> Tensor:
        """What this process takes of a global batch: every ``world_size``-th image."""
        global_size = self.batch_size * self.world_size
        return order[position * global_size : (position + 1) * global_size][self.rank :: self.world_size]

    def _batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        index = index.to(self.arrays.images.device, non_blocking=True)
        images, labels = self.arrays.images[index], self.arrays.labels[index]
        for change in self.augment:
            images = change(images, self._augment)
        return (images if self.normalize is None else self.normalize(images)), labels


def shared_seed(state: Tensor) -> int:
    """A seed that follows from a generator's state and takes nothing from it: the same in processes that share it."""
    return int.from_bytes(hashlib.sha256(state.numpy().tobytes()).digest()[:7], "little")


def _check(num_images: int, batch_size: int, shuffle: bool, drop_last: bool, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    check_rank(rank, world_size)
    if num_images == 0 or (drop_last and num_images < batch_size * world_size):
        raise ConfigError(f"{num_images} images do not fill one batch of {batch_size} x {world_size}")
    if shuffle and world_size > 1 and not drop_last:
        raise ConfigError("shuffling for several processes needs drop_last=True")
