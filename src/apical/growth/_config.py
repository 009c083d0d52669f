"""The options of growth, with the defaults that trials favour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from apical.errors import ConfigError


@dataclass(frozen=True)
class GrowthConfig:
    """How a network grows. Fractions of time count from 0 (start) to 1 (end of training).

    Attributes:
        seed_style: ``"thin"``: the blocks and the residual streams as they will be at the end, only inner widths grow
            (and blocks may leave); ``"small"``: everything small and as few blocks as possible, the paper's way;
            ``"pretrained"``: like thin, for a model that was trained before: the strongest units of every group form
            the seed, and the others come back in the order of their strength, with the weights that they have.
        seed_fraction: cost of the seed as a fraction of the budget (the smallest network if that costs more). Above 1,
            the start is larger than the end and is only pruned: ``seed_style="small", seed_fraction=2`` under a budget
            of 50 % starts from the full network. The largest network if that costs less.
        depth_share: how much of the reduction to the budget a thin seed makes by leaving out blocks, as a share of its
            logarithm; widths make the rest (compound scaling, Tan and Le 2019, has 0.49). 0: all blocks are there. The
            blocks of the stage that costs the most for a parameter leave first.
        widths: the proportions between groups to which equal scores lead. ``"uniform"``: one ratio for all;
            ``"balanced"``: groups whose units are dear stay narrower, so that several limits can all be used up.
        growth_end: when the scheduled cost reaches the budget.
        freeze_at: when restructuring ends; between ``growth_end`` and here units may still be exchanged. None: together
            with growth, at ``growth_end``.
        schedule: how the scheduled cost goes from the seed's to the budget: ``"linear"``, or ``"geometric"`` (by equal
            factors: a rise is slower first, a fall faster first).
        interval: epochs (or steps) from one restructuring to the next.
        interval_unit: with ``"steps"`` the loop calls `Grower.end_step` after each optimizer step.
        divisor: widths are multiples of this where a group is large enough; ``"auto"``: of what this device likes,
            by a short measurement when the Grower is made (`apical.budget.measure_divisor`).
        price: what makes a unit dear. ``"budget"``: only its share of the budget; ``"time"``: also how long a
            multiply-add takes in its group, by a table that is measured when the Grower is made: at equal cost, groups
            that are fast on this device then become wider, and slow ones narrower.
        min_units: fewest units that a group keeps.
        grow_depth: whether blocks may be left out and come back.
        ignore: module paths that keep their size (everything below them too).
        sampling: ``"budgeted"``: one shift of all scores makes the sample cost what is scheduled; ``"lambda"``: the
            paper's rule, a penalty weight that follows the gap to the budget; ``"independent"``: scores alone. All
            three end with one budgeted sample, so that the budget is met.
        noise: ``"stratified"``: drawn once, evenly spread within each group; ``"fixed"``: drawn once, independent;
            ``"fresh"``: drawn anew at every restructuring, the paper's way.
        scores: ``"learned"``, or ``"random"`` for growth in which only the noise decides.
        score_lr: learning rate of the scores.
        score_momentum: their momentum. Scores have no weight decay.
        temperature: ``"age"``: each unit's by its own age, the paper's; ``"global"``: by the epoch.
        beta_final: temperature at age 1 (of the whole training). Recalled from the parent method.
        lambda_channels: base of the channel penalty's weight, for ``sampling="lambda"``.
        lambda_blocks: base of the block penalty's weight.
        birth: ``"preserving"``: what reads a newborn starts at zero, so that the function does not change;
            ``"random"``: a newborn's outgoing weights are as initialised.
        seed: of the noise.
    """

    seed_style: Literal["thin", "small", "pretrained"] = "thin"
    seed_fraction: float = 0.25
    depth_share: float = 0.5
    widths: Literal["uniform", "balanced"] = "uniform"
    growth_end: float = 0.4
    freeze_at: float | None = None
    schedule: Literal["linear", "geometric"] = "linear"
    interval: int = 1
    interval_unit: Literal["epochs", "steps"] = "epochs"
    divisor: int | Literal["auto"] = 1
    price: Literal["budget", "time"] = "budget"
    min_units: int = 1
    grow_depth: bool = True
    ignore: tuple[str, ...] = ()
    sampling: Literal["budgeted", "lambda", "independent"] = "budgeted"
    noise: Literal["stratified", "fixed", "fresh"] = "stratified"
    scores: Literal["learned", "random"] = "learned"
    score_lr: float = 0.1
    score_momentum: float = 0.9
    temperature: Literal["age", "global"] = "age"
    beta_final: float = 100.0
    lambda_channels: float = 1e-3
    lambda_blocks: float = 1e-2
    birth: Literal["preserving", "random"] = "preserving"
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [p for f in fields(self) for p in _wrong_type(f.name, getattr(self, f.name))]
        if not problems:
            problems = list(self._wrong_values())
        if problems:
            raise ConfigError("growth options: " + "; ".join(problems))

    def _wrong_values(self) -> Iterator[str]:
        if not self.seed_fraction > 0:
            yield f"seed_fraction must be above 0, got {self.seed_fraction!r}"
        for name, value in (("growth_end", self.growth_end), ("freeze_at", self.freeze)):
            if not 0 < value <= 1:
                yield f"{name} must be in (0, 1], got {value!r}"
        if not 0 <= self.depth_share <= 1:
            yield f"depth_share must be in [0, 1], got {self.depth_share!r}"
        for name in ("interval", "divisor", "min_units"):
            if getattr(self, name) != "auto" and getattr(self, name) < 1:
                yield f"{name} must be a whole number of at least 1, got {getattr(self, name)!r}"
        if self.freeze < self.growth_end:
            yield f"freeze_at ({self.freeze_at}) lies before growth_end ({self.growth_end})"
        if self.own_proportions and self.noise == "fresh":
            which = "widths='balanced'" if self.widths == "balanced" else "price='time'"
            yield f"{which} puts its proportions into noise that is drawn once, got noise='fresh'"
        if self.seed_style == "pretrained" and self.noise != "stratified":
            yield f"seed_style='pretrained' puts its order in the place of stratified noise, got noise={self.noise!r}"
        if not self.beta_final >= 1:
            yield f"beta_final must be at least 1, got {self.beta_final!r}"
        if not 0 <= self.score_momentum < 1:
            yield f"score_momentum must be in [0, 1), got {self.score_momentum!r}"
        for name in ("score_lr", "lambda_channels", "lambda_blocks", "seed"):
            if not getattr(self, name) >= 0:
                yield f"{name} must not be negative, got {getattr(self, name)!r}"

    @property
    def own_proportions(self) -> bool:
        """Whether equal scores lead to other widths than those of one ratio."""
        return self.widths == "balanced" or self.price == "time"

    @property
    def freeze(self) -> float:
        """When restructuring ends, as a fraction of training."""
        return self.growth_end if self.freeze_at is None else self.freeze_at

    @property
    def step(self) -> int:
        """The divisor as a number.

        Raises:
            ConfigError: it is still to be measured.
        """
        if isinstance(self.divisor, int):
            return self.divisor
        raise ConfigError(
            f"divisor={self.divisor!r} has not been measured here; give a number, or the one that another run of this "
            "model measured on this device (`divisor` in its summary.json)"
        )

    @staticmethod
    def merged(config: GrowthConfig | None, options: Mapping[str, Any]) -> GrowthConfig:
        """A config (by default the default one) with single options changed.

        Raises:
            ConfigError: an option does not exist or cannot have this value.
        """
        if config is not None and not isinstance(config, GrowthConfig):
            raise ConfigError(f"config must be a GrowthConfig, got {type(config).__name__}")
        known = [f.name for f in fields(GrowthConfig)]
        for option in options:
            if option not in known:
                near = get_close_matches(option, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; options are {', '.join(known)}"
                raise ConfigError(f"Grower has no option {option!r}{hint}")
        return replace(config or GrowthConfig(), **options)

    @staticmethod
    def scs(**changes: Any) -> GrowthConfig:
        """The paper's version: small seed, fresh Bernoulli samples, the penalty rule, random births.

        Source: [SCS] Yuan, Savarese, Maire, ICLR 2021; what its text does not give is recalled from the parent method.

        Example:
            >>> GrowthConfig.scs(seed=3).sampling
            'lambda'
        """
        paper: dict[str, Any] = {
            "seed_style": "small",
            "sampling": "lambda",
            "noise": "fresh",
            "birth": "random",
            "growth_end": 0.9,
        }
        return GrowthConfig(**(paper | changes))

    @staticmethod
    def random(**changes: Any) -> GrowthConfig:
        """The paper's control: growth at random, every indicator drawn anew with one probability for all components.

        The probability is the one whose sample costs what is scheduled, so that the final network meets the budget;
        scores are not learned. Otherwise as `scs`.

        Example:
            >>> GrowthConfig.random().scores
            'random'
        """
        return GrowthConfig.scs(**({"sampling": "budgeted", "scores": "random"} | changes))


def _wrong_type(name: str, value: Any) -> Iterator[str]:
    hint = get_type_hints(GrowthConfig)[name]
    if value is None and type(None) in get_args(hint):
        return
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            yield f"{name} must be one of {', '.join(map(repr, get_args(hint)))}, got {value!r}"
    elif name == "ignore":
        if not isinstance(value, (tuple, list)) or any(not isinstance(v, str) for v in value):
            yield f"ignore must be a tuple of module paths, got {value!r}"
    elif hint is bool:
        if not isinstance(value, bool):
            yield f"{name} must be True or False, got {value!r}"
    elif name == "divisor":
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool)):
            yield f"divisor must be a whole number or 'auto', got {value!r}"
    elif hint is int:
        if not isinstance(value, int) or isinstance(value, bool):
            yield f"{name} must be a whole number, got {value!r}"
    elif not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
        yield f"{name} must be a finite number, got {value!r}"
