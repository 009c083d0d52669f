"""The relaxed mask and its temperature ([SCS], structured continuous sparsification)."""

from __future__ import annotations

import torch
from torch import Tensor

from apical.errors import ConfigError


def relax(scores: Tensor, beta: Tensor | float) -> Tensor:
    """Relaxed mask of every component, the continuous stand-in for keeping or dropping it.

        m_i = σ(β_i s_i)

    The mask is 1/2 at score 0 for every temperature and tends to the step function 1[s_i > 0] as β grows ([SCS]).

    Args:
        scores: s, (units,), any real number.
        beta: β, a scalar or (units,), positive.

    Returns:
        m, (units,), in [0, 1].

    Example:
        >>> relax(torch.tensor([-1.0, 0.0, 1.0]), 2.0)
        tensor([0.1192, 0.5000, 0.8808])
    """
    return torch.sigmoid(beta * scores)


def age_temperature(age: Tensor, total: float, beta_0: float) -> Tensor:
    """Temperature of every component by its own age: the "improved temperature scheduler" of [SCS].

        β_i = β_0^(t_i / T)

    A newborn (t_i = 0) has β_i = 1, is soft, and gets its chance; one that lived through the whole training
    (t_i = T) has β_i = β_0 and is all but decided. The exact form is recalled, not read in the paper.

    Args:
        age: t, (units,), the number of epochs with q_i = 1; in [0, total].
        total: T, the number of epochs of the whole training; positive.
        beta_0: β_0, the final temperature; at least 1.

    Returns:
        β, (units,), in [1, β_0], of the default dtype if `age` counts in integers.

    Raises:
        ConfigError: `total` is not positive or `beta_0` is below 1.

    Example:
        >>> age_temperature(torch.tensor([0, 5, 10]), total=10, beta_0=100.0)
        tensor([  1.,  10., 100.])
    """
    if not total > 0 or not beta_0 >= 1:
        raise ConfigError(
            f"age_temperature: got total={total} and beta_0={beta_0}; expected total > 0 epochs and beta_0 >= 1. "
            "A temperature below 1 would soften the gates with age."
        )
    exponent = age / total
    return torch.pow(torch.full_like(exponent, beta_0), exponent)
