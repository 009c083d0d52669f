"""Where capacity goes: from groups and blocks that are worth little for what they cost to those that are worth much.

All functions are pure. Numbers are by group or by block, in the structure's order.

Widths. If the loss falls with the width n of a group like a / n, the last unit is worth v = a / n², and the best widths
under a budget are those at which v / π is the same for all groups, π being the price of a unit. So a width follows

    log n  ←  log n + clip(η (log v/π − mean), ± log max_change) + μ

with one μ for all at which the network costs what is scheduled (`apical.growth._widths.fit`). η = ½ would go the whole
way at once; less damps what is measured badly. For the same reason v is drawn halfway towards N / n², N being the
template's width, as if all groups needed units in the template's proportions (`shrunk`).

Blocks. A block that is worth less for its cost than the widths of the others are leaves, one that is absent and was
worth clearly more comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from apical.budget import BoundBudget

FLOOR = 1e-6  # of the mean: what counts as worth nothing has a logarithm, too
MATURE = 2  # intervals that a component must have lived through before it is judged


def unit_prices(
    bound: BoundBudget, counts: Sequence[int], step: Sequence[int], skip: Sequence[str], multipliers: Sequence[float]
) -> list[float]:
    """π_g = Σ_t λ_t ∂load_t/∂n_g: what one more unit of each group costs, in shares of the budget.

    The derivative is the difference over one step up and one down (as far as the group goes), which is exact for
    multiply-adds and parameters.

    Args:
        bound: the budget; load_t is the cost divided by limit t.
        counts: n, the present widths.
        step: rounding of each group.
        skip: blocks that are left out.
        multipliers: λ, of each limit.
    """
    groups = bound.structure.groups
    names = [g.name for g in groups]

    def cost(widths: Sequence[int]) -> float:
        loads = bound.loads(dict(zip(names, widths, strict=True)), skip)
        return sum(weight * load for weight, load in zip(multipliers, loads, strict=True))

    prices = []
    for i, (group, n, s) in enumerate(zip(groups, counts, step, strict=True)):
        more, fewer = min(group.size, n + s), max(0, n - s)  # one-sided where the group ends
        wider, narrower = ([*counts[:i], width, *counts[i + 1 :]] for width in (more, fewer))
        prices.append(max(0.0, cost(wider) - cost(narrower)) / max(1, more - fewer))
    return prices


def block_prices(
    bound: BoundBudget, counts: Sequence[int], skip: Sequence[str], multipliers: Sequence[float]
) -> list[float]:
    """What each block costs at the present widths, or would cost if it is absent, in shares of the budget."""
    present = {g.name: n for g, n in zip(bound.structure.groups, counts, strict=True)}

    def cost(skipped: set[str]) -> float:
        loads = bound.loads(present, sorted(skipped))
        return sum(weight * load for weight, load in zip(multipliers, loads, strict=True))

    return [max(0.0, cost({*skip} - {b.name}) - cost({*skip, b.name})) for b in bound.structure.blocks]


@dataclass(frozen=True)
class Rates:
    """What a unit of each group is worth for what it costs, relative to the mean of all, in logarithms."""

    mean: float  # log of the mean worth per price, over the groups by what they cost
    relative: tuple[float, ...]  # log v/π − mean by group; 0 where nothing is known or nothing is paid


def rates(values: Sequence[float | None], prices: Sequence[float], counts: Sequence[int]) -> Rates:
    """Compare groups.

    Args:
        values: v, what one more unit of each group is worth; None where it was not measured.
        prices: π, of a unit.
        counts: n, of units.
    """
    known = [i for i, (v, p) in enumerate(zip(values, prices, strict=True)) if v is not None and p > 0]
    shares = {i: prices[i] * counts[i] for i in known}  # what each group costs: the mean is over cost, not over groups
    total = sum(shares.values())
    if not total:
        return Rates(0.0, (0.0,) * len(values))
    ratios = {i: float(values[i] or 0.0) / prices[i] for i in known}
    least = FLOOR * sum(ratios.values()) / len(known)
    if not least:  # nothing is worth anything (no step had a gradient)
        return Rates(0.0, (0.0,) * len(values))
    logs = {i: log(max(least, ratio)) for i, ratio in ratios.items()}
    mean = sum(shares[i] * logs[i] for i in known) / total
    return Rates(mean, tuple(logs[i] - mean if i in logs else 0.0 for i in range(len(values))))


def expected_values(sizes: Sequence[int], counts: Sequence[int]) -> list[float]:
    """What one more unit of each group would be worth, were the loss Σ N / n: as the template's widths N suggest.

    Args:
        sizes: N.
        counts: n, the present widths.
    """
    return [size / count**2 for size, count in zip(sizes, counts, strict=True)]


def shrunk(measured: Rates, expected: Rates, shrinkage: float) -> Rates:
    """What was measured, drawn towards what is expected, in logarithms: (1 − s) measured + s expected.

    What is measured in a few steps says how much a group is used now. Early in training that may differ a
    thousandfold between layers of which one has not begun to learn, although one more unit of each would be worth
    about the same in the end.
    """
    both = zip(measured.relative, expected.relative, strict=True)
    return Rates(measured.mean, tuple((1 - shrinkage) * m + shrinkage * e for m, e in both))


def moved(widths: Sequence[float], relative: Sequence[float], damping: float, max_change: float) -> list[float]:
    """Real-valued widths after one restructuring, but for the factor that all have in common.

    Example:
        >>> moved([8.0, 8.0], [-9.0, 0.0], damping=0.5, max_change=2.0)
        [4.0, 8.0]
    """
    most = log(max_change)  # in logarithms, so that halving and doubling are steps of one length
    return [w * exp(max(-most, min(most, damping * r))) for w, r in zip(widths, relative, strict=True)]


def block_rates(worth: Sequence[float], prices: Sequence[float], mean: float) -> list[float]:
    """What each block is worth for its cost, relative to the widths, in logarithms: log U_b/π_b − mean.

    Args:
        worth: U_b, what the loss would rise by without the block; of an absent one, what was last known.
        prices: π_b, what it costs; one that costs nothing is as good as the widths.
        mean: log of what the widths are worth for their cost.
    """
    return [log(max(u / c, 1e-300)) - mean if c > 0 else 0.0 for u, c in zip(worth, prices, strict=True)]


def choose_blocks(
    ratios: Sequence[float],  # of `block_rates`
    prices: Sequence[float],  # what each block costs, in shares of the budget
    present: Sequence[bool],  # whether it is there
    may_change: Sequence[bool],  # whether it has been there long enough, and is not to stay
    most: float,  # share of the budget that may leave in one restructuring; one block always may
    hysteresis: float,  # factor by which an absent block must be worth more than the widths
) -> tuple[list[int], list[int]]:
    """Which blocks leave and which come back.

    Returns:
        Indices that leave, the least worth first; indices that come back, at most one.

    Example:
        >>> choose_blocks([-1.4, 0.8, 0.7], [1.0, 1.0, 1.0], [True, True, False], [True] * 3, 1.0, 1.5)
        ([0], [2])
    """
    # The worst leave first, several only as far as widths can take over what they cost within one restructuring.
    leaving: list[int] = []
    for i in sorted(range(len(ratios)), key=lambda i: ratios[i]):
        fits = not leaving or sum(prices[j] for j in [*leaving, i]) <= most
        if present[i] and may_change[i] and prices[i] > 0 and ratios[i] < 0 and fits:
            leaving.append(i)
    # One at a time comes back, since each was judged beside the network without the others; the margin keeps a block
    # that is worth about as much as the widths from leaving and returning again and again.
    waiting = [i for i in range(len(ratios)) if not present[i] and may_change[i] and ratios[i] > log(hysteresis)]
    return leaving, sorted(waiting, key=lambda i: -ratios[i])[:1]
