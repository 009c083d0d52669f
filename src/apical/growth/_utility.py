"""What a unit or block is worth: how much the loss would rise without it, estimated from gradients that are there.

With a gate m_i = 1 on component i, the gradient of the loss by the gate is the gate product

    p_i = ∂L/∂m_i = ⟨θ_i, ∂L/∂θ_i⟩

where θ_i is what the gate multiplies (`GateObserver`). Summed over a group, p is zero where the readers normalise, and
near a minimum its mean is zero everywhere; its mean square is not. To second order, and with the Fisher information in
the place of the Hessian, closing the gate raises the loss by

    ΔL_i ≈ ½ ∂²L/∂m_i² ≈ ½ B E[p_i²]

for batches of B examples. The factor B / 2 is the same everywhere and left out, so that units, groups and blocks of all
layers compare.

Source: Theis, Korshunova, Tejani, Huszár, Faster gaze prediction with dense networks and Fisher pruning, 2018
(arXiv:1801.05787); Molchanov et al., Importance estimation for neural network pruning, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apical.growth._components import Components, widest_float
from apical.growth._method import Measurement
from apical.growth._observer import GateObserver


class UtilityMeter(Measurement):
    """Adds up the squares of the gate products of every training step, on the device, without synchronising it.

    A step whose gradients are not finite does not count.
    """

    def __init__(self, components: Components, device: torch.device, observers: Sequence[GateObserver]) -> None:
        super().__init__(components, observers)
        dtype = widest_float(device)
        self._squares = components.buffer.to(device, dtype, copy=True)
        self._steps = components.steps.to(device, dtype, copy=True)

    def _take(self, products: Tensor) -> None:
        # what a GradScaler will skip is not finite: it counts neither in the sum nor in the number, without a question
        # to the device
        squares = products.to(self._squares.dtype).square()
        counts = torch.isfinite(squares).all()
        self._squares += torch.where(counts, squares, 0.0)
        self._steps += counts

    def _copy_back(self) -> None:
        self._components.buffer.copy_(self._squares)
        self._components.steps.copy_(self._steps)


KEPT = 0.5  # how much of the earlier estimate stays when an interval has been measured


def update_utilities_(components: Components) -> None:
    """Take what was measured since the last restructuring into the smoothed utilities, and start to measure anew.

        U_i ← ½ U_i + ½ mean over steps of p_i²      (the first time: the mean alone)

    What is absent keeps what was last known of it.
    """
    if components.steps == 0:
        return
    mean = components.buffer / components.steps
    # a component that has just been measured for the first time has nothing to be smoothed with
    smoothed = torch.where(components.age > 0, KEPT * components.values + (1 - KEPT) * mean, mean)
    components.values.copy_(torch.where(components.live, smoothed, components.values))
    components.age += components.live
    components.buffer.zero_()
    components.steps.zero_()
