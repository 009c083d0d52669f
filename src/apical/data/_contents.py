"""What a data set holds, in two lines, by which a run that goes on notices that it is another one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


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
        sha.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return {"samples": samples, "digest": sha.hexdigest()[:32]}
