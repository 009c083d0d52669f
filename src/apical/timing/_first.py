"""What one process measures and all of several must know alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from apical.errors import BudgetError

T = TypeVar("T")


def from_first(measure: Callable[[], T]) -> T:
    """What the first process measures, in all of them: measured times never agree, and networks must.

    One process alone, or several that have no process group yet, measure by themselves.

    Args:
        measure: called in the first process only; its result must be plain (it is pickled on its way).

    Example:
        >>> from_first(lambda: 3)
        3
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return measure()
    told: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told[0] = measure()
        except Exception as error:  # noqa: BLE001 - the others wait for an answer, whatever went wrong
            failure, told[1] = error, f"{type(error).__name__}: {error}"
    dist.broadcast_object_list(told, 0)
    if failure is not None:
        raise failure
    if told[1] is not None:
        raise BudgetError(f"process 0 could not measure what all need: {told[1]}")
    found: T = told[0]
    return found
