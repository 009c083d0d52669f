"""The gradient of the task loss to the scores, from gradients that the ordinary backward pass left behind."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from apical.errors import ConfigError


def unit_products(members: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Inner product of every unit's gated parameters with their gradients.

        p_i = Σ_members ⟨θ_eff,i , ∂L/∂θ_eff,i⟩  =  m_i ∂L/∂m_i

    Args:
        members: (θ_eff, ∂L/∂θ_eff) of each parameter slice that one gate multiplies; both (units, ...), units first.

    Returns:
        p, (units,), in the widest dtype of the members (at least float32).

    Raises:
        ConfigError: there is no member, or the shapes do not fit.

    Example:
        >>> weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 1.0])
        >>> unit_products([(weight, torch.ones(2, 2)), (bias, torch.tensor([0.5, 0.0]))])
        tensor([3.5000, 7.0000])
    """
    total: Tensor | None = None
    for theta, grad in members:
        if theta.shape != grad.shape or theta.ndim == 0 or (total is not None and theta.shape[0] != total.shape[0]):
            raise ConfigError(
                f"unit_products: got a slice of shape {tuple(theta.shape)} with a gradient of shape "
                f"{tuple(grad.shape)}{'' if total is None else f' in a group of {total.shape[0]} units'}; expected "
                "equal shapes, units first, the same number of units in all slices"
            )
        dtype = torch.promote_types(torch.promote_types(theta.dtype, grad.dtype), torch.float32)
        product = (theta.detach().to(dtype) * grad.to(dtype)).reshape(theta.shape[0], -1).sum(1)
        total = product if total is None else total + product
    if total is None:
        raise ConfigError("unit_products: got no slices; a gate site has at least one")
    return total


def score_gradient(scores: Tensor, beta: Tensor | float, products: Tensor) -> Tensor:
    """Gradient of the task loss to the scores, with the gates kept out of the forward pass.

        θ_eff = m θ,  m = σ(β s)   ⇒   ∂L/∂s_i = β_i (1 − m_i) p_i,   p_i = ⟨θ_eff,i , ∂L/∂θ_eff,i⟩

    because ∂L/∂m_i = ⟨θ_i, ∂L/∂θ_eff,i⟩ and dm_i/ds_i = β_i m_i (1 − m_i): the m cancels, nothing is divided by it. It
    equals autograd through [SCS]'s explicit multiplication of the mask in the forward pass.

    Args:
        scores: s, (units,).
        beta: β, a scalar or (units,), positive.
        products: p, (units,), as `unit_products` returns them for the slices that the gate multiplies. Their gradients
            must be unscaled (`GradScaler.unscale_`) and averaged over the batch.

    Returns:
        ∂L/∂s, (units,).

    Raises:
        ConfigError: the shapes do not fit.

    Example:
        >>> scale, grad = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
        >>> score_gradient(torch.zeros(2), 2.0, unit_products([(scale, grad)]))
        tensor([0.5000, 1.0000])
    """
    if products.shape != scores.shape:
        raise ConfigError(
            f"score_gradient: got {tuple(scores.shape)} scores for the products of {tuple(products.shape)} units; "
            "expected one score per unit"
        )
    return beta * torch.sigmoid(-(beta * scores)) * products  # σ(−x) = 1 − σ(x) without cancellation
