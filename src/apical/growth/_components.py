"""What is known of every unit and block, laid out in vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apical.errors import CheckpointError
from apical.resizing._install import lookup
from apical.structure import ChannelGroup, ParamSlice, Structure


class Components:
    """One entry per unit of every group, in the structure's order, then one per block; vectors on the CPU.

    Attributes:
        values: what training has shown of each component: its utility, or its score  # (entries,) float64
        buffer: what is being gathered for it since the last restructuring: squares, or momentum of the score.
        steps: how many training steps `buffer` holds  # () float64
        order: u, drawn once, in (0, 1): of equal components the one with the smaller number comes first.
        age: t, intervals (or epochs) that the component has lived through.
        live: q, whether the component is present.
        lived: whether it ever was.
        watched: whether the gradients of its gate site are seen at present; not part of the state.
    """

    def __init__(self, structure: Structure, generator: torch.Generator) -> None:
        self.structure = structure
        self.sizes = [g.size for g in structure.groups]
        self.offsets = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        self.num_units = sum(self.sizes)
        n = self.num_units + len(structure.blocks)
        self.values = torch.zeros(n, dtype=torch.float64, device="cpu")
        self.buffer = torch.zeros(n, dtype=torch.float64, device="cpu")
        self.steps = torch.zeros((), dtype=torch.float64, device="cpu")
        self.age = torch.zeros(n, dtype=torch.float64, device="cpu")
        self.live = torch.ones(n, dtype=torch.bool, device="cpu")
        self.lived = torch.zeros(n, dtype=torch.bool, device="cpu")
        self.watched = torch.zeros(n, dtype=torch.bool, device="cpu")
        self.order = self._shuffled(generator)

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        """Within each group the midpoints of equal strata, shuffled."""
        parts = []
        for size in [*self.sizes, len(self.structure.blocks)]:
            ranks = torch.randperm(size, generator=generator, device="cpu")
            parts.append((ranks.double() + 0.5) / max(1, size))
        return torch.cat(parts)

    def entries(self, group: int) -> slice:
        """Where the units of a group lie."""
        return slice(self.offsets[group], self.offsets[group] + self.sizes[group])

    @property
    def blocks(self) -> slice:
        """Where the blocks lie."""
        return slice(self.num_units, len(self.values))

    def set_live(self, keep: Mapping[str, Sequence[int]], skip: Sequence[str]) -> None:
        """Note what is present."""
        self.live[:] = False
        for i, group in enumerate(self.structure.groups):
            self.live[self.offsets[i] + torch.tensor(keep[group.name], dtype=torch.long, device="cpu")] = True
        for i, block in enumerate(self.structure.blocks):
            self.live[self.num_units + i] = block.name not in skip
        self.lived |= self.live

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).clone() for name in STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        for name in STATE:
            own = getattr(self, name)
            own.copy_(checked(own, state[name], name))


def widest_float(device: torch.device) -> torch.dtype:
    """What sums over many steps are kept in: float64, float32 on MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def checked(own: Any, value: Any, name: str) -> Any:
    """A saved value, if it can take the place of one's own: alike in kind and shape.

    Args:
        own: a tensor, a number, a sequence of numbers, or numbers by name.
        value: in its place.
        name: by which an error names it.

    Example:
        >>> checked((0.5, 0.5), [1.0, 0.0], "multipliers")
        [1.0, 0.0]
        >>> checked(0.5, None, "target_load")
        Traceback (most recent call last):
        apical.errors.CheckpointError: target_load of the saved growth state is None, expected the like of 0.5
    """
    if isinstance(own, Tensor):
        fits = isinstance(value, Tensor) and value.shape == own.shape and not value.is_meta
    elif isinstance(own, Mapping):
        fits = isinstance(value, Mapping) and all(
            isinstance(key, str) and isinstance(number, (int, float)) for key, number in value.items()
        )
    elif isinstance(own, (tuple, list)):
        fits = isinstance(value, (tuple, list)) and len(value) == len(own) and all(map(_is_number, value))
    elif isinstance(own, bool):
        fits = isinstance(value, bool)
    else:
        fits = _is_number(value)
    if not fits:
        raise CheckpointError(f"{name} of the saved growth state is {value!r:.60}, expected the like of {own!r:.60}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


STATE = ("values", "buffer", "steps", "order", "age", "live", "lived")


@torch.no_grad()
def unit_strengths(model: nn.Module, group: ChannelGroup) -> Tensor:
    """How much each unit of a group contributes, from the weights alone  # (units,) float64

        strength_u = Σ_a ‖a_u‖ / mean_v ‖a_v‖  ·  Σ_b ‖b_u‖ / mean_v ‖b_v‖

    a runs over the group's gate site (what lets the unit through: the scale and shift of its norm, else its rows) and
    b over its readers (the weights with which later layers read it). Each slice counts relative to its own mean, so
    that layers of other scale weigh the same. A unit that is switched off, or that nobody reads, has strength 0. (A
    data-free magnitude criterion after Li et al. 2017, arXiv:1608.08710, and Liu et al. 2017, arXiv:1708.06519, summed
    over a group as in Fang et al. 2023, arXiv:2301.12900.)
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
