"""Binary indicators: which components exist until the next restructuring ([SCS], Bernoulli sampling)."""

from __future__ import annotations

import torch
from torch import Tensor

from apical.errors import TrainingError

_SMALLEST = 2.0**-53


def draw_noise(units: int, generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise for `sample_indicators`, one number per component.

    Drawn once and kept, it makes common random numbers: a component then changes state only when its score, its
    temperature or the shift moved. Drawn anew at every restructuring, it is the plain Bernoulli sampling of [SCS].

    Args:
        units: number of components, at least 0.
        generator: a CPU generator; torch's default one if None.

    Returns:
        u, (units,), float64, in the open interval (0, 1).

    Example:
        >>> noise = draw_noise(4, torch.Generator().manual_seed(0))
        >>> noise.dtype, bool(((noise > 0) & (noise < 1)).all())
        (torch.float64, True)
    """
    noise = torch.rand(units, generator=generator, dtype=torch.float64, device="cpu")
    return noise.clamp(_SMALLEST, 1 - _SMALLEST)


def critical_shift(scores: Tensor, beta: Tensor | float, noise: Tensor) -> Tensor:
    """The shift beyond which each component comes into being.

        u_i < σ(β_i s_i + μ)   ⇔   μ > c_i   with   c_i = logit(u_i) − β_i s_i

    Sampling with fixed noise is therefore a threshold on one number per component. Everything that samples compares
    with this very number, in float64 on the CPU, so that no rounding separates a search for μ from its use or one
    device's decision from another's.

    Args:
        scores: s, (units,); +inf makes a component exist under every shift, −inf under none.
        beta: β, a scalar or (units,), positive.
        noise: u, (units,), in (0, 1).

    Returns:
        c, (units,), float64, on the CPU.

    Raises:
        TrainingError: a score is NaN.

    Example:
        >>> critical_shift(torch.tensor([1.0, 2.0]), 3.0, torch.tensor([0.5, 0.5]))
        tensor([-3., -6.], dtype=torch.float64)
    """
    noise, beta, scores = (_decisive(value) for value in (noise, beta, scores))
    critical = torch.logit(noise) - beta * scores
    if torch.isnan(critical).any():
        where = torch.isnan(critical).nonzero().flatten().tolist()
        raise TrainingError(
            f"the scores, temperatures or noise of {len(where)} of {critical.numel()} components are not numbers "
            f"(first positions: {where[:8]}); expected finite scores. Lower the learning rate of the scores, or look "
            "for a loss that is not finite."
        )
    return critical


def sample_indicators(scores: Tensor, beta: Tensor | float, noise: Tensor, shift: float = 0.0) -> Tensor:
    """Indicators of existence, sampled with given noise.

        q_i = 1[u_i < σ(β_i s_i + μ)]     that is     q_i ~ Bernoulli(σ(β_i s_i + μ))

    With μ = 0 this is the sampling of [SCS]. Raising μ only ever adds components.

    Args:
        scores: s, (units,).
        beta: β, a scalar or (units,), positive.
        noise: u, (units,), in (0, 1), from `draw_noise`.
        shift: μ, one number for all components, usually from `shift_for_cost`.

    Returns:
        q, (units,), bool, on the CPU.

    Raises:
        TrainingError: a score is NaN.

    Example:
        >>> scores, noise = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.5, 0.4, 0.5])
        >>> sample_indicators(scores, 1.0, noise)
        tensor([False,  True,  True])
        >>> sample_indicators(scores, 1.0, noise, shift=1.5)
        tensor([True, True, True])
    """
    return critical_shift(scores, beta, noise) < shift


def _decisive(value: Tensor | float) -> Tensor:
    return torch.as_tensor(value, device="cpu").detach().to(torch.float64)
