"""Everything random, and what each process alone has in the middle of an epoch: its generators and its streams."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from apical.errors import CheckpointError
from apical.training._checkpoint import require_plain
from apical.training._processes import Processes, any_of_all, gathered_bytes
from apical.training._task import StreamTask, Task


def stream_of(task: Task) -> Any:
    """What a task hands on to the next batch; None if it hands on nothing."""
    return task.state if isinstance(task, StreamTask) else None


def hand_on_(task: Task, stream: Any, device: torch.device) -> None:
    """Let a task's next batch go on with a state that was saved; None changes nothing."""
    if stream is not None and isinstance(task, StreamTask):
        task.state = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, stream)


def can_be_kept(task: Task) -> bool:
    """Whether what a task hands on can be written into a checkpoint, in every process."""
    try:
        require_plain(stream_of(task), "state")
    except CheckpointError:
        return not any_of_all(1)
    return not any_of_all(0)


def own_states(stream: Any) -> list[dict[str, Any]]:
    """What each process has, by rank, on the CPU; all processes call it."""
    held = io.BytesIO()
    torch.save({"random": random_state(), "stream": stream}, held)
    return [
        torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True) for raw in gathered_bytes(held.getvalue())
    ]


def own_of(states: Any, team: Processes) -> dict[str, Any] | None:
    """This process' part of what `own_states` returned; None if it was of another number of processes.

    Args:
        states: as found in a checkpoint; None where it does not lie within an epoch.
        team: the processes that go on.
    """
    if states is None:
        return None
    if not isinstance(states, Sequence) or not all(isinstance(own, Mapping) for own in states):
        raise CheckpointError(f"what each process had is a {type(states).__name__}, expected a list of states")
    if len(states) != team.count:
        return None
    own = states[team.rank]
    return {"random": own["random"], "stream": own["stream"]}


def seed_everything(seed: int) -> None:
    """Seed Python's and torch's generators, those of all CUDA devices included.

    Example:
        >>> seed_everything(1)
        >>> first = torch.rand(2)
        >>> seed_everything(1)
        >>> bool((torch.rand(2) == first).all())
        True
    """
    random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of all generators, in plain containers and tensors."""
    return {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore `random_state()`. States of CUDA devices that this machine does not have are left out."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state.cpu(), index)


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Allow only deterministic algorithms inside the block, if `enabled`, and put the switches back after it."""
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
