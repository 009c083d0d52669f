"""What growth leaves alone (ignored modules, blocks that stay, streams of a thin network), and where it leads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from apical.budget import BoundBudget, LatencyTable
from apical.errors import ConfigError
from apical.growth._balance import balanced_widths
from apical.growth._config import GrowthConfig
from apical.growth._depth import compound_skip
from apical.growth._measured import timed_widths
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
        absent: names of the blocks that a thin network does without from the start.
        goal: the widths that equal scores lead to, by group name.
        limits: fewest units and rounding of each group.
    """

    def __init__(self, model: nn.Module, structure: Structure, config: GrowthConfig) -> None:
        self.structure, self._thin, self._config = structure, config.seed_style != "small", config
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
        self.absent: tuple[str, ...] = ()
        self.goal: Mapping[str, int] = {g.name: g.size for g in structure.groups}

    def limits_for(self, divisor: int) -> Limits:
        """Fewest units and rounding of each group for a divisor; ignored groups stay whole."""
        free = Limits.of(self.structure, divisor, self._min_units)
        least = (self._whole.get(g.name, n) for g, n in zip(self.structure.groups, free.least, strict=True))
        return Limits(tuple(least), free.step)

    def set_goal(self, bound: BoundBudget, times: LatencyTable | None = None) -> None:
        """Decide where growth leads: blocks, proportions between widths, and the fixed streams of a thin network.

        Streams stay free if the inner widths alone could then not use up the budget.

        Args:
            bound: the budget.
            times: what layers take on this device, for ``price="time"``.
        """
        if self._config.seed_style == "thin":
            self.absent = compound_skip(bound, self._config.depth_share, self.blocks)
        if self._config.widths == "balanced":
            self.goal = balanced_widths(bound, self.limits.least_of(self.structure), self.absent, self.widths)
        else:
            self.goal = uniform_widths(bound, self.absent)
        if self._config.price == "time" and times is not None:
            self.goal = timed_widths(times, bound, self.limits, self.goal, self.absent, self.widths)
        if self._thin:
            sizes = [g.size for g in self.structure.groups]
            rounded = self.limits.nearest([self.goal[g.name] for g in self.structure.groups], sizes)
            streams = {g.name: n for g, n in zip(self.structure.groups, rounded, strict=True) if g.role == "stream"}
            fixed = streams | self.widths
            self.widths = fixed if bound.load(fixed, self.absent) >= 1 else self.widths

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
                part.fill_(-float("inf"))[torch.tensor(first, dtype=torch.long, device="cpu")] = float("inf")
            offset += group.size
        if self._thin:
            scores[offset:] = torch.where(
                self._wanted(gates[offset:], live[offset:], bound), float("inf"), -float("inf")
            )
        stay = torch.tensor([b.name in self.blocks for b in self.structure.blocks], dtype=torch.bool, device="cpu")
        scores[offset:][stay] = float("inf")
        return scores

    def _wanted(self, gates: Tensor, live: Tensor, bound: BoundBudget) -> Tensor:
        """Blocks of a thin network leave when their gate has closed, the least wanted first, as long as the widths
        that remain can still use up the budget. Those that left go first: a trained block is not exchanged for them.
        """
        names = [block.name for block in self.structure.blocks]
        gone = list(self.absent)
        for i in sorted(range(len(gates)), key=lambda i: (bool(live[i]), float(gates[i]))):
            open_to_leave = names[i] not in self.blocks and names[i] not in gone
            if open_to_leave and gates[i] < BLOCK_FLOOR and bound.load(self.widths, [*gone, names[i]]) >= 1:
                gone.append(names[i])
        return torch.tensor([name not in gone for name in names], dtype=torch.bool, device="cpu")
