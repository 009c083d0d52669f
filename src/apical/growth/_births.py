"""What a newborn starts with: its initial weights in, nothing out, no momentum. The function does not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apical.resizing import DormantStore
from apical.structure import ChannelGroup, Structure, lies_in


def prepare_births_(
    store: DormantStore,
    structure: Structure,
    born: Mapping[str, Sequence[int]],
    first_time: Mapping[str, Sequence[int]],
    unborn: Sequence[str],
    preserving: bool,
) -> None:
    """Edit the dormant values of units and blocks that the next resize will bring into the network.

    Args:
        store: where they lie; only dormant positions are touched.
        structure: the template.
        born: units that will appear, by group.
        first_time: those of them that never lived before. Returning units keep their trained weights.
        unborn: blocks that have not lived before this resize. Their last affine is zero at birth, so nothing else
            inside them needs to be: were the readers within zero as well, none of them would ever get a gradient.
        preserving: whether newborns must leave the function unchanged.
    """
    for group in structure.groups:
        if born.get(group.name):
            _forget_momentum_(store, group, born[group.name])
        if preserving and first_time.get(group.name):
            for part in group.readers or group.gate_site:
                if _within(structure, part.tensor, unborn):
                    continue
                index = part.index[list(first_time[group.name])].reshape(-1)
                for full in store.named(part.tensor):
                    full.index_fill_(part.dim, index.to(full.device), 0)
    if preserving:
        for block in structure.blocks:
            if block.name in unborn:
                for name in block.gate_site:
                    for full in store.named(name):
                        full.zero_()


def _within(structure: Structure, tensor: str, blocks: Sequence[str]) -> bool:
    names = (tensor, *structure.tensors[tensor].aliases)
    return all(any(lies_in(name, block) for block in blocks) for name in names)


def _forget_momentum_(store: DormantStore, group: ChannelGroup, units: Sequence[int]) -> None:
    for part in group.members:
        index = part.index[list(units)].reshape(-1)
        for full in store.moments(part.tensor):
            full.index_fill_(part.dim, index.to(full.device), 0)
