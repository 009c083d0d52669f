"""A budget bound to a structure: how much of it a choice of widths and blocks uses, and what can be reached."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apical._checks import in_per_cent
from apical.budget._budget import BIT_KINDS, Budget, Target
from apical.budget._latency import LatencyTable
from apical.errors import BudgetError
from apical.structure import Structure
from apical.structure._types import by_reason, parts_in_words, reason_in_words


@dataclass(frozen=True)
class Reach:
    """The least and the most that one limit's cost can be, and the limit in the same unit."""

    target: Target
    least: float
    most: float
    limit: float

    def __str__(self) -> str:
        return f"{self.target}: reachable {_amount(self.target, self.least)} to {_amount(self.target, self.most)}"


def _amount(target: Target, cost: float) -> str:
    if target.kind == "latency":
        return f"{cost:.3g} ms"
    return f"{cost:,.0f} {'MACs' if target.kind == 'macs' else 'parameters'}"


def _share_meant(reach: Reach) -> str:
    """A question for a small number without a per cent sign; else nothing."""
    target, share = reach.target, reach.target.amount / 100
    if target.relative or target.kind == "latency" or not reach.least / reach.most <= share <= 1:
        return ""
    return f"Did you mean '{target.amount:g}% {target.kind}'? "


def budget_share(budget: Budget, structure: Structure) -> float:
    """Roughly what fraction of the template's MACs a budget leaves; a half for milliseconds, which do not say.

    Example:
        >>> import apical, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
        >>> structure = apical.trace(model, torch.zeros(1, 4))
        >>> budget_share(Budget("12 macs, 60% params"), structure)
        0.25
        >>> budget_share(Budget("60% params, 10% size"), structure)
        0.6
    """
    shares = []
    for target in budget.targets:
        if target.kind in BIT_KINDS:
            continue
        whole = {"macs": structure.macs(), "params": structure.num_params()}.get(target.kind)
        shares.append(target.amount if target.relative else target.amount / whole if whole else 0.5)
    return min(1.0, *shares)


class BoundBudget:
    """Prices choices of widths and blocks against a budget.

    Args:
        budget: the limits.
        structure: the template.
        minimum: the fewest units of each group that may be left, by name; 1 if not named.
        latency: measured table, needed for latency limits.
        fixed_blocks: names of the blocks that stay, or True if all do.

    Raises:
        BudgetError: if a limit cannot be met; it says what can, and what is frozen.
    """

    def __init__(
        self,
        budget: Budget,
        structure: Structure,
        *,
        minimum: Mapping[str, int] | None = None,
        latency: LatencyTable | None = None,
        fixed_blocks: bool | Collection[str] = False,
    ) -> None:
        self.budget, self.structure, self._latency = budget, structure, latency
        least = {g.name: (minimum or {}).get(g.name, 1) for g in structure.groups}
        fixed = fixed_blocks if isinstance(fixed_blocks, Collection) else ()
        # the cheapest network that can be reached: the fewest units, without every block that may leave
        skip = [] if fixed_blocks is True else [b.name for b in structure.blocks if b.name not in fixed]
        self._full = {t: self._cost(t, None, ()) for t in budget.targets}
        self.reach = tuple(
            Reach(t, self._cost(t, least, skip), self._full[t], t.amount * (self._full[t] if t.relative else 1))
            for t in budget.targets
        )
        for reach in self.reach:
            self._check_least(reach)
        self._check_most()

    def _check_least(self, reach: Reach) -> None:
        if reach.limit < reach.least:
            sized = [(sum(f.size for f in parts), parts) for parts in by_reason(self.structure.frozen).values()]
            largest = sorted(sized, key=lambda item: -item[0])[:4]
            kept = "; ".join(
                f"{parts_in_words(parts)} ({size} channels): {reason_in_words(parts)}" for size, parts in largest
            )
            raise BudgetError(
                f"no network meets the budget {reach.target}: the smallest that can be grown from this model costs "
                f"{_amount(reach.target, reach.least)} ({in_per_cent(reach.least, reach.most)} of "
                f"{_amount(reach.target, reach.most)}){self._measured(reach.target)}. "
                f"{_share_meant(reach)}What is frozen: {kept or 'nothing'}."
            )

    def _measured(self, target: Target) -> str:
        """Where milliseconds come from, so that they can be judged."""
        if target.kind != "latency" or self._latency is None:
            return ""
        return f" (measured: {self._latency.measurement})"

    def _check_most(self) -> None:
        # all limits must lie above the template: one that binds is enough to grow for (the factor is for rounding)
        if all(reach.limit > 1.000001 * reach.most for reach in self.reach):
            costs = " and ".join(f"{_amount(r.target, r.most)}{self._measured(r.target)}" for r in self.reach)
            raise BudgetError(
                f"the whole model costs only {costs}, less than the budget {self.budget}. Pass a larger model: "
                "it is the most that may be grown."
            )

    def _cost(self, target: Target, keep: Mapping[str, Any] | None, skip: Iterable[str]) -> float:
        if target.kind == "macs":
            return float(self.structure.macs(keep, skip))
        if target.kind == "params":
            return float(self.structure.num_params(keep, skip))
        if target.kind in BIT_KINDS:
            raise BudgetError(
                f"the budget {target} is met by the bits of weights, which only apical.Grower chooses; this method "
                "chooses widths: give it macs, params or latency"
            )
        if self._latency is None:
            raise BudgetError(
                f"the budget {target} is in time, which apical.Grower measures and this method does not: give it macs "
                "or params (BoundBudget takes latency=apical.timing.measure_latency_table(...))"
            )
        return self._latency.predict_ms(keep, skip)

    def load(self, keep: Mapping[str, Any] | None, skip: Iterable[str] = ()) -> float:
        """The largest cost-to-limit ratio over the limits: 1 where the budget is exactly met, above it too dear."""
        return max(self.loads(keep, skip))

    def loads(self, keep: Mapping[str, Any] | None, skip: Iterable[str] = ()) -> tuple[float, ...]:
        """The cost-to-limit ratio of every limit, in the budget's order."""
        skip = tuple(skip)
        return tuple(self._cost(r.target, keep, skip) / r.limit for r in self.reach)
