"""What is written down about every epoch."""

from __future__ import annotations

from typing import TypedDict

from apical.resizing import Selection
from apical.structure import Structure


class EpochRecord(TypedDict):
    """One epoch: the network that it trained (at its end), and what was restructured in it or after it.

    ``mean_macs`` is the mean over the epoch's steps, where `Grower.end_step` was told of them. ``worth`` says why the
    network became what it is: what a unit of each group, and each block, was worth for its cost at the last
    restructuring, as the logarithm of its ratio to the mean of the widths; above 0 it grows, below 0 it shrinks.
    """

    epoch: int
    macs: int
    mean_macs: float
    macs_fraction: float
    num_params: int
    params_fraction: float
    widths: dict[str, int]
    blocks: int
    skipped: list[str]
    born: int
    returned: int
    died: int
    worth: dict[str, float]
    scheduled_load: float
    next_load: float
    restructure_seconds: float


class Changes(TypedDict):
    """What restructuring changed since the last record."""

    born: int
    returned: int
    died: int
    restructure_seconds: float


def no_changes() -> Changes:
    """Nothing changed yet."""
    return Changes(born=0, returned=0, died=0, restructure_seconds=0.0)


def add_changes(a: Changes, b: Changes) -> Changes:
    """Sums."""
    return Changes(
        born=a["born"] + b["born"],
        returned=a["returned"] + b["returned"],
        died=a["died"] + b["died"],
        restructure_seconds=a["restructure_seconds"] + b["restructure_seconds"],
    )


def epoch_record(structure: Structure, present: Selection, epoch: int, load: float) -> EpochRecord:
    """The record of an epoch that trained the present network, which is scheduled to cost ``load`` of the budget."""
    macs = structure.macs(present.keep, present.skip)
    params = structure.num_params(present.keep, present.skip)
    return EpochRecord(
        epoch=epoch,
        macs=macs,
        mean_macs=float(macs),
        macs_fraction=macs / max(1, structure.macs()),
        num_params=params,
        params_fraction=params / max(1, structure.num_params()),
        widths={name: len(kept) for name, kept in present.keep.items()},
        blocks=len(structure.blocks) - len(present.skip),
        skipped=sorted(present.skip),
        worth={},
        scheduled_load=load,
        next_load=load,
        **no_changes(),
    )
