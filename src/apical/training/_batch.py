"""A batch that is larger while the network is small: how large, and what the learning rate makes of it."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from apical.errors import ConfigError
from apical.training._protocols import GrowthMethod, Loader

BatchRule = Literal["linear", "sqrt", "none"]


def batch_factor(room: float, limit: int) -> int:
    """By which whole number the batch is multiplied.

        f = ⌊min(max(room, 1), limit)⌋

    Args:
        room: cost of the final network divided by that of the present one.
        limit: the largest factor, at least 1.

    Example:
        >>> [batch_factor(room, 4) for room in (0.9, 1.0, 1.99, 2.5, 6.2)]
        [1, 1, 1, 2, 4]
    """
    return int(min(max(room + 1e-9, 1.0), float(limit)))


def lr_scale(factor: int, rule: BatchRule) -> float:
    """By what the learning rate is multiplied for a batch that is `factor` times as large.

        linear  f     an example moves the weights as far as before (Goyal et al. 2017, arXiv:1706.02677)
        sqrt    √f    the noise of a step moves them as far as before (Krizhevsky 2014, arXiv:1404.5997)
        none    1

    Example:
        >>> [lr_scale(4, rule) for rule in ("linear", "sqrt", "none")]
        [4.0, 2.0, 1.0]
    """
    scales: dict[str, float] = {"linear": float(factor), "sqrt": factor**0.5, "none": 1.0}
    return scales[rule]


@runtime_checkable
class RoomyMethod(GrowthMethod, Protocol):
    """A method that knows how much cheaper the present network is than the final one will be."""

    def batch_room(self) -> float:
        """Cost of the final network divided by that of the present one.

        Raises:
            ConfigError: the batch must not change under this method.
        """
        ...


@runtime_checkable
class ResizableLoader(Loader, Protocol):
    """A loader whose batches can become larger between two epochs."""

    def set_batch_factor(self, factor: int) -> None:
        """From the next epoch on, batches are so many times as large as when the loader was made.

        Raises:
            ConfigError: the data do not fill one such batch.
        """
        ...


class BatchGrowth:
    """The training loader's batch, sized before each epoch; of other methods than growth it stays what it is.

    Args:
        method: asked for its room, if it is a `RoomyMethod`.
        loader: whose batch is sized.
        limit: the largest factor; 1 leaves the batch alone.

    Attributes:
        factor: of the running epoch.

    Raises:
        ConfigError: the loader cannot change its batch, the data do not fill the largest one, or the method cannot bear
            it; before anything is trained.
    """

    def __init__(self, method: GrowthMethod, loader: Loader, limit: int) -> None:
        self.factor, self._limit = 1, limit
        self._method = method if limit > 1 and isinstance(method, RoomyMethod) else None
        self._loader = loader if isinstance(loader, ResizableLoader) else None
        if self._method is None:
            return
        self._method.batch_room()
        if self._loader is None:
            raise ConfigError(
                f"batch_growth={limit}: a {type(loader).__name__} cannot change its batch (it has no "
                "set_batch_factor); set batch_growth=1"
            )
        try:
            self.set(limit)
        except ConfigError as error:
            raise ConfigError(f"batch_growth={limit} makes batches {limit} times as large: {error}") from error
        self.set(1)

    def begin_epoch(self) -> None:
        """Sizes the batch by the network that the epoch begins with."""
        if self._method is not None:
            self.set(batch_factor(self._method.batch_room(), self._limit))

    def set(self, factor: int) -> None:
        """Sizes the batch.

        Raises:
            ConfigError: the factor is none that this run can have, or the data do not fill one such batch.
        """
        if not isinstance(factor, int) or not 1 <= factor <= (1 if self._method is None else self._limit):
            raise ConfigError(f"the batch is {factor!r} times its base, expected a whole number up to {self._limit}")
        if self._method is not None and self._loader is not None:
            self._loader.set_batch_factor(factor)
        self.factor = factor
