"""The mathematics of the paper's version of growth: pure functions on scores, one for each unit and block.

Source: Yuan, Savarese, Maire, *Growing Efficient Deep Networks by Structured Continuous Sparsification*, ICLR 2021,
arXiv 2007.15353, cited as [SCS]. Component i has a score s_i and a temperature β_i; its mask is m_i = σ(β_i s_i).
"""

from __future__ import annotations

import torch
from torch import Tensor

from apical.errors import TrainingError

_SMALLEST = 2.0**-53


def age_temperature(age: Tensor, total: float, beta_0: float) -> Tensor:
    """Temperature of every component by its own age: the "improved temperature scheduler" of [SCS] (recalled form).

        β_i = β_0^(t_i / T)

    A newborn (t_i = 0) has β_i = 1, is soft, and gets its chance; one that lived through the whole training
    (t_i = T) has β_i = β_0 and is all but decided.

    Args:
        age: t, epochs with q_i = 1, in [0, total]  # (units,)
        total: T, epochs of the whole training; positive.
        beta_0: β_0, the final temperature; at least 1.

    Returns:
        β, in [1, β_0]  # (units,)

    Example:
        >>> age_temperature(torch.tensor([0, 5, 10]), total=10, beta_0=100.0)
        tensor([  1.,  10., 100.])
    """
    exponent = age / total
    return torch.pow(torch.full_like(exponent, beta_0), exponent)


def draw_noise(units: int, generator: torch.Generator) -> Tensor:
    """u, uniform in the open interval (0, 1)  # (units,) float64"""
    noise = torch.rand(units, generator=generator, dtype=torch.float64, device="cpu")
    return noise.clamp(_SMALLEST, 1 - _SMALLEST)


def critical_shift(scores: Tensor, beta: Tensor | float, noise: Tensor) -> Tensor:
    """The shift of all scores beyond which each component comes into being.

        u_i < σ(β_i s_i + μ)   ⇔   μ > c_i   with   c_i = logit(u_i) − β_i s_i

    So q_i ~ Bernoulli(σ(β_i s_i)), the sampling of [SCS], is c_i < 0. Everything that samples compares with this very
    number, in float64 on the CPU, so that no rounding separates a search for μ from its use or one device's decision
    from another's.

    Args:
        scores: s; +inf makes a component exist under every shift, −inf under none  # (units,)
        beta: β, positive  # () or (units,)
        noise: u, in (0, 1)  # (units,)

    Returns:
        c, on the CPU  # (units,) float64

    Example:
        >>> critical_shift(torch.tensor([1.0, 2.0]), 3.0, torch.tensor([0.5, 0.5]))
        tensor([-3., -6.], dtype=torch.float64)
    """
    noise, beta, scores = (torch.as_tensor(v, device="cpu").detach().double() for v in (noise, beta, scores))
    critical = torch.logit(noise) - beta * scores
    if torch.isnan(critical).any():
        where = torch.isnan(critical).nonzero().flatten().tolist()
        raise TrainingError(
            f"the scores, temperatures or noise of {len(where)} of {critical.numel()} components are not numbers "
            f"(first positions: {where[:8]}); expected finite scores. Lower the learning rate of the scores, or look "
            "for a loss that is not finite."
        )
    return critical


def penalty_weight(base: float, current: float, target: float) -> float:
    """Weight of the sparsity penalty by the signed gap to the budget: budget-aware growth of [SCS] (recalled form).

        λ = λ_base (current − target)

    A network above its budget is pressed to prune; one below it (λ < 0) is rewarded for growing. On its own this rule
    oscillates and can miss the budget.

    Args:
        base: λ_base, positive.
        current: cost of the network now, as a fraction of the template's.
        target: scheduled cost, likewise.

    Example:
        >>> penalty_weight(2.0, current=0.25, target=0.5)
        -0.5
    """
    return base * (current - target)


def penalty_gradient(scores: Tensor, beta: Tensor | float, weight: float) -> Tensor:
    """Gradient of the sparsity penalty R(s) = λ Σ_i σ(β_i s_i) in closed form.

        ∂R/∂s_i = λ β_i m_i (1 − m_i)

    Args:
        scores: s  # (units,)
        beta: β, positive  # () or (units,)
        weight: λ, of either sign.

    Example:
        >>> penalty_gradient(torch.tensor([0.0, 3.0]), 2.0, weight=1.0)
        tensor([0.5000, 0.0049])
    """
    return weight * beta * torch.sigmoid(beta * scores) * torch.sigmoid(-(beta * scores))  # σ(−x) = 1 − σ(x), exactly


def score_gradient(scores: Tensor, beta: Tensor | float, products: Tensor) -> Tensor:
    """Gradient of the task loss to the scores, with the gates kept out of the forward pass.

        θ_eff = m θ,  m = σ(β s)   ⇒   ∂L/∂s_i = β_i (1 − m_i) p_i,   p_i = ⟨θ_eff,i , ∂L/∂θ_eff,i⟩

    because ∂L/∂m_i = ⟨θ_i, ∂L/∂θ_eff,i⟩ and dm_i/ds_i = β_i m_i (1 − m_i): the m cancels, nothing is divided by it. It
    equals autograd through [SCS]'s explicit multiplication of the mask in the forward pass.

    Args:
        scores: s  # (units,)
        beta: β, positive  # () or (units,)
        products: p, of gradients that are unscaled and averaged over the batch  # (units,)

    Example:
        >>> score_gradient(torch.zeros(2), 2.0, torch.tensor([0.5, 1.0]))
        tensor([0.5000, 1.0000])
    """
    return beta * torch.sigmoid(-(beta * scores)) * products  # σ(−x) = 1 − σ(x) without cancellation
