"""The optimizer of the scores: SGD with momentum, no weight decay, on gradients that training leaves behind."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from apical.gates import gradient_from_products, penalty_gradient
from apical.growth._components import Components
from apical.growth._observer import GateObserver


class ScoreOptimizer:
    """Moves the scores after every training step, on the device of the parameters, without synchronising it.

    With several optimizers, a training step is a round in which each steps at most once; the scores move once a round.

    Args:
        components: whose scores move; `write_back` brings them up to date.
        beta: temperature of each component until the next restructuring  # (entries,)
        learning_rate: step size of the scores; 0 leaves them where they are.
        momentum: of the scores.
        penalty_weight: λ of each component in the sparsity penalty λ Σ σ(β s)  # (entries,)
        device: where the updates run.
        observers: one for each of the user's optimizers.
    """

    def __init__(self, components: Components, beta: Tensor, learning_rate: float, momentum: float,
                 penalty_weight: Tensor, device: torch.device, observers: Sequence[GateObserver]) -> None:  # fmt: skip
        self._components, self._observers = components, observers
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._scores, self._velocity, self._beta, self._weight = (
            t.to(device, dtype, copy=True) for t in (components.scores, components.velocity, beta, penalty_weight)
        )
        self._penalised = bool(penalty_weight.any())
        self._lr, self._momentum = learning_rate, momentum
        self._pending = torch.zeros_like(self._scores)
        self._round: set[int] = set()  # optimizers that stepped since the scores last moved
        self._skipped: Tensor | None = None  # 1 if all of them found gradients that are not finite

    @torch.no_grad()
    def observe(self, index: int, optimizer: Optimizer) -> None:
        """Read the gradients of one optimizer's parameters, just before it steps; the last of a round moves the scores.

        A fused optimizer under a GradScaler unscales and skips inside its step: it is told by ``grad_scale`` and
        ``found_inf``, which are followed here.
        """
        if index in self._round:  # others did not step in the last round: a scaler skipped them, or they never do
            self.step()
        products = self._observers[index].products()
        found = _scalar(getattr(optimizer, "found_inf", None), self._scores)
        scale = _scalar(getattr(optimizer, "grad_scale", None), self._scores)
        if products is not None:
            products = products if scale is None else products / scale
            self._pending += products if found is None else torch.where(found > 0, 0.0, products)
        if found is None:
            self._skipped = None
        elif not self._round or self._skipped is not None:
            self._skipped = found > 0 if self._skipped is None else self._skipped & (found > 0)
        self._round.add(index)
        if len(self._round) == len(self._observers):
            self.step()

    @torch.no_grad()
    def step(self) -> None:
        """s ← s − η v,  v ← μ v + ∂L/∂s + λ β m (1 − m)."""
        if self._lr:
            gradient = gradient_from_products(self._scores, self._beta, self._pending)
            if self._penalised:
                gradient += self._weight * penalty_gradient(self._scores, self._beta, 1.0)
            velocity = self._momentum * self._velocity + gradient
            if self._skipped is None:
                self._velocity = velocity
                self._scores.sub_(velocity, alpha=self._lr)
            else:
                self._velocity = torch.where(self._skipped, self._velocity, velocity)
                self._scores.sub_(torch.where(self._skipped, 0.0, velocity), alpha=self._lr)
        self._pending.zero_()
        self._round.clear()
        self._skipped = None

    def write_back(self) -> None:
        """End a round that some optimizers did not join, and copy scores and velocity to the components."""
        if self._round:
            self.step()
        self._components.scores.copy_(self._scores)
        self._components.velocity.copy_(self._velocity)


def _scalar(value: object, like: Tensor) -> Tensor | None:
    return value.to(like).reshape(()) if isinstance(value, Tensor) else None
