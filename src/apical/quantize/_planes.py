"""A weight as a sum over bit planes, whose leading ones are the weight at each lower precision.

    w = s Σ_k 2^-(k+1) d_k,   d_k ∈ {−1, 0, 1},   k = 0 (the top plane), …, planes − 1

So b planes are an integer in ±(2^b − 1) times s / 2^b: a code of b + 1 bits. That a layer's precision is a set of
planes which can fade, leave and come back is of Xiao et al., CSQ: Growing Mixed-Precision Quantization Scheme with
Bi-level Continuous Sparsification, DAC 2023 (arXiv:2212.02770; its abstract was read).
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from apical.errors import CheckpointError

RANGE = 2.7  # standard deviations that the planes cover: near the best for 2 to 5 bits of a normal distribution


def plane_values(planes: int) -> list[float]:
    """What a digit of each plane is worth, relative to the scale: 1/2, 1/4, …

    Example:
        >>> plane_values(3)
        [0.5, 0.25, 0.125]
    """
    return [2.0 ** -(k + 1) for k in range(planes)]


def signed_digits(weight: Tensor, scale: Tensor | float, planes: int) -> Tensor:
    """Digits −1, 0, 1, each plane the nearest to what those above it left  # (planes, *weight.shape)

    So any number of leading planes is the weight rounded to their precision.

    Args:
        weight: any shape.
        scale: s, positive.
        planes: how many.

    Example:
        >>> signed_digits(torch.tensor([0.4, -0.9, 0.1]), scale=1.0, planes=2)
        tensor([[ 1., -1.,  0.],
                [ 0., -1.,  0.]])
    """
    left, digits = weight.detach().clone(), []
    for value in plane_values(planes):
        digit = (left / (scale * value)).round().clamp(-1, 1)
        digits.append(digit)
        left = left - digit * (scale * value)
    return torch.stack(digits) + 0.0  # no -0.0


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


class Rounded:
    """A weight behind the weight, rounded in every step, with gradients straight through the rounding.

    Nothing in a step waits for the device.

    Args:
        weight: w, floating point; not all zero.
        planes: how many.

    Attributes:
        scale: s, the weight's range  # ()

    Example:
        >>> Rounded(torch.tensor([0.5, -1.0, 0.1]), planes=2).codes()
        tensor([ 1, -2,  0], dtype=torch.int16)
    """

    def __init__(self, weight: Tensor, planes: int) -> None:
        self.weight = weight.detach().float().clone()
        self.scale = _range(self.weight)
        self.keep_(planes)

    def contents(self) -> Tensor:
        """What every plane adds to the weight  # (planes, *weight.shape)"""
        digits = signed_digits(self.weight, self.scale, self.planes)
        return digits * _column(self.scale * self._values, digits)

    def follow_(self, change: Tensor) -> None:
        """Move the weight behind the weight as the optimizer asked."""
        self.weight += change
        self.scale = _range(self.weight)

    def keep_(self, planes: int) -> None:
        """Drop all planes but the first ones."""
        self.planes = planes
        self._values = torch.tensor(plane_values(planes), device=self.weight.device)

    def codes(self) -> Tensor:
        """The integers that the weight ends as, Σ digit · 2^(planes − 1 − k)  # (*weight.shape)"""
        digits = signed_digits(self.weight, self.scale, self.planes)
        return (digits * _column(self._values * 2**self.planes, digits)).sum(0).to(torch.int16)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {"weight": self.weight.clone(), "scale": float(self.scale), "planes": self.planes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        weight, planes = state["weight"], state["planes"]
        if (weight.dtype, weight.shape) != (self.weight.dtype, self.weight.shape):
            raise CheckpointError(f"a saved weight of {tuple(weight.shape)}, expected {tuple(self.weight.shape)}")
        if not isinstance(planes, int) or planes < 1:
            raise CheckpointError(f"a saved weight of {planes!r} planes, expected 1 or more")
        self.weight = weight.to(self.weight.device, copy=True)
        self.scale = torch.tensor(positive(state["scale"], "scale"), device=self.weight.device)
        self.keep_(planes)


def positive(value: Any, name: str) -> float:
    """A saved number, if it is finite and above zero."""
    if not isinstance(value, float) or not 0 < value < inf:
        raise CheckpointError(f"the saved {name} is {value!r:.60}, expected a number above 0")
    return value


def _range(weight: Tensor) -> Tensor:
    """s: so many root mean squares  # ()"""
    return (RANGE * weight.square().mean().sqrt()).clamp_min(1e-8)
