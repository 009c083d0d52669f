"""What growth leaves alone: ignored modules, blocks that stay, and the stream widths of a thin network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from apical.budget import BoundBudget
from apical.errors import ConfigError
from apical.growth._config import GrowthConfig
from apical.growth._sampling import Limits, uniform_widths
from apical.structure import Structure, lies_in

BLOCK_FLOOR = 0.05  # a block of a thin seed leaves when its gate σ(βs) falls below this


class Pinned:
    """Groups of fixed width and blocks that stay.

    Args:
        model: the template, whose module paths ``config.ignore`` names.
        structure: what can grow in it.
        config: the options.

    Attributes:
        widths: groups whose width does not change.
        order: of the units of a group, by its name; those in front are present. By position where it is not named.
        blocks: names of the blocks that stay.
        limits: fewest units and rounding of each group.
    """

    def __init__(self, model: nn.Module, structure: Structure, config: GrowthConfig) -> None:
        self.structure, self._thin = structure, config.seed_style != "small"
        paths, names = config.ignore, [n for n, _ in model.named_modules()]
        for path in paths:
            if path not in names:
                raise ConfigError(f"ignore names {path!r}, which is no module of the model; modules are {names[1:6]} …")
        self.widths = {
            g.name: g.size for g in structure.groups if any(lies_in(m.tensor, p) for m in g.members for p in paths)
        }
        self.order: Mapping[str, Sequence[int]] = {}
        ignored = {b.name for b in structure.blocks for p in paths if lies_in(p, b.name) or lies_in(b.name, p)}
        self.blocks = ignored if config.grow_depth else {b.name for b in structure.blocks}
        self._whole, self._min_units = dict(self.widths), config.min_units
        self.limits = self.limits_for(config.step)

    def limits_for(self, divisor: int) -> Limits:
        """Fewest units and rounding of each group for a divisor; ignored groups stay whole."""
        free = Limits.of(self.structure, divisor, self._min_units)
        least = (self._whole.get(g.name, n) for g, n in zip(self.structure.groups, free.least, strict=True))
        return Limits(tuple(least), free.step)

    def fix_streams(self, bound: BoundBudget) -> None:
        """Give the streams of a thin network the width of uniform scaling to the budget, unless the inner widths alone
        could then not use up the budget.
        """
        if self._thin:
            uniform = uniform_widths(bound, self.limits)
            fixed = {g.name: uniform[g.name] for g in self.structure.groups if g.role == "stream"} | self.widths
            self.widths = fixed if bound.load(fixed) >= 1 else self.widths

    def pin(self, scores: Tensor, gates: Tensor, live: Tensor, bound: BoundBudget) -> Tensor:
        """Scores with +inf where a component must be present and -inf where it must not.

        Args:
            scores: s  # (entries,)
            gates: σ(βs)  # (entries,)
            live: what is present now  # (entries,)
            bound: the budget.
        """
        scores, offset = scores.clone(), 0
        for group in self.structure.groups:
            if group.name in self.widths:
                part = scores[offset : offset + group.size]
                first = self.order.get(group.name, range(group.size))[: self.widths[group.name]]
                part.fill_(-float("inf"))[torch.tensor(first, dtype=torch.long)] = float("inf")
            offset += group.size
        if self._thin:
            scores[offset:] = torch.where(
                self._wanted(gates[offset:], live[offset:], bound), float("inf"), -float("inf")
            )
        stay = torch.tensor([b.name in self.blocks for b in self.structure.blocks], dtype=torch.bool)
        scores[offset:][stay] = float("inf")
        return scores

    def _wanted(self, gates: Tensor, live: Tensor, bound: BoundBudget) -> Tensor:
        """Blocks of a thin network leave when their gate has closed, the least wanted first, as long as the widths
        that remain can still use up the budget. Those that left go first: a trained block is not exchanged for them.
        """
        wanted = torch.ones_like(gates, dtype=torch.bool)
        gone: list[str] = []
        for i in sorted(range(len(gates)), key=lambda i: (bool(live[i]), float(gates[i]))):
            name = self.structure.blocks[i].name
            if gates[i] < BLOCK_FLOOR and name not in self.blocks and bound.load(self.widths, [*gone, name]) >= 1:
                wanted[i] = False
                gone.append(name)
        return wanted
