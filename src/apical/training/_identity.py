"""What makes a run this run and no other: compared when it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apical.training._checkpoint import CONTENTS, DATA
from apical.training._run_folder import plain

# Where and how verbosely a run goes on does not make it another run.
NOT_IDENTITY = frozenset({"device", "out", "progress", "resume", "versions"})
NOT_IDENTITY_OF_DATA = frozenset({"path", "workers", "memory_gb"})  # what the data hold is compared by `CONTENTS`


def run_identity(content: Mapping[str, Any], contents: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What must be equal for a run to be the same run.

    Args:
        content: its whole configuration.
        contents: what its data hold, by `Loaders.contents`.

    Example:
        >>> run_identity({"training": {"epochs": 2, "device": "cpu"}, "data": {"path": "a", "flip": True}})
        {'training': {'epochs': 2}, 'data': {'flip': True}}
    """
    kept = {key: value for key, value in plain(content).items() if key not in NOT_IDENTITY}
    kept["training"] = {key: value for key, value in kept["training"].items() if key not in NOT_IDENTITY}
    data = kept.pop(DATA, None)
    if isinstance(data, Mapping):
        kept[DATA] = {key: value for key, value in data.items() if key not in NOT_IDENTITY_OF_DATA}
    return kept if contents is None else {**kept, CONTENTS: plain(contents)}
