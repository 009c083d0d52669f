"""What a training will cost, before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from torch import nn

from apical.budget import Budget
from apical.errors import ConfigError
from apical.growth._config import GrowthConfig
from apical.growth._controller import Controller
from apical.growth._method import Choice, Method, Terms, terms_of
from apical.growth._schedule import with_times
from apical.growth._scs import ScsConfig, ScsController
from apical.growth._widths import fit
from apical.reporting._svg import evenly
from apical.reporting._tables import folded, table
from apical.structure import Frozen, Structure
from apical.structure._types import by_reason, parts_in_words, reason_in_words

SHOWN = 12  # lines of a table


@dataclass(frozen=True)
class PlannedEpoch:
    """The network of an epoch, if widths keep the seed's proportions: what training shows will change them.

    Attributes:
        epoch: from 1.
        load: scheduled cost, as a fraction of the budget, in the middle of the epoch.
        macs: of a forward pass of the example.
        num_params: of the network.
        widths: units of each group.
    """

    epoch: int
    load: float
    macs: int
    num_params: int
    widths: dict[str, int]


@dataclass(frozen=True)
class Plan:
    """Costs by epoch, against the full model and against the final network.

    Attributes:
        budget: what the final network may cost.
        full_macs: of a forward pass of the full model.
        full_params: of the full model.
        seed_widths: units of each group at the start.
        full_widths: units of each group of the full model.
        skipped: blocks that the seed leaves out.
        epochs: one record for each.
        frozen: what cannot change, and why.
    """

    budget: str
    full_macs: int
    full_params: int
    seed_widths: dict[str, int]
    full_widths: dict[str, int]
    skipped: tuple[str, ...]
    epochs: tuple[PlannedEpoch, ...]
    frozen: tuple[Frozen, ...]

    @property
    def train_macs_vs_dense(self) -> float:
        """Training MACs over those of the full model for as many epochs."""
        return sum(e.macs for e in self.epochs) / (len(self.epochs) * self.full_macs)

    @property
    def train_macs_vs_final(self) -> float:
        """Training MACs over those of the final network for as many epochs."""
        return sum(e.macs for e in self.epochs) / (len(self.epochs) * self.epochs[-1].macs)

    def minutes(self, seconds_per_epoch: float) -> tuple[float, float]:
        """Minutes of the whole training: if seconds fell as MACs do, and if they did not fall at all.

        Small layers and odd widths save less than their MACs; the truth lies between.

        Args:
            seconds_per_epoch: of the full model on this machine.
        """
        whole = len(self.epochs) * seconds_per_epoch / 60
        return whole * self.train_macs_vs_dense, whole

    def __repr__(self) -> str:
        first, last = (e.macs / self.full_macs for e in (self.epochs[0], self.epochs[-1]))
        return (
            f"<Plan: {self.budget}, {len(self.epochs)} epochs; {first:.1%} to {last:.1%} of the full model's MACs; "
            "print() shows the table>"
        )

    def __str__(self) -> str:
        return self.text()

    def text(self, further: Mapping[str, Sequence[str]] | None = None) -> str:
        """What `print` shows: the two ends, the sums, some twelve epochs, and what cannot change.

        Args:
            further: columns besides MACs and parameters, by heading: a text for each epoch.
        """
        first, last = self.epochs[0], self.epochs[-1]
        left_out = f", {len(self.skipped)} blocks left out" if self.skipped else ""
        lines = [
            f"{self.budget}, {len(self.epochs)} epochs",
            f"  starts with {first.macs / self.full_macs:.1%} of the full model's MACs, "
            f"{sum(self.seed_widths.values())} of {sum(self.full_widths.values())} units{left_out}",
            f"  ends with {last.macs / self.full_macs:.1%} of its MACs and some "
            f"{last.num_params / self.full_params:.0%} of its parameters",
            f"  {self._training}",
            "",
            "   ".join(["epoch", "MACs %", "parameters", *(further or {})]),
        ]
        for e in self._shown():
            cells = [f"{e.epoch:5}", f"{100 * e.macs / self.full_macs:6.1f}", f"{e.num_params:10,}"]
            cells += [column[e.epoch - 1].rjust(len(heading)) for heading, column in (further or {}).items()]
            lines.append("   ".join(cells))
        if self.frozen:
            lines += ["", f"{self._cannot_change}:", *(f"  {parts}: {reason}" for parts, reason in self._reasons())]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [(e.epoch, f"{100 * e.macs / self.full_macs:.1f} %", e.num_params) for e in self._shown()]
        costs = table(("epoch", "MACs", "parameters"), rows, "the plan")
        reasons = table(("part", "reason"), self._reasons(), "what cannot change")
        why = folded(self._cannot_change, reasons) if self.frozen else ""
        return f"<p><b>{escape(self.budget)}</b>, {len(self.epochs)} epochs: {self._training}</p>{costs}{why}"

    def _reasons(self) -> list[tuple[str, str]]:
        return [(parts_in_words(parts), reason_in_words(parts)) for parts in by_reason(self.frozen).values()]

    @property
    def _cannot_change(self) -> str:
        return "1 part cannot change" if len(self.frozen) == 1 else f"{len(self.frozen)} parts cannot change"

    @property
    def _training(self) -> str:
        return (
            f"training takes {self.train_macs_vs_dense:.1%} of the full model's training MACs, "
            f"{self.train_macs_vs_final:.1%} of the final network's"
        )

    def _shown(self) -> Sequence[PlannedEpoch]:
        return evenly(self.epochs, SHOWN)


def plan_of(method: Method, seed: Choice, epochs: int, budget: str) -> Plan:
    """The plan of a method that starts from this seed."""
    bound, structure, schedule = method.terms.bound, method.terms.structure, method.schedule
    widths = {name: len(kept) for name, kept in seed.keep.items()}
    planned = []
    for epoch in range(epochs):
        # priced in its middle: within an epoch there may be several restructurings
        middle = (epoch + 0.5) / epochs * schedule.length
        load = 1.0 if schedule.at_once else schedule.load(int(middle), method.seed_load)
        # the seed's proportions, since nobody knows what training will show
        found = fit(bound, method.terms.limits, [float(max(1, n)) for n in widths.values()], seed.skip, load)
        counts = dict(zip(widths, found.counts, strict=True))
        macs, params = structure.macs(counts, seed.skip), structure.num_params(counts, seed.skip)
        planned.append(PlannedEpoch(epoch + 1, load, macs, params, counts))
    full = {group.name: group.size for group in structure.groups}
    frozen = tuple(structure.frozen)
    return Plan(budget, structure.macs(), structure.num_params(), widths, full, seed.skip, tuple(planned), frozen)


def method_of(model: nn.Module, terms: Terms, config: GrowthConfig | ScsConfig, epochs: int, length: int) -> Method:
    """The way of growing that a config stands for."""
    if isinstance(config, ScsConfig):
        return ScsController(terms, config, epochs, length)
    return Controller(model, terms, config, length)


def plan_on_paper(
    model: nn.Module, structure: Structure, budget: Budget, epochs: int, config: GrowthConfig | ScsConfig
) -> Plan:
    """The plan of a Grower that is never made, so that a model on the meta device has one, too.

    Args:
        model: the template; its weights are not read.
        structure: of it.
        budget: of MACs, parameters or both.
        epochs: of the whole training.
        config: with a number for the divisor.

    Raises:
        BudgetError: the budget cannot be met.
        ConfigError: the budget limits what must be measured, or the seed depends on weights.
    """
    if budget.of_kinds("macs", "params") != budget or getattr(config, "seed_style", "") == "pretrained":
        raise ConfigError(
            f"a plan without weights knows MACs and parameters only, got the budget {budget}"
            + (" and a seed of trained weights" if getattr(config, "seed_style", "") == "pretrained" else "")
            + "; write --budget '50% macs', or plan the model with its weights"
        )
    config, length = with_times(config, epochs, None)
    method = method_of(model, terms_of(model, structure, budget, config), config, epochs, length)
    return plan_of(method, method.seed(), epochs, str(budget))
