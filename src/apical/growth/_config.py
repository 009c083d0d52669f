"""The options of growth, with the defaults that trials favour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from apical.growth._options import HasDivisor, check_options, wrong_times


@dataclass(frozen=True)
class GrowthConfig(HasDivisor):
    """How a network grows. Fractions of time count from 0 (start) to 1 (end of training).

    Attributes:
        seed_style: where growth starts. ``"small"``: every width by one ratio, all blocks; ``"pretrained"``, for a
            model that was trained before: whole residual streams and narrow inner widths where the budget has room,
            the strongest units of every group; the others come back in the order of their strength, with the weights
            that they have.
        seed_fraction: cost of the seed as a fraction of the budget, both without what cannot be removed, such as the
            head of a language model (the smallest network if that costs more). Above 1, a multiple of the whole
            budget, from which the network is pruned: ``seed_fraction=2`` under a budget of 50 % starts from the full
            network. The largest network if that costs less.
        growth_end: when the scheduled cost reaches the budget, and restructuring ends, as a fraction of training.
            ``"auto"``: 0.25, or as much later as 16 restructurings need, at most 0.4.
        interval: epochs (or steps) from one restructuring to the next. ``"auto"``: an epoch; in steps, where growth
            takes fewer than 16 epochs, a sixteenth of it.
        interval_unit: with ``"steps"`` the loop calls `Grower.end_step` after each optimizer step. ``"auto"``: steps
            if the Grower is told ``steps_per_epoch``, else epochs.
        utility: what a unit is worth. ``"squared"``: the mean square of its gate product, which estimates what the
            loss would rise by without it; ``"random"``: the control, a draw that training has no part in.
        damping: how far a width follows its utility in one restructuring, as a power; 0.5 goes the whole way.
        max_change: no width changes by more than this factor in one restructuring, beyond what all change by.
        shrinkage: how far the measured worth of widths is drawn towards the template's proportions, as a power: 0
            leaves what was measured, 1 leaves the proportions.
        grow_depth: whether blocks may leave and come back.
        streams: ``"resize"``: channels under LayerNorm and RMSNorm (the embedding width of transformers) grow too,
            which is not exact (`apical.trace`); ``"keep"``: they stay whole.
        divisor: widths are multiples of this where a group is large enough; ``"auto"``: of what this device likes,
            by a short measurement when the Grower is made (`apical.timing.measure_divisor`).
        min_units: fewest units that a group keeps.
        ignore: module paths that keep their size (everything below them too).
        birth: ``"preserving"``: what reads a newborn starts at zero, so that the function does not change;
            ``"random"``: a newborn's outgoing weights are as initialised.
        seed: of the order in which equal units are born.
    """

    seed_style: Literal["small", "pretrained"] = "small"
    seed_fraction: float = 0.25
    growth_end: float | Literal["auto"] = "auto"
    interval: int | Literal["auto"] = "auto"
    interval_unit: Literal["auto", "epochs", "steps"] = "auto"
    utility: Literal["squared", "random"] = "squared"
    damping: float = 0.35
    max_change: float = 1.5
    shrinkage: float = 0.5
    grow_depth: bool = True
    streams: Literal["keep", "resize"] = "keep"
    divisor: int | Literal["auto"] = 1
    min_units: int = 1
    ignore: tuple[str, ...] = ()
    birth: Literal["preserving", "random"] = "preserving"
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, self._wrong_values)

    def _wrong_values(self) -> Iterator[str]:
        yield from wrong_times(self)
        if not self.seed_fraction > 0:
            yield f"seed_fraction must be above 0, got {self.seed_fraction!r}"
        if not 0 <= self.damping <= 1:
            yield f"damping must be in [0, 1], got {self.damping!r}"
        if not 0 <= self.shrinkage <= 1:
            yield f"shrinkage must be in [0, 1], got {self.shrinkage!r}"
        if not self.max_change >= 1:
            yield f"max_change must be at least 1, got {self.max_change!r}"
