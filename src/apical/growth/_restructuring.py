"""From one network to the next: the method chooses it, the model becomes it, and its gradients are read from then."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.optim import Optimizer

from apical.budget import LatencyTable
from apical.growth._checks import WeightsToLoad, refuse_lost_weights, refuse_without_values
from apical.growth._config import GrowthConfig
from apical.growth._growing_model import GrowingModel
from apical.growth._method import Choice, Method
from apical.growth._observer import StepWatch
from apical.growth._record import Changes
from apical.growth._scs import ScsConfig
from apical.resizing._optimizer import check_state


class Restructuring:
    """A model, and the method that chooses its networks.

    Attributes:
        growing: the model with all that follows it.
        method: chooses.
        steps: what calls this object in every optimizer step, and counts them; from `listen` on.
    """

    steps: StepWatch

    def __init__(self, growing: GrowingModel, method: Method) -> None:
        self.growing = growing
        self.method = method
        self._to_load: WeightsToLoad | None = None  # until the first step after a state was loaded
        # optimizers of which no step was seen
        self._unchecked: set[int] = set() if method.frozen else set(range(len(growing.optimizers)))

    # ---- to the next network ---------------------------------------------------------------------------------------

    def next(self, done: int) -> Changes:
        """Go on with the network that is chosen after this many epochs (or steps).

        Raises:
            TrainingError: weights are no longer finite, or on the meta device.
            ResizeError: the model cannot be resized as it is now.
        """
        start = time.perf_counter()
        refuse_without_values(self.growing.model)
        refuse_lost_weights(self.growing.model)
        self.write_back()
        before = self.growing.selection
        changes = self.become(self.method.next(done, before))
        worth, left = self.worth(), sorted(self.growing.selection.skip - before.skip)
        changes["blocks_left"] = {name: worth.get(name) for name in left}
        changes["restructure_seconds"] = time.perf_counter() - start
        return changes

    def become(self, choice: Choice) -> Changes:
        """Become the chosen network, and watch its gate sites."""
        c = self.method.components
        before, had_lived = c.live.clone(), c.lived.clone()
        self.growing.follow(choice, c, preserving=self.method.config.birth == "preserving")
        c.set_live(choice.keep, choice.skip)
        born = c.live & ~before
        self.method.applied(born)
        self.watch()
        return Changes(
            born=int((born & ~had_lived).sum()),
            returned=int((born & had_lived).sum()),
            died=int((before & ~c.live).sum()),
            blocks_left={},
            restructure_seconds=0.0,
        )

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Leaves the method as it was if the model cannot be resized, which is all or nothing."""
        before = self.method.state_dict()
        try:
            with torch.inference_mode(False):  # what is made here is trained on
                yield
        except BaseException:
            self.method.load_state_dict(before)
            raise

    def worth(self) -> dict[str, float]:
        """What groups and blocks were worth for their cost at the last restructuring."""
        return {name: round(value, 3) for name, value in self.method.relative.items()}

    # ---- what it goes by: the gradients of every step ---------------------------------------------------------------

    def listen(self) -> None:
        """Read the gradients in every step of the optimizers from now on, until ``steps`` is removed."""
        finished = self.growing.store is None
        self.steps = StepWatch(() if finished else self.growing.optimizers, self._observe, self._stepped)

    def write_back(self) -> None:
        """Bring what was read so far to the method's components."""
        self._measured.write_back()

    def watch(self) -> None:
        """Observe the gate sites of the present network."""
        observers = self.growing.observers(self.method.components, self.method.reads_shifts)
        self._measured = self.method.watch(observers, next(self.growing.model.parameters()).device)

    def _observe(self, index: int, optimizer: Optimizer) -> None:
        if self._to_load is not None:
            self._to_load.warn()
            self._to_load = None
        self._measured.observe(index, optimizer)

    def _stepped(self, index: int, optimizer: Optimizer) -> None:
        """Check, after the first step and not after a whole epoch, that the optimizer's state can be resized."""
        if index in self._unchecked and optimizer.state:
            check_state(optimizer, {id(p): name for name, p in self.growing.model.named_parameters()})
            self._unchecked.discard(index)

    # ---- state -----------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        if self.growing.store is not None:
            self.write_back()
        return {**vars(self), "_measured": None, "_to_load": None, "steps": self.steps.count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.listen()
        self.steps.count = state["steps"]
        if self.growing.store is not None:
            self.watch()

    def state_dict(self) -> dict[str, Any]:
        """The present network, what is dormant, and what the method knows."""
        present, store = self.growing.selection, self.growing.settle()
        self.write_back()
        latency = self.method.terms.latency
        return {
            "keep": {name: list(kept) for name, kept in present.keep.items()},
            "skip": sorted(present.skip),
            "store": store.state_dict(),
            **self.method.state_dict(),
            "latency": None if latency is None else latency.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], config: GrowthConfig | ScsConfig) -> None:
        """Become the network of a state, and know what it knows."""
        store, method, before = self.growing.settle(), self.method, self.growing.selection
        self.growing.resize(state["keep"], state["skip"])
        store.load_state_dict(state["store"])
        table = state["latency"]
        latency = None if table is None else LatencyTable.from_dict(method.terms.structure, table)
        method.config = config
        method.terms = replace(method.terms, divisor=config.step, latency=latency)
        method.load_state_dict(state)
        self.watch()
        if self.growing.selection != before and not self.growing.sharded:
            self._to_load = WeightsToLoad(self.growing.model)
