"""What a newborn starts with: its initial weights in, nothing out, no momentum. The function does not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apical.resizing import DormantStore
from apical.structure import ChannelGroup, Structure


def prepare_births_(
    store: DormantStore,
    structure: Structure,
    born: Mapping[str, Sequence[int]],
    first_time: Mapping[str, Sequence[int]],
    blocks: Sequence[str],
    preserving: bool,
) -> None:
    """Edit the dormant values of units and blocks that the next resize will bring into the network.

    Args:
        store: where they lie; only dormant positions are touched.
        structure: the template.
        born: units that will appear, by group.
        first_time: those of them that never lived before. Returning units keep their trained weights.
        blocks: blocks that never lived and will appear.
        preserving: whether newborns must leave the function unchanged.
    """
    for group in structure.groups:
        if born.get(group.name):
            _forget_momentum_(store, group, born[group.name])
        if preserving and first_time.get(group.name):
            for part in group.readers or group.gate_site:
                index = part.index[list(first_time[group.name])].reshape(-1)
                for full in store.named(part.tensor):
                    full.index_fill_(part.dim, index.to(full.device), 0)
    if preserving:
        for block in structure.blocks:
            if block.name in blocks:
                for name in block.gate_site:
                    for full in store.named(name):
                        full.zero_()


def _forget_momentum_(store: DormantStore, group: ChannelGroup, units: Sequence[int]) -> None:
    for part in group.members:
        index = part.index[list(units)].reshape(-1)
        for full in store.moments(part.tensor):
            full.index_fill_(part.dim, index.to(full.device), 0)
