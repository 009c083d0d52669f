"""Which network comes next: the method of growth, apart from the model that it changes.

At every restructuring:

    measured   what each unit and block is worth: mean squares of gate products     `apical.growth._utility`
    wanted     what it is worth for what it costs, so where capacity goes           `apical.growth._allocation`
    scheduled  what the network may cost now: from the seed's share up to 1         `apical.growth._schedule`
    chosen     widths of that cost, in whole steps                                  `apical.growth._widths`

Within a group, the units that are worth the least leave first, and chance decides which of those that never lived come
first; how many there are is never left to chance.

Source: the aim, growth and pruning under an accuracy and a sparsity objective while training, and the protection of
the young are of [SCS] Yuan, Savarese, Maire, ICLR 2021; what decides is our own. The paper's version: `_scs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

import torch
from torch import Tensor, nn

from apical.errors import BudgetError
from apical.growth._allocation import (
    MATURE,
    block_prices,
    block_rates,
    choose_blocks,
    expected_values,
    moved,
    rates,
    shrunk,
    unit_prices,
)
from apical.growth._components import Components, strongest_first_
from apical.growth._config import GrowthConfig
from apical.growth._method import Choice, Method, Terms
from apical.growth._observer import GateObserver
from apical.growth._utility import UtilityMeter, update_utilities_
from apical.growth._widths import TOLERANCE, Widths, fit
from apical.resizing._selection import Selection, first_units

HYSTERESIS = 1.5  # an absent block must be worth this much more than the widths to come back


class Controller(Method):
    """Growth by what training shows; the arguments and attributes of `apical.growth._method.Method`.

    Raises:
        BudgetError: the budget cannot be met.
    """

    SAVED = (*Method.SAVED, "widths", "multipliers")
    reads_shifts = False  # with the constant that it adds, a block that sees nothing would look indispensable

    def __init__(self, model: nn.Module, terms: Terms, config: GrowthConfig, length: int) -> None:
        super().__init__(terms, config, length)
        if config.seed_style == "pretrained":
            strongest_first_(self.components, model)
        self.widths = torch.tensor(terms.limits.most, dtype=torch.float64, device="cpu")  # real-valued  # (groups,)
        self.multipliers = (1.0 / len(terms.bound.reach),) * len(terms.bound.reach)

    # ---- the networks ----------------------------------------------------------------------------------------------

    def seed(self) -> Choice:
        wanted = 1.0 if self.frozen else self.config.seed_fraction
        if wanted < 1:  # a fraction of what can grow: a seed that frozen parts use up would be one unit everywhere
            wanted = self.terms.fixed_load + wanted * (1 - self.terms.fixed_load)
        found, skip = self._seed(wanted)
        self.seed_load = max(found.load, min(wanted, 1.0)) if wanted <= 1 else max(1.0, found.load)
        self.target_load = self.seed_load
        self.widths = torch.tensor(found.counts, dtype=torch.float64, device="cpu")
        return self._choice(found, skip)

    def _seed(self, wanted: float) -> tuple[Widths, tuple[str, ...]]:
        """Whole streams if they leave room for the rest, else one ratio for all widths; all blocks if there is room."""
        limits, bound, structure = self.terms.limits, self.terms.bound, self.terms.structure
        whole = [float(n) for n in limits.most]
        # pretrained: inner widths shrink alone, if whole streams with their fewest units cost at most half the budget
        if self.config.seed_style == "pretrained":
            streams = self.terms.with_whole_streams()
            smallest = bound.load(streams.least_of(structure))
            if smallest <= max(wanted, 0.5):
                return fit(bound, streams, whole, (), max(wanted, smallest), exact=self.frozen), ()
        # small: all widths by one ratio; blocks leave from the output on, one by one, until the fewest units fit
        skip: tuple[str, ...] = ()
        for block in (None, *reversed(structure.blocks)):
            skip = skip if block is None or block.name in self.terms.stay else (*skip, block.name)
            smallest = bound.load(limits.least_of(structure), skip)
            if smallest <= 1 + TOLERANCE:
                return fit(bound, limits, whole, skip, max(wanted, smallest), exact=self.frozen), skip
        raise BudgetError(
            f"the smallest network costs {smallest:.3g} times the budget {bound.budget} "
            f"({'; '.join(map(str, bound.reach))}). Allow more, or a smaller divisor or min_units."
        )

    def next(self, done: int, present: Selection) -> Choice:
        self._advance(done)
        if self.config.utility == "squared":
            update_utilities_(self.components)
        else:
            self._draw_utilities()
        counts = [len(present.keep[g.name]) for g in self.terms.structure.groups]
        found, skip, wanted = self._plan(counts, tuple(sorted(present.skip)))
        # beyond its limits a width would have to come all the way back before it moves again
        bounds = (self.terms.limits.least, self.terms.limits.most)
        least, most = (torch.tensor(n, dtype=torch.float64, device="cpu") for n in bounds)
        self.widths = (wanted * exp(found.shift)).clamp(least, most)
        return self._choice(found, skip)

    def _plan(self, counts: Sequence[int], skip: tuple[str, ...]) -> tuple[Widths, tuple[str, ...], Tensor]:
        """Blocks, then widths, then the weight of each limit, until the limits are used up together.

        Returns:
            The network, the blocks left out, and the real-valued widths before the common factor  # (groups,)
        """
        bound, limits = self.terms.bound, self.terms.limits
        values, expected = self._unit_values(), expected_values(limits.most, counts)
        # Prices depend on λ, and λ on how far the network at those prices uses each limit up: some rounds settle it.
        for _ in range(len(self.multipliers) * 6 - 5):  # once where there is one limit
            prices = unit_prices(bound, counts, limits.step, skip, self.multipliers)
            found = shrunk(rates(values, prices, counts), rates(expected, prices, counts), self.config.shrinkage)
            self.relative = {
                group.name: rate
                for group, rate, value, price in zip(
                    bound.structure.groups, found.relative, values, prices, strict=True
                )
                if value is not None and price > 0
            }
            chosen = self._blocks(counts, skip, found.mean)
            wanted = torch.tensor(
                moved(self.widths.tolist(), found.relative, self.config.damping, self.config.max_change),
                dtype=torch.float64, device="cpu",
            )  # fmt: skip
            fitted = fit(bound, limits, wanted.tolist(), chosen, self.target_load, exact=self.frozen)
            self._weigh(bound.loads(self._by_name(fitted.counts), chosen))
        return fitted, chosen, wanted

    def _weigh(self, loads: Sequence[float]) -> None:
        """λ of each limit: the more of it is used compared with the others, the more it counts; their sum is 1."""
        # a multiplicative update, as of weights of experts (Arora, Hazan, Kale 2012); the floor lets each come back
        raised = [max(0.01, weight * load / max(loads)) for weight, load in zip(self.multipliers, loads, strict=True)]
        self.multipliers = tuple(weight / sum(raised) for weight in raised)

    def _blocks(self, counts: Sequence[int], skip: tuple[str, ...], mean: float) -> tuple[str, ...]:
        c, structure, bound = self.components, self.terms.structure, self.terms.bound
        if not self.config.grow_depth or not structure.blocks:
            return skip
        names = [b.name for b in structure.blocks]
        prices = block_prices(bound, counts, skip, self.multipliers)
        judged = (c.age >= MATURE) & (c.watched | ~c.live)  # without gradients nothing is known of what is there
        may = [name not in self.terms.stay and j for name, j in zip(names, judged[c.blocks].tolist(), strict=True)]
        ratios = block_rates(c.values[c.blocks].tolist(), prices, mean)
        present = c.live[c.blocks].tolist()
        known = zip(names, ratios, may, present, strict=True)
        self.relative |= {name: ratio for name, ratio, judged_here, here in known if judged_here and here}
        most_leaving = (1 - 1 / self.config.max_change) * self.target_load
        leaving, back = choose_blocks(ratios, prices, present, may, most_leaving, HYSTERESIS)
        gone = [name for name in skip if name not in {names[i] for i in back}]
        most = dict(zip((g.name for g in structure.groups), self.terms.limits.most, strict=True))
        for i in leaving:  # as long as the widths that remain can still use up the budget
            if bound.load(most, [*gone, names[i]]) >= 1:
                gone.append(names[i])
        return tuple(gone)

    # ---- what it decides by ----------------------------------------------------------------------------------------

    def _unit_values(self) -> list[float | None]:
        """v_g: what one more unit of each group is worth, from those that have lived long enough to show it.

        Where m of n units have, the young will take over a part of what the m do now: v = mean U · (m / n)², as of a
        loss that falls like a / n.
        """
        c = self.components
        values: list[float | None] = []
        for i in range(len(c.sizes)):
            part = c.entries(i)
            live, judged = c.live[part], c.live[part] & (c.age[part] >= MATURE) & c.watched[part]
            # where none is mature, the young must do; with one interval behind them they have been measured
            judged = judged if judged.any() else live & (c.age[part] >= 1) & c.watched[part]
            share = float(judged.sum()) / max(1.0, float(live.sum()))
            values.append(float(c.values[part][judged].mean()) * share**2 if judged.any() else None)
        return values

    def _draw_utilities(self) -> None:
        """The control: utilities that training has no part in."""
        c = self.components
        draws = torch.rand(len(c.values), generator=self.generator, dtype=torch.float64, device="cpu")
        # one draw for all units of a group: else every group's mean is ½, and nothing is random about its width
        groups = [draw.expand(n) for draw, n in zip(draws[: len(c.sizes)], c.sizes, strict=True)]
        level = torch.cat([*groups, draws[c.blocks]])
        c.age += c.live
        c.values.copy_(level)
        c.watched[:] = True

    def _choice(self, found: Widths, skip: tuple[str, ...]) -> Choice:
        c = self.components
        rankings = {g.name: ranking(c, c.entries(i)) for i, g in enumerate(self.terms.structure.groups)}
        return Choice(first_units(rankings, self._by_name(found.counts)), skip, found.load)

    def _by_name(self, counts: Sequence[int]) -> dict[str, int]:
        return {g.name: n for g, n in zip(self.terms.structure.groups, counts, strict=True)}

    # ---- what the Grower needs ------------------------------------------------------------------------------------

    def end_epoch(self) -> None:
        """Nothing: ages count in intervals."""

    def applied(self, born: Tensor) -> None:
        """Note which components have just appeared: their age counts from here."""
        self.components.age[born] = 0

    def watch(self, observers: Sequence[GateObserver], device: torch.device) -> UtilityMeter:
        """Measure the present network from now on."""
        c = self.components
        c.watched.zero_()
        for observer in observers:
            c.watched[observer.entries()] = True
        return UtilityMeter(c, device, observers)


def ranking(components: Components, part: slice) -> list[int]:
    """The units of a group, the one that stays longest first.

    The young come first, who have not had their chance, then the others that live by their utility; then those that
    are absent: what lived before by its utility, and what never lived in the order that was drawn.
    """
    c = components
    live, lived = c.live[part].tolist(), c.lived[part].tolist()
    age, values, order = c.age[part].tolist(), c.values[part].tolist(), c.order[part].tolist()

    def key(i: int) -> tuple[int, float, float]:
        if live[i]:
            return (0, 0.0, order[i]) if age[i] < MATURE else (1, -values[i], order[i])
        return (2, -values[i], order[i]) if lived[i] else (3, 0.0, order[i])

    return sorted(range(len(live)), key=key)
