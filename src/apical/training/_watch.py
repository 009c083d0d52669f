"""Which of the processes no longer answers, and since when: each gives a sign of life, read when an exchange fails."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from apical.errors import ApicalError, ProcessLostError
from apical.training._processes import Processes

_BEAT_SECONDS = 1.0
_LISTEN_SECONDS = 4.0
# How gloo, NCCL and torch speak of an exchange that failed; other errors of theirs are a program's own.
_FAILED_EXCHANGE = re.compile(r"gloo|nccl|timed out|connection (closed|reset|refused)|broken pipe|by peer|socket", re.I)


@contextmanager
def watched(team: Processes) -> Iterator[None]:
    """While entered, this process gives signs of life, and an exchange that fails says which one gives none.

    Raises:
        ProcessLostError: an exchange failed or took longer than the processes may wait.
    """
    if team.count == 1:
        yield
        return
    store, over = dist.distributed_c10d._get_default_store(), threading.Event()
    threading.Thread(target=_beat, args=(store, team.rank, over), daemon=True).start()
    started = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ApicalError) or not _FAILED_EXCHANGE.search(str(error)):
            raise
        words = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ProcessLostError(
            f"{_lost(store, team)}. An exchange of process {team.rank} with the others failed "
            f"{time.monotonic() - started:.0f} s after the run began: {words}. The last checkpoint is kept; see to "
            "that process or its machine, then go on with the run."
        ) from error
    finally:
        over.set()


def _key(rank: int) -> str:
    return f"apical/alive/{rank}"


def _beat(store: Any, rank: int, over: threading.Event) -> None:
    with suppress(RuntimeError):  # the store goes with the process that keeps it
        while True:
            store.set(_key(rank), time.strftime("%Y-%m-%d %H:%M:%S"))
            if over.wait(_BEAT_SECONDS):
                return


def _lost(store: Any, team: Processes) -> str:
    """In words, which processes give no sign of life; by what changes while one listens, since clocks differ."""
    others = [rank for rank in range(team.count) if rank != team.rank]
    try:
        before = _signs(store, others)
        time.sleep(_LISTEN_SECONDS)
        after = _signs(store, others)
    except RuntimeError:
        return "the process that keeps the register of all (process 0, or torchrun itself) no longer answers"
    silent = [f"process {rank}, since {after[rank]}" for rank in others if before[rank] == after[rank]]
    if not silent:
        return f"all {team.count} processes give signs of life, but one did not take part in an exchange in time"
    return f"no sign of life of {'; '.join(silent)}"


def _signs(store: Any, ranks: list[int]) -> dict[int, str]:
    return {r: store.get(_key(r)).decode() if store.check([_key(r)]) else "the start" for r in ranks}
