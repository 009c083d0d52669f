"""Scores, ages and noise of all units and blocks, laid out in one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apical.gates import draw_noise
from apical.structure import Structure

STATE = ("scores", "velocity", "noise", "age", "live", "lived")


class Components:
    """One entry per unit of every group, in the structure's order, then one per block; vectors on the CPU.

    Attributes:
        scores: s  # (entries,) float64
        velocity: momentum of the scores.
        noise: u, fixed draws in (0, 1).
        age: t, epochs with q = 1.
        live: q, whether the component is present.
        lived: whether it ever was.
    """

    def __init__(self, structure: Structure, stratified: bool, generator: torch.Generator) -> None:
        self.structure = structure
        self.sizes = [g.size for g in structure.groups]
        self.offsets = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        self.num_units = sum(self.sizes)
        n = self.num_units + len(structure.blocks)
        self.scores = torch.zeros(n, dtype=torch.float64, device="cpu")
        self.velocity = torch.zeros(n, dtype=torch.float64, device="cpu")
        self.age = torch.zeros(n, dtype=torch.float64, device="cpu")
        self.live = torch.ones(n, dtype=torch.bool, device="cpu")
        self.lived = torch.zeros(n, dtype=torch.bool, device="cpu")
        self.noise = self._stratified(generator) if stratified else draw_noise(n, generator)

    def _stratified(self, generator: torch.Generator) -> Tensor:
        """Within each group the midpoints of equal strata, shuffled: equal scores then give equal proportions."""
        parts = []
        for size in [*self.sizes, len(self.structure.blocks)]:
            order = torch.randperm(size, generator=generator, device="cpu")
            parts.append((order.double() + 0.5) / max(1, size))
        return torch.cat(parts)

    def favour_(self, shares: Sequence[float]) -> None:
        """Change the noise so that equal scores lead to these shares of the groups, with the order of units as it was.

            logit u ← logit u − logit share

        Args:
            shares: of each group, in (0, 1].
        """
        for i, share in enumerate(shares):
            part = self.noise[self.entries(i)]
            odds = min(share, 1 - 0.5 / (self.sizes[i] + 1))  # a whole group has no logit
            part.copy_(torch.sigmoid(torch.logit(part) - torch.logit(part.new_tensor(odds))))

    def entries(self, group: int) -> slice:
        """Where the units of a group lie."""
        return slice(self.offsets[group], self.offsets[group] + self.sizes[group])

    def set_live(self, keep: Mapping[str, Sequence[int]], skip: Sequence[str]) -> None:
        """Note what is present."""
        self.live[:] = False
        for i, group in enumerate(self.structure.groups):
            self.live[self.offsets[i] + torch.tensor(keep[group.name], dtype=torch.long, device="cpu")] = True
        for i, block in enumerate(self.structure.blocks):
            self.live[self.num_units + i] = block.name not in skip
        self.lived |= self.live

    def state_dict(self) -> dict[str, Any]:
        """Tensors only."""
        return {name: getattr(self, name).clone() for name in STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        for name in STATE:
            getattr(self, name).copy_(state[name])
