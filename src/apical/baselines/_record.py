"""What an epoch's network was, as the history wants it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from apical.structure import Structure


def network_record(structure: Structure, keep: Mapping[str, Any], skip: Iterable[str] = ()) -> dict[str, Any]:
    """Cost, widths and blocks of a choice of kept positions (or their number) by group name, and skipped blocks.

    Widths are those of the groups that are there, not of those inside skipped blocks.

    Example:
        >>> import torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> record = network_record(apical.trace(net, torch.zeros(1, 3)), {"0": range(4)})
        >>> record["macs"], record["macs_fraction"], record["widths"]
        (20, 0.5, {'0': 4})
    """
    skipped = list(skip)
    macs, num_params = structure.macs(keep, skipped), structure.num_params(keep, skipped)
    return {
        "macs": macs,
        "num_params": num_params,
        "macs_fraction": macs / max(1, structure.macs()),
        "params_fraction": num_params / max(1, structure.num_params()),
        "widths": structure.widths(keep, skipped),
        "blocks": len(structure.blocks) - len(skipped),
        "skipped": skipped,
    }
