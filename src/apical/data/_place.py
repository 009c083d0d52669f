"""By what a run that goes on knows its data again: where a loader stands in its epoch, and what it holds."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from apical.errors import ConfigError


def check_rank(rank: int, world_size: int) -> None:
    """Refuse the number of a process that is none of so many."""
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank must lie in 0..{world_size - 1} (world_size {world_size}), got {rank}")


class EpochPlace:
    """The generators of a loader as they were when its epoch began, and the batches that it has handed out since.

    A loader that goes on within an epoch draws it anew, from the same generators, and leaves out what is done. So all
    that it draws must follow from them and from the number of the batch.

    Args:
        generators: by the name that each has in the state.
    """

    def __init__(self, **generators: torch.Generator) -> None:
        self._generators = generators
        self._done = 0
        self._goes_on = False
        self.began = self._now()

    def begin(self) -> int:
        """Begin an epoch, or go on with the one of a loaded state; return how many of its batches are done.

        The generators are then as they were at the epoch's beginning.
        """
        if not self._goes_on:
            self.began, self._done = self._now(), 0
        self._goes_on = False
        for name, generator in self._generators.items():
            generator.set_state(self.began[name])
        return self._done

    def rest(self, steps: int) -> Iterator[int]:
        """The numbers of the batches that are left of an epoch, which was begun and has so many steps.

        A state that is taken while the caller works on a batch goes on after it.
        """
        for number in range(self._done, steps):
            self._done = number + 1
            yield number
        self.began, self._done = self._now(), 0

    def state_dict(self) -> dict[str, Any]:
        """The generators' states at the epoch's beginning, by name, and the batches that are done as ``position``."""
        return {**{name: state.clone() for name, state in self.began.items()}, "position": self._done}

    def load_state_dict(self, state: dict[str, Any], steps: int) -> None:
        """Go on from a saved state.

        Args:
            state: what `state_dict` returned; one without ``position`` stands between two epochs.
            steps: batches of an epoch.
        """
        if set(state) | {"position"} != {*self._generators, "position"}:
            raise ConfigError(
                f"this loader's state has {', '.join(sorted(self.state_dict()))}, got {', '.join(sorted(state))}: that "
                "of data which are read in another way (was data.memory_gb changed?)"
            )
        position = state.get("position", 0)
        if type(position) is not int or not 0 <= position <= steps:
            raise ConfigError(f"the state stands at batch {position!r:.40}, this loader has {steps} an epoch")
        self.began = {name: state[name].cpu().clone() for name in self._generators}
        for name, generator in self._generators.items():
            generator.set_state(self.began[name])
        self._done, self._goes_on = position, True

    def _now(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in self._generators.items()}


class PlacedLoader(ABC):
    """A loader that goes on behind its last batch where a state was taken inside an epoch."""

    resumes_within_epoch = True
    _place: EpochPlace

    @abstractmethod
    def __len__(self) -> int: ...

    def state_dict(self) -> dict[str, Any]:
        """The generators at the epoch's beginning, and the position in it."""
        return self._place.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ConfigError: it is the state of another kind of loader, or its position lies beyond this loader's epoch.
        """
        self._place.load_state_dict(state, len(self))


def contents(samples: int, numbers: Tensor | None = None, names: Iterable[str] = ()) -> dict[str, Any]:
    """The number of samples, and a digest of their labels (or tokens) and names, in their order.

    Args:
        samples: how many there are.
        numbers: int64, the labels or tokens.
        names: of files and classes, whatever tells the samples apart without reading them.

    Example:
        >>> first, second = (contents(2, torch.tensor([0, last]), ["a.png", "b.png"]) for last in (1, 0))
        >>> first["samples"] == second["samples"], first["digest"] == second["digest"]
        (True, False)
    """
    sha = hashlib.sha256()
    if numbers is not None:
        sha.update(numbers.detach().to("cpu", torch.int64).contiguous().numpy().astype("<i8", copy=False).data)
    for name in names:
        sha.update(name.encode("utf-8", "surrogatepass") + b"\0")
    return {"samples": samples, "digest": sha.hexdigest()[:32]}
