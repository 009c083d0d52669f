"""Which network comes next: the method of growth, apart from the model that it changes.

Each unit and block i has a score s_i, which training moves down the loss (`ScoreOptimizer`), and an age t_i. At every
restructuring, in the notation of `apical.gates`:

    load   what the network may cost now, from the seed's share of the budget up to 1      `scheduled_load`
    λ      weight of the penalty on scores, for sampling="lambda" only                     `penalty_weight`
    β_i    temperature, higher the longer i has lived                                      `age_temperature`
    q_i    present if u_i < σ(β_i s_i + μ), with the one μ at which the network costs load `Sampler`

The noise u_i holds what is decided before training: proportions between widths, and the order of units of a trained
network (`Pinned.goal`, `strongest_first_`). What does not take part is pinned to present or absent.

Source: [SCS] Yuan, Savarese, Maire, ICLR 2021; the shift μ, which meets the budget at every restructuring, is our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from apical.budget import BoundBudget, Budget, LatencyTable
from apical.errors import BudgetError
from apical.gates import age_temperature, draw_noise, penalty_weight, relax
from apical.growth._components import Components
from apical.growth._config import GrowthConfig
from apical.growth._pinned import Pinned
from apical.growth._sampling import TOLERANCE, Choice, Sampler
from apical.growth._schedule import is_last, scheduled_load
from apical.growth._strength import order_of, strongest_first_
from apical.resizing import Selection
from apical.structure import Structure


class Controller:
    """Chooses the seed, and then the next network at every restructuring.

    Args:
        model: the template; read for the paths of ``config.ignore`` and, by ``seed_style="pretrained"``, its weights.
        structure: of it.
        budget: what the final network may cost.
        config: the options, with a number for the divisor.
        epochs: of the whole training, by which ages count.
        length: of the whole training, in the unit of ``config.interval``.
        latency: what layers take on this device, where budget or price need it.

    Attributes:
        bound: the budget, which prices networks.
        components: scores, ages and noise.
        beta: β of each component until the next restructuring  # (entries,)
        penalty: λ of each component until then  # (entries,)
        target_load: scheduled cost of the present network as a fraction of the budget.
        frozen: whether the present network is the last.

    Raises:
        BudgetError: the budget cannot be met.
        ConfigError: ``config.ignore`` names no module.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        budget: Budget,
        config: GrowthConfig,
        epochs: int,
        length: int,
        latency: LatencyTable | None = None,
    ) -> None:
        self.structure, self.config = structure, config
        self._epochs, self._length = epochs, length
        self._pinned = Pinned(model, structure, config)
        self._bind(budget, latency)
        self._pinned.set_goal(self.bound, latency)
        self._generator = torch.Generator().manual_seed(config.seed)
        self.components = Components(structure, config.noise == "stratified", self._generator)
        if config.seed_style == "pretrained":
            strongest_first_(self.components, model)
            self._pinned.order = order_of(self.components, structure)
        if config.own_proportions:
            self.components.favour_([self._pinned.goal[g.name] / g.size for g in structure.groups])
        self.beta = torch.ones_like(self.components.scores)
        self.penalty = torch.zeros_like(self.components.scores)
        self.target_load = self._seed_load = 1.0
        self.frozen = config.interval >= length  # there is no time to restructure

    def seed(self) -> Choice:
        """The network that training starts with."""
        smallest = self._smallest_load()
        wanted = 1.0 if self.frozen else max(self.config.seed_fraction, smallest)
        first = self._budgeted(self.components.noise, wanted)
        self._seed_load = min(wanted, max(1.0, first.load))  # the largest network may cost less than wanted
        self.target_load = self._seed_load
        return first

    def due(self, done: int) -> bool:
        """Whether it is time to restructure, after this many epochs or steps."""
        return not (done % self.config.interval or done >= self._length or self.frozen)

    def next(self, done: int, epoch: int, present: Selection) -> Choice:
        """The network to go on with.

        Args:
            done: epochs or steps that are over, in the unit of ``config.interval``.
            epoch: epochs that are over.
            present: the network so far.
        """
        c, config = self.components, self.config
        self.frozen = is_last(config, done, self._length, config.interval)
        self.target_load = 1.0 if self.frozen else scheduled_load(config, done / self._length, self._seed_load)
        if config.sampling == "lambda":
            gap = self.bound.load(present.keep, present.skip), 1.0
            self.penalty[: c.num_units] = penalty_weight(config.lambda_channels, *gap)
            self.penalty[c.num_units :] = penalty_weight(config.lambda_blocks, *gap)
        age = c.age if config.temperature == "age" else torch.full_like(c.age, float(epoch))
        self.beta = age_temperature(age.clamp(max=self._epochs), self._epochs, config.beta_final)
        noise = draw_noise(c.scores.numel(), self._generator) if config.noise == "fresh" else c.noise
        if config.sampling == "budgeted" or self.frozen:
            return self._budgeted(noise, self.target_load, exact=self.frozen)
        return self._sampler.independent(self._pin(c.scores), self.beta, noise)

    def mark(self) -> tuple[Any, ...]:
        """What `next` changes, for `rewind`."""
        return self.beta, self.penalty.clone(), self.target_load, self.frozen, self._generator.get_state()

    def rewind(self, mark: tuple[Any, ...]) -> None:
        """Take back what `next` chose, where the model could not be given that network."""
        self.beta, self.penalty, self.target_load, self.frozen, generator = mark
        self._generator.set_state(generator)

    def _bind(self, budget: Budget, latency: LatencyTable | None) -> None:
        self.latency, limits = latency, self._pinned.limits
        self.bound = BoundBudget(
            budget,
            self.structure,
            minimum=limits.least_of(self.structure),
            latency=latency,
            fixed_blocks=self._pinned.blocks,
        )
        self._sampler = Sampler(self.bound, limits)

    def _budgeted(self, noise: Tensor, load: float, exact: bool = False) -> Choice:
        return self._sampler.budgeted(self._pin(self.components.scores), self.beta, noise, load, exact)

    def _pin(self, scores: Tensor) -> Tensor:
        gates = relax(self.components.scores, self.beta)
        return self._pinned.pin(scores, gates, self.components.live, self.bound)

    def _smallest_load(self) -> float:
        """The least that the seed can cost, as a fraction of the budget."""
        lowest = torch.full_like(self.components.scores, -1e6)
        load = self._sampler.budgeted(self._pin(lowest), self.beta, self.components.noise, 0.0).load
        if load > 1 + TOLERANCE:
            blocks = len(self.structure.blocks)
            raise BudgetError(
                f"the smallest {self.config.seed_style} network costs {load:.3g} times the budget {self.bound.budget}: "
                f"it keeps {blocks - len(self._pinned.absent)} of {blocks} blocks and its residual streams. Pass a "
                "larger depth_share (up to 1), which leaves out more blocks, or seed_style='small', "
                f"with which blocks and streams can shrink too ({'; '.join(map(str, self.bound.reach))})."
            )
        return load

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers only."""
        return {
            "components": self.components.state_dict(),
            "generator": self._generator.get_state(),
            "penalty": self.penalty.clone(),
            "beta": self.beta.clone(),
            "frozen": self.frozen,
            "target_load": self.target_load,
            "seed_load": self._seed_load,
            "pinned": dict(self._pinned.widths),
            "absent": list(self._pinned.absent),
            "latency": None if self.latency is None else self.latency.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], config: GrowthConfig) -> None:
        """Go on as the Controller that was saved.

        Args:
            state: of it.
            config: its options: where the divisor was measured, the saved one counts.
        """
        self.config = config
        self._pinned.limits = self._pinned.limits_for(config.step)
        table = state["latency"]
        self._bind(self.bound.budget, None if table is None else LatencyTable.from_dict(self.structure, table))
        self.components.load_state_dict(state["components"])
        # on the CPU, though torch.load may have mapped the state to the model's device
        self._generator.set_state(state["generator"].cpu())
        self.penalty, self.beta = state["penalty"].to("cpu", copy=True), state["beta"].to("cpu", copy=True)
        self.frozen = state["frozen"]
        self.target_load, self._seed_load = state["target_load"], state["seed_load"]
        self._pinned.widths, self._pinned.absent = dict(state["pinned"]), tuple(state["absent"])
        if self.config.seed_style == "pretrained":
            self._pinned.order = order_of(self.components, self.structure)
