"""Which residual blocks a thin network does without from the start."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import log

from apical.budget import BoundBudget
from apical.structure import Structure


def compound_skip(bound: BoundBudget, depth_share: float, stay: Collection[str]) -> tuple[str, ...]:
    """The blocks that a network does without when depth carries a share of the reduction, and widths the rest.

    If the budget allows a fraction f of the full cost, the blocks that remain cost about f^depth_share at full width.
    Compound scaling (Tan and Le, EfficientNet, ICML 2019) has a depth share of ln 1.2 / (ln 1.2 + 2 ln 1.1) = 0.49.

    Args:
        bound: the budget.
        depth_share: in [0, 1]; 0 leaves out none.
        stay: names of blocks that are not left out.

    Returns:
        Names of blocks, in the order of `dearest_first`.
    """
    full = bound.load({})
    goal = -depth_share * log(max(1.0, full))
    chosen: list[str] = []
    for name in dearest_first(bound, stay):
        present = log(bound.load({}, chosen) / full)
        deeper = log(bound.load({}, [*chosen, name]) / full)
        if abs(deeper - goal) >= abs(present - goal):
            break
        chosen.append(name)
    return tuple(chosen)


def dearest_first(bound: BoundBudget, stay: Collection[str] = ()) -> Iterator[str]:
    """Blocks in the order in which they are left out: those of the stage that costs the most for a parameter first.

        price of a stage = Σ_t (share of limit t that its blocks use) / (parameters of its blocks)

    A budget buys parameters, and they are dear where the image is still large: in ResNet-20 a block of each stage has
    the same MACs, but one of the last stage has 16 times the parameters of one of the first. A stage is made of the
    blocks that add to one stream; it gives up its last block first. Stages of one price (within a few percent, as
    under a budget of parameters) take turns, the one that has the most blocks left first, later ones before earlier.

    Args:
        bound: the budget.
        stay: names of blocks that are not left out.
    """
    structure = bound.structure
    left = [[name for name in blocks if name not in stay] for blocks in _stages(structure)]

    def price(blocks: list[str]) -> float:
        cost = sum(bound.loads({})) - sum(bound.loads({}, blocks))
        return cost / max(1, structure.num_params() - structure.num_params({}, blocks))

    rank = [float(f"{price(blocks):.1e}") for blocks in left]  # two digits: what differs by less takes turns
    while any(left):
        _, _, stage = max((rank[i], len(blocks), i) for i, blocks in enumerate(left) if blocks)
        yield left[stage].pop()


def _stages(structure: Structure) -> list[list[str]]:
    """Names of the blocks that add to one stream, for each stream in the order of the forward pass."""
    stream_of = {m.tensor: group.name for group in structure.groups if group.role == "stream" for m in group.members}
    stages: dict[str, list[str]] = {}
    for block in structure.blocks:
        stages.setdefault(stream_of.get(block.gate_site[0], ""), []).append(block.name)
    return list(stages.values())
