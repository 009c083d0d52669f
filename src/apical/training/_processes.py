"""The processes that train together: how many, which this is, what they tell each other, which no longer answers."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from apical.errors import ApicalError, CheckpointError, ConfigError, ProcessLostError

_SETTLE_SECONDS = 0.2
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_DIMS = 8  # most dimensions of what is summed over the processes
_BEAT_SECONDS = 1.0
_LISTEN_SECONDS = 4.0
# How gloo, NCCL and torch speak of an exchange that failed; other errors of theirs are a program's own.
_FAILED_EXCHANGE = re.compile(r"gloo|nccl|timed out|connection (closed|reset|refused)|broken pipe|by peer|socket", re.I)


@dataclass(frozen=True)
class Processes:
    """The processes that train one model together, as torchrun starts them.

    Attributes:
        rank: of this process, in 0..count - 1.
        count: number of processes, over all machines.
        local_rank: number of this process on its machine, and of the CUDA device that it takes.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """What a process takes of a batch.

        Raises:
            ConfigError: the batch cannot be divided evenly.

        Example:
            >>> Processes(rank=1, count=4).share(128)
            32
        """
        if batch_size % self.count:
            raise ConfigError(
                f"batch_size={batch_size} cannot be shared by {self.count} processes: it counts the images of a step "
                f"in all processes together. Choose a multiple of {self.count}, such as "
                f"{max(1, round(batch_size / self.count)) * self.count}."
            )
        return batch_size // self.count


def processes() -> Processes:
    """The processes of this run: from torchrun's environment variables; one alone without them.

    Raises:
        ConfigError: the variables are there but make no sense.
    """
    if dist.is_available() and dist.is_initialized():
        return Processes(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", dist.get_rank())))
    given = {name: os.environ.get(name) for name in _NAMES}
    if None in given.values():  # another launcher's WORLD_SIZE alone is none of our business
        return Processes()
    try:
        found = Processes(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
        int(os.environ["MASTER_PORT"])
    except ValueError as error:
        raise ConfigError(f"the environment holds {given}, expected whole numbers as torchrun sets them") from error
    if not 0 <= found.rank < found.count:
        raise ConfigError(f"the environment holds RANK={found.rank}, expected one in 0..{found.count - 1} (WORLD_SIZE)")
    return found


@contextmanager
def process_group(device: torch.device, timeout_s: float | None = None) -> Iterator[Processes]:
    """While entered, the processes that torchrun started can speak to each other: by NCCL on CUDA, by gloo on a CPU.

    One process alone, or a group that exists already, is left as it is.
    """
    found = processes()
    if found.count == 1 or dist.is_initialized():
        yield found
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    try:
        if device.type == "cuda":
            dist.init_process_group("nccl", timeout=timeout, device_id=device)
        else:
            dist.init_process_group("gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"process {found.rank} of {found.count} cannot join the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {error}. Start all of them with torchrun."
        ) from error
    try:
        yield found
    finally:
        # A group that is freed while one of its threads still lets go of a tensor of the last exchange deadlocks: it
        # joins the thread with the interpreter's lock held, which the thread waits for. Asleep, we do not hold it.
        time.sleep(_SETTLE_SECONDS)
        dist.destroy_process_group()


@contextmanager
def first_before_others(team: Processes) -> Iterator[None]:
    """The first process goes through the block before the others do; if it fails, they do not wait for it."""
    if not team.first and any_of_all(0):
        raise CheckpointError(f"process {team.rank} stops because process 0 could not go on; its message says why")
    try:
        yield
    except BaseException:
        if team.first:
            any_of_all(1)
        raise
    if team.first:
        any_of_all(0)


def _device() -> torch.device:
    on_cuda = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_cuda else torch.device("cpu")


def any_of_all(code: int) -> int:
    """The largest of all processes' codes: 0 if none of them has anything to say."""
    if processes().count == 1:
        return code
    told = torch.tensor(code, device=_device())
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return int(told)


def gathered(values: Sequence[int]) -> list[list[int]]:
    """The whole numbers (64 bits) of every process, by rank; equally many in each."""
    if processes().count == 1:
        return [list(values)]
    own = torch.tensor(list(values), dtype=torch.int64, device=_device())
    found = [torch.empty_like(own) for _ in range(processes().count)]
    dist.all_gather(found, own)
    return [tensor.tolist() for tensor in found]


def gathered_bytes(own: bytes) -> list[bytes]:
    """The bytes of every process, by rank; as many as each has."""
    if processes().count == 1:
        return [own]
    lengths = [length for (length,) in gathered([len(own)])]
    padded = torch.frombuffer(bytearray(own.ljust(max(1, *lengths), b"\0")), dtype=torch.uint8).to(_device())
    found = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(found, padded)
    return [bytes(part.cpu().numpy())[:length] for part, length in zip(found, lengths, strict=True)]


def gathered_texts(text: str) -> list[str]:
    """The texts of every process, by rank."""
    return [raw.decode("utf-8", "surrogateescape") for raw in gathered_bytes(text.encode("utf-8", "surrogateescape"))]


def summed(value: Tensor | None) -> Tensor | None:
    """The sum of all processes' tensors; one that has none, having had no batch, adds nothing.

    Args:
        value: of one shape in all processes that have one.

    Returns:
        The sum, of the same dtype, on the CPU; None if no process has anything.
    """
    if processes().count == 1:
        return value
    shape = [] if value is None else list(value.shape)
    assert len(shape) <= _DIMS
    whole = value is not None and not value.is_floating_point()
    facts = gathered([value is not None, whole, len(shape), *shape, *([0] * (_DIMS - len(shape)))])
    known = next((row for row in facts if row[0]), None)
    if known is None:
        return None
    dims = known[3 : 3 + known[2]]
    own = torch.zeros(dims) if value is None else value.detach()
    total = own.to(_device(), torch.int64 if known[1] else torch.float64, copy=True)
    dist.all_reduce(total)
    return total.cpu()


@contextmanager
def watched(team: Processes) -> Iterator[None]:
    """While entered, this process gives signs of life, and an exchange that fails says which one gives none."""
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
