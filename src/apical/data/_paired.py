"""Images and masks changed together, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data._place import EpochPlace, PlacedLoader, check_rank, contents
from apical.errors import ConfigError

_AUGMENT_SEED_OFFSET = 1_000_003  # keeps the two generators' streams apart


class Pairs(Protocol):
    """Images with masks: item i is (uint8 (3, H, W), uint8 (H, W)). A list of such pairs is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class RandomView:
    """A random part of an image and its mask, scaled to a square, mirrored or not.

    Attributes:
        crop: side of the square in pixels.
        scale: least and largest factor by which the image is scaled; drawn uniformly.
        flip: whether every second one is mirrored.
        ignore_label: of the pixels beyond the image.
        fill: red, green and blue of the pixels beyond the image.

    Raises:
        ConfigError: a number is out of range.
    """

    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    ignore_label: int = 255
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        if self.crop < 1 or not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(
                f"crop must be at least 1 pixel and scale (low, high) and positive, got crop={self.crop}, "
                f"scale={self.scale}"
            )

    def __call__(self, image: Tensor, mask: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, cut out (padded where the image ends) and mirror an image and its mask alike.

        A window of side crop / s, with s the drawn scale, is placed at random so that it lies inside the image, or the
        image inside it; it is then scaled to the crop: the image antialiased bilinear, the mask to the nearest pixel.
        Only the window is scaled, so the cost follows the crop and not the image.

        Args:
            image: uint8, (3, H, W).
            mask: uint8, (H, W).
            draws: of scale, top, left and flip, each in [0, 1)  # (4,)

        Returns:
            uint8 (3, crop, crop) and uint8 (crop, crop).

        Example:
            >>> image, mask = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.uint8)
            >>> image, mask = RandomView(8, (0.5, 1.0))(image, mask, torch.tensor([0.0, 0.0, 0.0, 0.9]))
            >>> image.shape, int((mask == 255).sum())
            (torch.Size([3, 8, 8]), 48)
        """
        scale, top, left, flip = draws.tolist()
        crop, (low, high) = self.crop, self.scale
        window = max(1, round(crop / (low + (high - low) * scale)))
        y, x = (_place(side, window, draw) for side, draw in zip(image.shape[1:], (top, left), strict=True))
        (rows, (r0, r1)), (columns, (c0, c1)) = (
            _inside(side, at, window, crop) for at, side in ((y, image.shape[1]), (x, image.shape[2]))
        )
        size = (r1 - r0, c1 - c0)
        part, labels = image[None, :, rows, columns], mask[None, None, rows, columns]
        if tuple(part.shape[2:]) != size:
            part = F.interpolate(
                part.float(), size=size, mode="bilinear", antialias=True
            )  # uint8 fails on narrow images
            part = part.round_().clamp_(0, 255).to(torch.uint8)
            labels = F.interpolate(labels, size=size, mode="nearest-exact")
        cut = torch.tensor(self.fill, dtype=torch.uint8)[:, None, None].repeat(1, crop, crop)
        cut_mask = torch.full((crop, crop), self.ignore_label, dtype=torch.uint8)
        cut[:, r0:r1, c0:c1], cut_mask[r0:r1, c0:c1] = part[0], labels[0, 0]
        return (cut.flip(-1), cut_mask.flip(-1)) if self.flip and flip < 0.5 else (cut, cut_mask)


def _place(side: int, window: int, draw: float) -> int:
    """Where a window begins: inside the image if that is larger, else so that the image is inside the window."""
    free = side - window
    return min(0, free) + int(draw * (abs(free) + 1))


def _inside(side: int, at: int, window: int, crop: int) -> tuple[slice, tuple[int, int]]:
    """The part of a window that lies inside the image, in pixels of the image, and where it lies in the crop."""
    first, last = max(0, at), min(side, at + window)
    start = min(crop - 1, round((first - at) * crop / window))
    return slice(first, last), (start, max(start + 1, round((last - at) * crop / window)))


class PairLoader(PlacedLoader):
    """Batches of (images, masks) on the device, in a random order and as random views, or whole and in order.

    Whole images are never padded: a batch holds images of one size, and ends where the size changes. Two generators
    of its own, one for the order and one for the views, draw an epoch's numbers at its start; reading and scaling then
    go on in threads, and what comes out does not depend on their number. `state_dict` may be taken at any time, also
    inside an epoch of views.

    Args:
        pairs: images and masks.
        batch_size: images a batch (in each process), at most.
        view: for training: shuffle, and cut views out; the last, smaller batch is left out.
        normalize: from uint8 to the model's input.
        device: where the batches go.
        workers: threads that read ahead; 0 for none.
        seed: of order and views.
        rank: of this process; with several processes all draw the same order and views of training images, and each
            takes its share of every batch. Whole images are not shared out.
        world_size: number of processes.
        check: called with each mask that was read and its index; may raise.
        names: by which the pairs are known, for `contents`.

    Raises:
        ConfigError: there is not a single batch.

    Example:
        >>> pairs = [(torch.zeros(3, 6, 9, dtype=torch.uint8), torch.zeros(6, 9, dtype=torch.uint8))] * 5
        >>> [tuple(masks.shape) for images, masks in PairLoader(pairs, 2, view=RandomView(4))]
        [(2, 4, 4), (2, 4, 4)]
    """

    def __init__(
        self,
        pairs: Pairs,
        batch_size: int,
        *,
        view: RandomView | None = None,
        normalize: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | str = "cpu",
        workers: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        check: Callable[[Tensor, int], None] | None = None,
        names: Sequence[str] = (),
    ) -> None:
        check_rank(rank, world_size)
        if len(pairs) < (batch_size * world_size if view else 1) or batch_size < 1:
            processes = f" x {world_size}" if world_size > 1 else ""
            raise ConfigError(f"{len(pairs)} images do not fill one batch of {batch_size}{processes}")
        self._pairs = pairs
        self._batch_size = batch_size
        self._view = view
        self._normalize = normalize
        self._device = torch.device(device)
        self._workers = workers
        self._check = check
        self._rank = rank
        self._world_size = world_size
        self._names = tuple(names)
        self.rank, self.world_size = (rank, world_size) if view else (0, 1)  # what a process has of the batches
        self._order = torch.Generator().manual_seed(seed)
        self._augment = torch.Generator().manual_seed(seed + _AUGMENT_SEED_OFFSET)
        self._place = EpochPlace(order=self._order, augment=self._augment)

    def __len__(self) -> int:
        """Batches of an epoch; of whole images, at least so many (a change of size ends a batch early)."""
        if self._view is not None:
            return len(self._pairs) // (self._batch_size * self._world_size)
        return -(-len(self._pairs) // self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self._view is None:
            yield from self._whole()
            return
        done = self._place.begin()
        order = torch.randperm(len(self._pairs), generator=self._order).tolist()
        draws = torch.rand(len(order), 4, generator=self._augment)  # of `RandomView`
        places = range(len(self) * self._batch_size * self._world_size)[self._rank :: self._world_size]
        items = self._ahead([(order[place], draws[place]) for place in places[done * self._batch_size :]])
        for _ in self._place.rest(len(self)):
            yield self._batch([next(items) for _ in range(self._batch_size)])

    def _whole(self) -> Iterator[tuple[Tensor, Tensor]]:
        items = self._ahead([(index, None) for index in range(len(self._pairs))])
        for _, same in groupby(items, key=lambda item: item[0].shape):
            batch = []
            for item in same:
                batch.append(item)
                if len(batch) == self._batch_size:
                    yield self._batch(batch)
                    batch = []
            if batch:
                yield self._batch(batch)

    def _item(self, index: int, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        image, mask = self._pairs[index]
        if self._check is not None:
            self._check(mask, index)
        return (image, mask) if draws is None or self._view is None else self._view(image, mask, draws)

    def _ahead(self, wanted: Sequence[tuple[int, Tensor | None]]) -> Iterator[tuple[Tensor, Tensor]]:
        """The items in order, two batches of them under way at any time."""
        if not self._workers:
            yield from (self._item(*one) for one in wanted)
            return
        with ThreadPoolExecutor(self._workers) as pool:
            under_way: list[Future[tuple[Tensor, Tensor]]] = []
            for one in wanted:
                under_way.append(pool.submit(self._item, *one))
                if len(under_way) > 2 * self._batch_size:
                    yield under_way.pop(0).result()
            for future in under_way:
                yield future.result()

    def _batch(self, items: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        images, masks = (torch.stack(parts).to(self._device, non_blocking=True) for parts in zip(*items, strict=True))
        return (images if self._normalize is None else self._normalize(images)), masks

    def contents(self) -> dict[str, Any]:
        """The pairs by number and names."""
        return contents(len(self._pairs), names=self._names)
