"""What makes a run this run and no other: compared when it goes on, and by its processes when it starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from apical.errors import TrainingError
from apical.training._checkpoint import CONTENTS, DATA, differences
from apical.training._processes import gathered, gathered_texts, processes
from apical.training._run_folder import plain

# Where and how verbosely a run goes on does not make it another run.
NOT_IDENTITY = frozenset({"device", "out", "progress", "resume", "versions", "process_timeout_s"})
NOT_IDENTITY_OF_DATA = frozenset({"path", "workers", "memory_gb"})  # what the data hold is compared by `CONTENTS`


def run_identity(content: Mapping[str, Any], contents: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What must be equal for a run to be the same run.

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


def check_same_run(identity: Mapping[str, Any]) -> None:
    """Compare what all processes are about to do, by a digest; do nothing in one process alone.

    Other settings, labels or numbers of samples in one of them would train something else without a word, or end in the
    middle of an exchange with words that say nothing.

    Args:
        identity: as by `run_identity`, and whatever else must be the same in all of them.

    Raises:
        TrainingError: they differ; every process raises it, with the same words.
    """
    if processes().count == 1:
        return
    text = json.dumps(plain(identity), sort_keys=True)
    own = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:7], "little")
    digests = [digest for (digest,) in gathered([own])]
    odd = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if not odd:
        return
    first, other = (json.loads(text) for rank, text in enumerate(gathered_texts(text)) if rank in (0, odd[0]))
    found = differences(first, other, ("process 0", f"process {odd[0]}"))
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    raise TrainingError(
        f"the processes would not do the same run: {'; '.join(found[:5])}{more}. Processes that differ from process 0: "
        f"{', '.join(map(str, odd))}; this is process {processes().rank}. Give all of them the same settings and the "
        "same data, then start again; nothing was trained."
    )
