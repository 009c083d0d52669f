"""Which channels of a trained network matter most: the order in which ``seed_style="pretrained"`` keeps them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apical.growth._components import Components
from apical.resizing._install import lookup
from apical.structure import ChannelGroup, ParamSlice


@torch.no_grad()
def unit_strengths(model: nn.Module, group: ChannelGroup) -> Tensor:
    """How much each unit of a group contributes, from the weights alone.

        strength_u = Σ_a ‖a_u‖ / mean_v ‖a_v‖  ·  Σ_b ‖b_u‖ / mean_v ‖b_v‖

    a runs over the group's gate site (what lets the unit through: the scale and shift of its norm, else its rows) and
    b over its readers (the weights with which later layers read it). Each slice counts relative to its own mean, so
    that layers of other scale weigh the same. A unit that is switched off, or that nobody reads, has strength 0. (A
    data-free magnitude criterion after Li et al. 2017, arXiv:1608.08710, and Liu et al. 2017, arXiv:1708.06519, summed
    over a group as in Fang et al. 2023, arXiv:2301.12900.)

    Returns:
        Strengths, not negative, float64  # (units,)
    """
    strength = torch.ones(group.size, dtype=torch.float64, device="cpu")
    for parts in (group.gate_site, group.readers):
        if parts:
            strength *= sum(_relative_norms(model, part) for part in parts)
    return strength


def _relative_norms(model: nn.Module, part: ParamSlice) -> Tensor:
    """Norm of what each unit owns of a tensor, divided by the mean over the units  # (units,)"""
    tensor = lookup(model, part.tensor).detach().to("cpu", torch.float64)
    rows = tensor.movedim(part.dim, 0).reshape(tensor.shape[part.dim], -1) if tensor.dim() else tensor.reshape(1, 1)
    norms = rows.square().sum(1)[part.index].sum(1).sqrt()
    return norms / norms.mean().clamp(min=torch.finfo(torch.float64).tiny)


def strongest_first_(components: Components, model: nn.Module) -> None:
    """Order the units of every group by strength, and take all of them for trained.

    Since every unit counts as having lived, one that comes back keeps its weights.
    """
    strengths = [unit_strengths(model, group) for group in components.structure.groups]
    for i, strength in enumerate(strengths):
        ranks = torch.argsort(torch.argsort(strength, descending=True, stable=True))
        components.order[components.entries(i)] = (ranks.double() + 0.5) / max(1, len(strength))
    components.lived[:] = True
