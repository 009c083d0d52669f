"""A forward pass in float64 throughout, also where it asks for less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NARROW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


class Widened(TorchFunctionMode):
    """While entered, this thread's casts to a narrower float, and tensors made in one, are float64.

    Norms, softmax and residual streams often insist on float32, so that in a model in float64 they are less exact than
    the rest, and a residual that is cast is no identity.

    Example:
        >>> x = torch.ones(1, dtype=torch.float64) / 3
        >>> with Widened():
        ...     print(bool(x.to(torch.float32) == x))
        True
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _CASTS:
            return args[0].double()
        if func is Tensor.view:  # with a type it reads the same bytes in another way
            return func(*args, **(kwargs or {}))
        return func(*map(_wide, args), **{name: _wide(value) for name, value in (kwargs or {}).items()})


def _wide(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value
