"""A weight as a sum over bit planes ([CSQ], continuous sparsification quantization).

    w = s Σ_k 2^-(k+1) g_k [σ(β p_k) − σ(β n_k)],   k = 0 (the top plane), …, planes − 1

p_k and n_k have the weight's shape; g_k, one number a plane, says whether the layer has it. As β rises every difference
of sigmoids becomes a digit −1, 0 or 1, so that b planes end as an integer in ±(2^b − 1) times s / 2^b: a code of b + 1
bits. Nothing is rounded on the way, and no gradient is passed straight through.

Source: Xiao et al., CSQ: Growing Mixed-Precision Quantization Scheme with Bi-level Continuous Sparsification, DAC 2023
(arXiv:2212.02770). Its abstract was read, the formula is recalled; how its terms are trained here is our own
(docs/decisions/043).
"""

from __future__ import annotations

from math import inf, tanh
from typing import Any, Protocol

import torch
from torch import Tensor

from apical.errors import CheckpointError

RANGE = 2.7  # standard deviations that the planes cover: near the best for 2 to 5 bits of a normal distribution
START = 1.0  # |p| and |n| at the start
SPEED = 4.0  # how fast the planes follow what the optimizer asks for


class Quantizer(Protocol):
    """What stands behind one quantised weight while it trains.

    Attributes:
        scale: s, the weight's range.
    """

    scale: float

    @property
    def planes(self) -> int:
        """How many there are."""
        ...

    def contents(self, beta: float) -> Tensor:
        """What every plane adds to the weight  # (planes, *weight.shape)"""
        ...

    def follow_(self, change: Tensor, weight: Tensor, beta: float, gates: Tensor) -> None:
        """Move as the optimizer asked the weight to move."""
        ...

    def keep_(self, planes: int) -> None:
        """Drop all planes but the first ones."""
        ...

    def codes(self) -> Tensor:
        """The integers that the weight ends as, in ±(2^planes − 1)  # (*weight.shape)"""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            CheckpointError: it does not fit this weight, or was changed.
        """
        ...


def plane_values(planes: int) -> list[float]:
    """What a digit of each plane is worth, relative to the scale: 1/2, 1/4, …

    Example:
        >>> plane_values(3)
        [0.5, 0.25, 0.125]
    """
    return [2.0 ** -(k + 1) for k in range(planes)]


def signed_digits(weight: Tensor, scale: float, planes: int) -> Tensor:
    """The digits −1, 0, 1 of every plane, each plane the nearest to what the planes above it left.

    So any number of leading planes is the weight rounded to their precision.

    Args:
        weight: any shape.
        scale: s, positive.
        planes: how many.

    Returns:
        Digits  # (planes, *weight.shape)

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


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.dim() - 1))


def _to_code(digits: Tensor) -> Tensor:
    """Σ digit · 2^(planes − 1 − k)."""
    powers = [2.0 ** (len(digits) - 1 - k) for k in range(len(digits))]
    return (digits * _column(powers, digits)).sum(0).to(torch.int16)


