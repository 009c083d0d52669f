"""The optimizer of the scores: SGD with momentum, no weight decay, on gradients that training leaves behind."""

from __future__ import annotations

import torch
from torch import Tensor

from apical.gates import gradient_from_products, penalty_gradient
from apical.growth._components import Components
from apical.growth._observer import GateObserver


class ScoreOptimizer:
    """Moves the scores after every training step, on the device of the parameters, without synchronising it.

    Args:
        components: whose scores move; `write_back` brings them up to date.
        beta: temperature of each component until the next restructuring  # (entries,)
        learning_rate: step size of the scores; 0 leaves them where they are.
        momentum: of the scores.
        penalty_weight: λ of each component in the sparsity penalty λ Σ σ(β s)  # (entries,)
        device: where the updates run.
    """

    def __init__(self, components: Components, beta: Tensor, learning_rate: float, momentum: float,
                 penalty_weight: Tensor, device: torch.device) -> None:  # fmt: skip
        self._components = components
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._scores, self._velocity, self._beta, self._weight = (
            t.to(device, dtype, copy=True) for t in (components.scores, components.velocity, beta, penalty_weight)
        )
        self._penalised = bool(penalty_weight.any())
        self._lr, self._momentum = learning_rate, momentum
        self._pending = torch.zeros_like(self._scores)

    @torch.no_grad()
    def observe(self, observer: GateObserver) -> None:
        """Add the products of one optimizer's parameters to the gradient of this step."""
        products = observer.products()
        if products is not None:
            self._pending += products

    @torch.no_grad()
    def step(self) -> None:
        """s ← s − η v,  v ← μ v + ∂L/∂s + λ β m (1 − m)."""
        if self._lr:
            gradient = gradient_from_products(self._scores, self._beta, self._pending)
            if self._penalised:
                gradient += self._weight * penalty_gradient(self._scores, self._beta, 1.0)
            self._velocity.mul_(self._momentum).add_(gradient)
            self._scores.sub_(self._velocity, alpha=self._lr)
        self._pending.zero_()

    def write_back(self) -> None:
        """Copy scores and velocity to the components."""
        self._components.scores.copy_(self._scores)
        self._components.velocity.copy_(self._velocity)
