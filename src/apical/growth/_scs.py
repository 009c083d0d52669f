"""The paper's version of growth, for comparison: indicators drawn anew from scores, steered by a penalty.

    temperature   β_i = β_0^(t_i / T)                        t_i: epochs that i has lived
    penalty       λ Σ σ(β_i s_i),  λ = λ_base (u − u_target)  u: cost as a fraction of the full network's
    indicator     q_i ~ Bernoulli(σ(β_i s_i))                drawn anew at every restructuring
    score         s ← s − lr · momentum of ∂L/∂s,  ∂L/∂s_i = β_i (1 − m_i) ⟨θ_i, ∂L/∂θ_i⟩

Source: [SCS] Yuan, Savarese, Maire, *Growing Efficient Deep Networks by Structured Continuous Sparsification*, ICLR
2021. Its text does not give initial scores, β_0, λ_base and the scores' learning rate; those here were found on
held-out data. Ours are: the penalty acts once a restructuring, with its whole interval's weight, so that λ_base does
not depend on the number of steps; the first score is the one whose sample has the seed's share; and the last
restructuring, at ``growth_end``, keeps the trained units and meets the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any, Literal

import torch
from torch import Tensor

from apical.growth._components import Components, widest_float
from apical.growth._method import Choice, Measurement, Method, Terms
from apical.growth._observer import GateObserver
from apical.growth._options import HasDivisor, check_options, wrong_times
from apical.growth._scores import (
    age_temperature,
    critical_shift,
    draw_noise,
    penalty_gradient,
    penalty_weight,
    score_gradient,
)
from apical.growth._widths import fit_thresholds
from apical.resizing._selection import Selection, first_units


@dataclass(frozen=True)
class ScsConfig(HasDivisor):
    """Options of the paper's version. Fractions of time count from 0 (start) to 1 (end of training).

    Attributes:
        seed_fraction: share of all components in the first sample.
        growth_end: when the last restructuring is, which meets the budget.
        sampling: ``"lambda"``: the paper's rule; ``"budgeted"``: one shift of all scores makes each sample cost what a
            linear schedule says.
        scores: ``"learned"``, or ``"random"`` for growth in which only chance decides (the paper's control).
        score_lr: learning rate of the scores.
        score_momentum: their momentum. Scores have no weight decay.
        beta_final: β_0, the temperature at age 1 (of the whole training).
        lambda_base: weight of the penalty.
        birth: ``"preserving"``: what reads a newborn starts at zero, so that the function does not change;
            ``"random"``: its outgoing weights are as initialised.
        interval: epochs (or steps) from one restructuring to the next.
        interval_unit: with ``"steps"`` the loop calls `Grower.end_step` after each optimizer step.
        grow_depth: whether blocks are sampled.
        divisor: widths are multiples of this where a group is large enough.
        min_units: fewest units that a group keeps.
        ignore: module paths that keep their size (everything below them too).
        seed: of the samples.

    Example:
        >>> ScsConfig(seed=3).sampling
        'lambda'
    """

    seed_fraction: float = 0.7
    growth_end: float = 0.4
    sampling: Literal["lambda", "budgeted"] = "lambda"
    scores: Literal["learned", "random"] = "learned"
    score_lr: float = 0.1
    score_momentum: float = 0.9
    beta_final: float = 1000.0
    lambda_base: float = 30.0
    birth: Literal["preserving", "random"] = "preserving"
    interval: int = 1
    interval_unit: Literal["epochs", "steps"] = "epochs"
    grow_depth: bool = True
    divisor: int | Literal["auto"] = 1
    min_units: int = 1
    ignore: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, self._wrong_values)

    def _wrong_values(self) -> Iterator[str]:
        yield from wrong_times(self)
        if not 0 < self.seed_fraction < 1:
            yield f"seed_fraction must be in (0, 1), got {self.seed_fraction!r}"
        if not self.beta_final >= 1:
            yield f"beta_final must be at least 1, got {self.beta_final!r}"
        if not 0 <= self.score_momentum < 1:
            yield f"score_momentum must be in [0, 1), got {self.score_momentum!r}"
        for name in ("score_lr", "lambda_base"):
            if not getattr(self, name) >= 0:
                yield f"{name} must not be negative, got {getattr(self, name)!r}"

    @staticmethod
    def random(**changes: Any) -> ScsConfig:
        """The paper's control: growth at random, every indicator drawn anew with one probability for all components.

        The probability is the one whose sample costs what is scheduled, so that the final network meets the budget.
        """
        return ScsConfig(**({"sampling": "budgeted", "scores": "random"} | changes))


class ScsController(Method):
    """Growth as in the paper; the arguments and attributes of `apical.growth._method.Method`."""

    SAVED = (*Method.SAVED, "beta")
    reads_shifts = True

    def __init__(self, terms: Terms, config: ScsConfig, epochs: int, length: int) -> None:
        super().__init__(terms, config, length)
        self._epochs = epochs
        if config.scores == "learned":  # σ(s) is the seed's share while β = 1
            self.components.values.fill_(log(config.seed_fraction / (1 - config.seed_fraction)))
        self.beta = torch.ones_like(self.components.values)

    def seed(self) -> Choice:
        critical = self._critical()
        if self.frozen or self.config.sampling == "budgeted":
            first = self._budgeted(critical, 1.0 if self.frozen else self.config.seed_fraction, exact=self.frozen)
        else:
            first = self._sample(critical)
        self.target_load = self.seed_load = min(1.0, first.load)
        return first

    def next(self, done: int, present: Selection) -> Choice:
        self._advance(done)
        c = self.components
        # [SCS], improved temperature: by each component's own age, so that newborns are soft among the decided
        self.beta = age_temperature(c.age.clamp(max=self._epochs), self._epochs, self.config.beta_final)
        if self.config.scores == "learned":  # [SCS], budget-aware growth: λ has the sign of the gap to the budget
            self._press(self.terms.bound.load(present.keep, present.skip))
        if self.frozen and self.config.scores == "learned":
            # what has been trained stays; scores decide what of it leaves, or what comes, to meet the budget
            trained = torch.where(c.live, c.values.abs().max() + 1.0, 0.0)
            return self._budgeted(-self.beta * c.values - trained, 1.0, exact=True)
        critical = self._critical()
        if self.frozen or self.config.sampling == "budgeted":
            return self._budgeted(critical, self.target_load, exact=self.frozen)
        return self._sample(critical)

    def _critical(self) -> Tensor:
        """c_i = logit(u_i) − β_i s_i, with u drawn anew: a component exists if c_i < 0  # (entries,)"""
        noise = draw_noise(len(self.components.values), self.generator)
        return critical_shift(self.components.values, self.beta, noise)

    def _press(self, load: float) -> None:
        """One step of the penalty on all scores, down or up: s ← s − λ β m (1 − m) · (interval / length)."""
        # both as fractions of the template's cost, whose load says how many budgets it costs
        gap = load / self.terms.bound.load({}), 1.0 / self.terms.bound.load({})
        weight = penalty_weight(self.config.lambda_base, *gap) * self.config.interval / self.schedule.length
        self.components.values -= penalty_gradient(self.components.values, self.beta, weight)

    def _sample(self, critical: Tensor) -> Choice:
        """Each component by its own score, whatever that costs; widths are rounded down to multiples."""
        skip, counts = self._absent(critical), []
        for i, part in enumerate(self._parts(critical)):
            limits, n = self.terms.limits, int((part < 0).sum())
            rounded = n if n == limits.most[i] else n - n % limits.step[i]
            counts.append(min(limits.most[i], max(limits.least[i], rounded)))
        return self._choice(counts, skip, critical)

    def _budgeted(self, critical: Tensor, load: float, exact: bool = False) -> Choice:
        """The sample that one shift of all units makes cost ``load`` of the budget, with blocks by their own scores."""
        bound, limits, structure = self.terms.bound, self.terms.limits, self.terms.structure
        skip = list(self._absent(critical))
        most = dict(zip((g.name for g in structure.groups), limits.most, strict=True))
        nearest = sorted(range(len(structure.blocks)), key=lambda i: float(critical[self.components.num_units + i]))
        for name in [structure.blocks[i].name for i in nearest]:  # more of them where widths alone stay below
            if name in skip and bound.load(most, skip) < load:
                skip.remove(name)
        for name in [structure.blocks[i].name for i in reversed(nearest)]:  # fewer where the narrowest cost too much
            if name not in skip and name not in self.terms.stay and bound.load(limits.least_of(structure), skip) > load:
                skip.append(name)
        thresholds = [self._thresholds(i, part) for i, part in enumerate(self._parts(critical))]
        found = fit_thresholds(bound, limits, thresholds, skip, load, exact)
        return self._choice(found.counts, tuple(skip), critical)

    def _thresholds(self, group: int, critical: Tensor) -> list[float]:
        """Of the units of a group by rank: those of one rounding step exist together, when the last of them would."""
        least, step = self.terms.limits.least[group], self.terms.limits.step[group]
        rising = torch.sort(critical).values.tolist()
        ends = [least + ((k - least) // step + 1) * step - 1 for k in range(least, len(rising))]
        return [-inf] * least + [rising[min(len(rising) - 1, end)] for end in ends]

    def _parts(self, critical: Tensor) -> Sequence[Tensor]:
        """By group."""
        return list(torch.split(critical[: self.components.num_units], self.components.sizes))

    def _absent(self, critical: Tensor) -> tuple[str, ...]:
        here = (critical[self.components.blocks] < 0).tolist()
        blocks = zip(self.terms.structure.blocks, here, strict=True)
        return tuple(b.name for b, present in blocks if not present and b.name not in self.terms.stay)

    def _choice(self, counts: Sequence[int], skip: tuple[str, ...], critical: Tensor) -> Choice:
        groups = zip(self.terms.structure.groups, counts, self._parts(critical), strict=True)
        ranked = [(g.name, n, torch.argsort(part, stable=True).tolist()) for g, n, part in groups]
        keep = first_units({g: r for g, _, r in ranked}, {g: n for g, n, _ in ranked})
        return Choice(keep, skip, self.terms.bound.load(keep, skip))

    def end_epoch(self) -> None:
        """Ages count in epochs with q = 1."""
        self.components.age += self.components.live

    def applied(self, born: Tensor) -> None:
        """Nothing: what comes back goes on at the age that it had."""

    def watch(self, observers: Sequence[GateObserver], device: torch.device) -> ScoreOptimizer:
        """Move the scores of the present network from now on."""
        lr = self.config.score_lr if self.config.scores == "learned" else 0.0
        return ScoreOptimizer(self.components, self.beta, lr, self.config.score_momentum, device, observers)


class ScoreOptimizer(Measurement):
    """SGD with momentum on the scores, after every training step, on the device, without synchronising it.

    A round whose gradients are not finite moves nothing.

    Args:
        components: whose scores (values) and momentum (buffer) `write_back` brings up to date.
        beta: temperature of each component until the next restructuring  # (entries,)
        learning_rate: step size of the scores; 0 leaves them where they are.
        momentum: of the scores.
        device: where the updates run.
        observers: one for each of the user's optimizers.
    """

    def __init__(self, components: Components, beta: Tensor, learning_rate: float, momentum: float,
                 device: torch.device, observers: Sequence[GateObserver]) -> None:  # fmt: skip
        super().__init__(components, observers)
        dtype = widest_float(device)
        self._scores = components.values.to(device, dtype, copy=True)
        self._velocity = components.buffer.to(device, dtype, copy=True)
        self._beta = beta.to(device, dtype, copy=True)
        self._lr, self._momentum = learning_rate, momentum

    def _take(self, products: Tensor) -> None:
        """v ← μ v + ∂L/∂s,  s ← s − η v"""
        if not self._lr:
            return
        gradient = score_gradient(self._scores, self._beta, products.to(self._scores.dtype))
        finite = torch.isfinite(gradient).all()
        velocity = torch.where(finite, self._momentum * self._velocity + gradient, self._velocity)
        self._scores.sub_(torch.where(finite, velocity, 0.0), alpha=self._lr)
        self._velocity = velocity

    def _copy_back(self) -> None:
        self._components.values.copy_(self._scores)
        self._components.buffer.copy_(self._velocity)
