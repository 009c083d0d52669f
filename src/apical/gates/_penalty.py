"""The sparsity penalties of channels and of blocks, and the weight that follows the budget ([SCS])."""

from __future__ import annotations

import torch
from torch import Tensor

from apical.gates._relaxation import relax


def penalty(scores: Tensor, beta: Tensor | float, weight: float) -> Tensor:
    """Sparsity penalty of one kind of components.

        R(s) = λ Σ_i σ(β_i s_i)

    The objective of [SCS] adds it twice to the task loss: with λ_c over channels and with λ_l over blocks.

    Args:
        scores: s, (units,).
        beta: β, a scalar or (units,), positive.
        weight: λ, of either sign; see `penalty_weight`.

    Returns:
        R, a scalar.

    Example:
        >>> penalty(torch.zeros(4), 1.0, weight=0.5)
        tensor(1.)
    """
    return weight * relax(scores, beta).sum()


def penalty_gradient(scores: Tensor, beta: Tensor | float, weight: float) -> Tensor:
    """Gradient of `penalty` in closed form.

        ∂R/∂s_i = λ β_i m_i (1 − m_i)

    Args:
        scores: s, (units,).
        beta: β, a scalar or (units,), positive.
        weight: λ, of either sign.

    Returns:
        The gradient, (units,).

    Example:
        >>> penalty_gradient(torch.tensor([0.0, 3.0]), 2.0, weight=1.0)
        tensor([0.5000, 0.0049])
    """
    return weight * beta * torch.sigmoid(beta * scores) * torch.sigmoid(-(beta * scores))  # σ(−x) = 1 − σ(x), exactly


def penalty_weight(base: float, current: float, target: float) -> float:
    """Penalty weight by the signed gap to the budget: the budget-aware growth of [SCS] (recalled form).

        λ = λ_base (current − target)

    A network above its budget is pressed to prune; one below it (λ < 0) is rewarded for growing. On its own this rule
    oscillates and can miss the budget; `shift_for_cost` is the default.

    Args:
        base: λ_base, positive.
        current: cost of the network now, as a fraction of the template's.
        target: scheduled cost, as a fraction of the template's.

    Returns:
        λ.

    Example:
        >>> penalty_weight(2.0, current=0.25, target=0.5)
        -0.5
    """
    return base * (current - target)
