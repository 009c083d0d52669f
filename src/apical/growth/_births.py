"""What a newborn starts with: its initial weights in, nothing out, no momentum. The function does not change."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from apical.growth._observer import directions
from apical.resizing import DormantStore
from apical.resizing._shards import fill_
from apical.structure import ChannelGroup, Structure
from apical.structure._cost import lies_in


def prepare_births_(
    store: DormantStore,
    structure: Structure,
    born: Mapping[str, Sequence[int]],
    first_time: Mapping[str, Sequence[int]],
    unborn: Sequence[str],
    preserving: bool,
    fixed: Collection[str] = (),
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
        fixed: tensors that nothing trains. They keep their values, so that a newborn that only they read does change
            the function: were they zero, it would never be read at all, and never get a gradient.
    """
    for group in structure.groups:
        if born.get(group.name):
            _forget_momentum_(store, group, born[group.name])
        if preserving and first_time.get(group.name):
            for part in group.readers or group.gate_site:
                if _within(structure, part.tensor, unborn) or _is_fixed(structure, part.tensor, fixed):
                    continue
                index = part.index[list(first_time[group.name])].reshape(-1)
                for full in store.named(part.tensor):
                    fill_(full, part.dim, index, 0)
    if preserving:
        for block in structure.blocks:
            if block.name in unborn:
                for name in block.gate_site:
                    if _is_fixed(structure, name, fixed):
                        continue
                    for full in store.named(name):
                        full.zero_()


def fixed_parameters(model: nn.Module, optimizers: Sequence[Optimizer], before: Collection[str] = ()) -> frozenset[str]:
    """Names of the parameters that nothing trains: they want no gradient, or no optimizer holds them.

    Args:
        model: as it is now.
        optimizers: the user's.
        before: what was found earlier, which counts for parameters that are not in the model at present.
    """
    live = dict(model.named_parameters(remove_duplicate=False))
    held = set().union(*(directions(o.param_groups) for o in optimizers))
    absent = [name for name in before if name not in live]
    return frozenset([*absent, *(n for n, p in live.items() if not p.requires_grad or id(p) not in held)])


def _is_fixed(structure: Structure, tensor: str, fixed: Collection[str]) -> bool:
    return any(name in fixed for name in (tensor, *structure.tensors[tensor].aliases))


def _within(structure: Structure, tensor: str, blocks: Sequence[str]) -> bool:
    names = (tensor, *structure.tensors[tensor].aliases)
    gone = structure.left_out(blocks)
    return all(any(lies_in(name, path) for path in gone) for name in names)


def _forget_momentum_(store: DormantStore, group: ChannelGroup, units: Sequence[int]) -> None:
    for part in group.members:
        index = part.index[list(units)].reshape(-1)
        for full in store.moments(part.tensor):
            fill_(full, part.dim, index, 0)