class BitPlanes:
    """Bit planes with digits that are relaxed by sigmoids and harden as β rises.

    The weight starts as it is, rounded to all planes. What the user's optimizer asks for is split: its part along the
    weight changes the scale, as weight decay does, and the rest reaches the latents through the Jacobian,
    Δp = c Jᵀ Δw, with one c a layer, such that at the start the weight moves `SPEED` times as asked on average.

    Args:
        weight: w, floating point; not all zero.
        planes: how many.

    Example:
        >>> planes = BitPlanes(torch.tensor([[0.5, -1.0, 0.1]]), planes=5)
        >>> planes.contents(beta=1.0).sum(0).shape
        torch.Size([1, 3])
        >>> planes.codes()
        tensor([[  9, -18,   2]], dtype=torch.int16)
    """

    def __init__(self, weight: Tensor, planes: int) -> None:
        weight = weight.detach().float()
        self.scale = _range(weight)
        digits = signed_digits(weight, self.scale, planes)
        self.latents = torch.stack([(2.0 * (digits == sign) - 1) * START for sign in (1, -1)])  # (2, planes, *shape)
        self._speed = SPEED / self._stretch(1.0, torch.ones(planes, device=weight.device))

    @property
    def planes(self) -> int:
        """How many there are."""
        return self.latents.shape[1]

    def contents(self, beta: float) -> Tensor:
        """What every plane adds to the weight  # (planes, *weight.shape)"""
        soft = torch.sigmoid(beta * self.latents)
        return self._values(beta) * (soft[0] - soft[1])

    def _values(self, beta: float) -> Tensor:
        """What a digit of 1 of each plane is worth; the factor lets digits of ±START be worth ±1 at any β."""
        factor = self.scale / tanh(beta * START / 2)
        return _column([factor * v for v in plane_values(self.planes)], self.latents[0])

    def _slopes(self, beta: float, gates: Tensor) -> Tensor:
        """∂w/∂p and −∂w/∂n  # (2, planes, *shape)"""
        soft = torch.sigmoid(beta * self.latents)
        return self._values(beta) * beta * gates.view(-1, *[1] * (soft.dim() - 2)) * soft * (1 - soft)

    def _stretch(self, beta: float, gates: Tensor) -> float:
        return float(self._slopes(beta, gates).square().sum((0, 1)).mean())

    def follow_(self, change: Tensor, weight: Tensor, beta: float, gates: Tensor) -> None:
        """Move as the optimizer asked the weight to move.

        Args:
            change: Δw, as the optimizer made it.
            weight: w before it.
            beta: β.
            gates: g  # (planes,)
        """
        radial = float((change * weight).sum() / weight.square().sum().clamp(min=1e-30))
        slopes = self._slopes(beta, gates).mul_(self._speed).mul_(change - radial * weight)
        self.latents[0] += slopes[0]
        self.latents[1] -= slopes[1]
        self.scale *= max(0.5, 1 + radial)

    def keep_(self, planes: int) -> None:
        """Drop all planes but the first ones."""
        self.latents = self.latents[:, :planes].clone()

    def codes(self) -> Tensor:
        """The integers that the weight ends as: a latent above zero is a 1  # (*weight.shape)"""
        bits = (self.latents > 0).float()
        return _to_code(bits[0] - bits[1])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {"latents": self.latents.clone(), "scale": self.scale, "speed": self._speed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        latents, own = state["latents"], self.latents
        fits = (latents.dtype, latents.shape[:1], latents.shape[2:]) == (own.dtype, own.shape[:1], own.shape[2:])
        if not fits or latents.shape[1] < 1:
            raise CheckpointError(
                f"saved latents of {tuple(latents.shape)} {latents.dtype}, expected {tuple(own.shape)}"
            )
        self.latents = latents.to(own.device, copy=True)
        self.scale = positive(state["scale"], "scale")
        self._speed = positive(state["speed"], "speed")


class Rounded:
    """The usual way: a weight behind the weight, rounded in every step, with gradients straight through the rounding.

    Args:
        weight: w, floating point; not all zero.
        planes: how many.

    Example:
        >>> Rounded(torch.tensor([0.5, -1.0, 0.1]), planes=2).codes()
        tensor([ 1, -2,  0], dtype=torch.int16)
    """

    def __init__(self, weight: Tensor, planes: int) -> None:
        self.weight = weight.detach().float().clone()
        self.scale = _range(self.weight)
        self._planes = planes

    @property
    def planes(self) -> int:
        """How many there are."""
        return self._planes

    def contents(self, beta: float) -> Tensor:  # noqa: ARG002 - hard from the start
        """What every plane adds to the weight  # (planes, *weight.shape)"""
        digits = signed_digits(self.weight, self.scale, self.planes)
        return digits * _column([self.scale * v for v in plane_values(self.planes)], digits)

    def follow_(self, change: Tensor, weight: Tensor, beta: float, gates: Tensor) -> None:  # noqa: ARG002
        """Move the weight behind the weight as the optimizer asked."""
        self.weight += change
        self.scale = _range(self.weight)

    def keep_(self, planes: int) -> None:
        """Drop all planes but the first ones."""
        self._planes = planes

    def codes(self) -> Tensor:
        """The integers that the weight ends as  # (*weight.shape)"""
        return _to_code(signed_digits(self.weight, self.scale, self.planes))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers."""
        return {"weight": self.weight.clone(), "scale": self.scale, "planes": self._planes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        weight, planes = state["weight"], state["planes"]
        if (weight.dtype, weight.shape) != (self.weight.dtype, self.weight.shape):
            raise CheckpointError(f"a saved weight of {tuple(weight.shape)}, expected {tuple(self.weight.shape)}")
        if not isinstance(planes, int) or planes < 1:
            raise CheckpointError(f"a saved weight of {planes!r} planes, expected 1 or more")
        self.weight = weight.to(self.weight.device, copy=True)
        self.scale = positive(state["scale"], "scale")
        self._planes = planes


def positive(value: Any, name: str) -> float:
    """A saved number, if it is finite and above zero.

    Raises:
        CheckpointError: it is not.
    """
    if not isinstance(value, float) or not 0 < value < inf:
        raise CheckpointError(f"the saved {name} is {value!r:.60}, expected a number above 0")
    return value


def _range(weight: Tensor) -> float:
    """s: so many root mean squares."""
    return max(RANGE * float(weight.square().mean().sqrt()), 1e-8)
