"""How many bits each layer gets: planes by what they are worth for their price, under all limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apical.errors import BudgetError

Floats = npt.NDArray[np.float64]
SIGN = 1  # bits of a code beside its planes


@dataclass(frozen=True)
class BitPrices:
    """What bits cost, as shares of each limit: 1 uses it up.

    Example:
        >>> BitPrices(fixed=(0.1,), per_bit=((0.1, 0.2),)).load([2, 3])
        0.9
    """

    fixed: tuple[float, ...]  # for each limit, what does not depend on bits
    per_bit: tuple[tuple[float, ...], ...]  # for each limit, what one bit of each layer's codes costs

    def load(self, bits: Sequence[float] | Floats) -> float:
        """The largest share of a limit that is used  # bits (layers,)"""
        totals = np.asarray(self.fixed) + np.asarray(self.per_bit) @ np.asarray(bits, dtype=np.float64)
        return round(float(totals.max()), 12)

    @property
    def of_layers(self) -> Floats:
        """One price of a bit for each layer, all limits together  # (layers,)"""
        summed: Floats = np.asarray(self.per_bit, dtype=np.float64).sum(0)
        return summed


def plane_rates(worth: Floats, prices: BitPrices) -> Floats:
    """log(worth / price) of every plane; none is above a higher plane, without which it is nothing.

    The top planes, which always stay, limit none: alone, one is the whole weight, whose product is zero where a norm
    follows, whatever the planes below it are worth.

    Args:
        worth: what each plane is worth, top plane first, not negative  # (layers, planes)
        prices: of bits.
    """
    per_price = np.log(np.maximum(worth, 1e-300)) - np.log(np.maximum(prices.of_layers, 1e-300))[:, None]
    per_price[:, 1:] = np.minimum.accumulate(per_price[:, 1:], axis=1)
    found: Floats = per_price
    return found


def soft_gates(worth: Floats, prices: BitPrices, load: float, sharpness: float) -> Floats:
    """Relaxed gates of the planes, which together cost what is asked.

        g = σ(κ (r − τ)),   τ such that the load is met;   g = 1 for the top planes

    Args:
        worth: what each plane is worth, top plane first  # (layers, planes)
        prices: of bits.
        load: what all may use of the limits.
        sharpness: κ; the gates tend to 0 and 1 as it grows.

    Returns:
        g, in [0, 1], falling from plane to plane  # (layers, planes)

    Example:
        >>> worth = np.array([[4.0, 1.0], [4.0, 0.1]])
        >>> gates = soft_gates(worth, BitPrices((0.0,), ((0.2, 0.2),)), load=1.0, sharpness=9.0)
        >>> gates.round(2).tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    found = plane_rates(worth, prices)
    low, high = float(found.min()) - 50 / sharpness, float(found.max()) + 50 / sharpness

    def gates(threshold: float) -> Floats:
        soft: Floats = 1 / (1 + np.exp(-np.clip(sharpness * (found - threshold), -60, 60)))
        soft[:, 0] = 1.0
        return soft

    for _ in range(60):  # bisection for τ, whose cost falls as it rises; 60 halvings use up a float64
        middle = (low + high) / 2
        if prices.load(SIGN + gates(middle).sum(1)) > load:
            low = middle
        else:
            high = middle
    return gates(high)


def choose_bits(worth: Floats, prices: BitPrices, least: int = 2) -> list[int]:
    """Bits of each layer within the limits: the best planes for their price, one after the other, as long as they fit.

    Args:
        worth: what each plane is worth, top plane first  # (layers, planes)
        prices: of bits.
        least: bits of each layer, to start with.

    Example:
        >>> worth = np.array([[9.0, 4.0, 1.0], [9.0, 0.4, 0.1]])
        >>> choose_bits(worth, BitPrices((0.0,), ((0.1, 0.3),)), least=2)
        [4, 2]
    """
    layers, planes = worth.shape
    bits = [least] * layers
    if prices.load(bits) > 1:
        raise BudgetError(f"{least} bits for every weight cost {prices.load(bits):.3f} times the budget")
    found = plane_rates(worth, prices)
    order = sorted(
        (-found[layer, plane], plane, layer) for layer in range(layers) for plane in range(least - SIGN, planes)
    )
    for _, plane, layer in order:
        if bits[layer] == plane + SIGN:  # else a higher plane did not fit
            bits[layer] += 1
            if prices.load(bits) > 1:
                bits[layer] -= 1
    return bits
