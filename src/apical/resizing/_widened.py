"""A forward pass in float64 throughout, also where it asks for less, and from parameters that are kept in less."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
"""By each narrow type of real or complex numbers, what is computed in in its place."""
_CASTS = {
    Tensor.float: Tensor.double,
    Tensor.half: Tensor.double,
    Tensor.bfloat16: Tensor.double,
    Tensor.cfloat: Tensor.cdouble,  # type: ignore[attr-defined]
}
_TURNED = ("T", "mT", "H", "mH")  # properties that are computed from the numbers of a parameter
_WRITES = ("__set__", "__setitem__")
# What is asked of the parameter itself; what ``detach`` and ``data`` give may be written into.
_ABOUT_ITSELF = (Tensor.detach, Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous)


class Widened(TorchFunctionMode):
    """While entered, this thread's casts to a narrower float, and tensors made in one, are float64; complex
    ones are complex128.

    Norms, softmax and residual streams often insist on float32, so that in a model in float64 they are less exact than
    the rest, and a residual that is cast is no identity.

    Parameters in a narrower float are widened for the one operation that reads them, which computes the same as a
    model in float64 of the same numbers in half of its memory.

    Raises:
        RuntimeError: (within) a narrow parameter is written into, which a copy of it would not be.

    Example:
        >>> x = torch.ones(1, dtype=torch.float64) / 3
        >>> with Widened():
        ...     print(bool(x.to(torch.float32) == x), torch.nn.Linear(1, 1)(x).dtype)
        True torch.float64
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_narrow(args[0] if args else None):
            name = func.__name__
            if name == "__get__" and func.__self__.__name__ == "dtype":
                return WIDE[args[0].dtype]
            if func in _ABOUT_ITSELF or (name == "__get__" and func.__self__.__name__ not in _TURNED):
                return func(*args, **kwargs)
            if name in _WRITES or (name.endswith("_") and not name.endswith("__")):
                # no TypeError: for that Python would take ``w + 1`` instead of ``w += 1``
                raise RuntimeError(f"{name} writes into a parameter that is kept in {args[0].dtype}")
        if func in _CASTS:
            return _CASTS[func](args[0])
        if func is Tensor.view:  # with a type it reads the same bytes in another way
            return func(*map(_wide_tensor, args), **kwargs)
        return func(*map(_wide, args), **{name: _wide(value) for name, value in kwargs.items()})


def _is_narrow(value: Any) -> bool:
    return isinstance(value, nn.Parameter) and value.dtype in WIDE


def _wide_tensor(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_wide_tensor, value))
    return value.to(WIDE[value.dtype]) if _is_narrow(value) else value


def _wide(value: Any) -> Any:
    return WIDE.get(value, value) if isinstance(value, torch.dtype) else _wide_tensor(value)
