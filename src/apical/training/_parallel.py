"""Data-parallel training of a model that changes: wrapping, re-wrapping, and the proof that all processes agree.

Every process holds the whole model and takes every structural decision by itself: the gradients that move the scores
are averaged already, and the sampler's generator has one seed. Nothing about the structure is sent; after every
restructuring a fingerprint of a few bytes is compared.
"""

from __future__ import annotations

import hashlib
import inspect
import struct
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from apical.errors import ConfigError, TrainingError
from apical.training._processes import Processes, gathered, processes
from apical.training._sync_norm import separate_norms_, synchronise_norms_

RANK_SEED = 1_000_003  # keeps the processes' random streams apart


class Replica:
    """This process' model as training calls it: the plain model, or its data-parallel wrapper.

    The one place where models are wrapped. `refresh` it after a restructuring.

    Args:
        model: the plain model; it stays the user's own.
        device: where it is.
        sync_batchnorm: whether batch norms see the batches of all processes.
        compile_mode: how torch compiles what training calls, once `set_compiled` says that it is to be compiled.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, sync_batchnorm: bool, compile_mode: str = "default"
    ) -> None:
        self._model, self._device, self._compiled, self._mode = model, device, False, compile_mode
        self._graphs = 0  # that had been compiled in this process when last asked
        self.team = processes()
        self._synchronised = sync_batchnorm and self.team.count > 1
        if self._synchronised:
            synchronise_norms_(model, device)
        self._wrapped: nn.Module | None = None
        self._held: list[nn.Parameter] = []  # what the wrapper holds on to

    @property
    def module(self) -> nn.Module:
        """What the training step calls; wrapped when first asked for."""
        if self._wrapped is None:
            self._held = list(self._model.parameters())
            self._wrapped = self._wrap()
        return self._wrapped

    def set_compiled(self, compiled: bool) -> None:
        """Whether what training calls is compiled, from the next step on."""
        if compiled != self._compiled:
            self._compiled, self._wrapped, self._held = compiled, None, []

    def newly_compiled(self) -> int:
        """How many graphs torch.compile has compiled since it was last asked, to be asked after every step."""
        if not self._compiled or self._wrapped is None:
            return 0
        before, self._graphs = self._graphs, _graphs_compiled()
        return self._graphs - before

    def refresh(self, where: str, *, if_changed: bool = False) -> None:
        """After a restructuring: checks that all processes have the same model, and wraps it anew in the next step.

        The old wrapper is let go, whose hooks hold on to the parameters that are replaced. If nothing was, it is kept.

        Args:
            where: the words by which an error names this moment.
            if_changed: do nothing at all unless parameters were replaced, to be called after every step.

        Raises:
            TrainingError: the models differ.
        """
        if self._wrapped is not None:
            now = list(self._model.parameters())
            if len(now) != len(self._held) or any(a is not b for a, b in zip(now, self._held, strict=True)):
                self._wrapped, self._held = None, []
            elif if_changed:
                return
        check_same_everywhere(self._model, where)

    def share_statistics_(self, *others: nn.Module | None) -> None:
        """Gives all processes the first one's buffers, where each kept running statistics of its own."""
        if self.team.count == 1 or self._synchronised:
            return
        with torch.no_grad():
            for module in (self._model, *others):
                for buffer in () if module is None else module.buffers():
                    dist.broadcast(buffer, 0)

    def finish(self) -> None:
        """Leaves the plain model, with the classes that it came with."""
        self._wrapped, self._held = None, []
        separate_norms_(self._model)

    def _wrap(self) -> nn.Module:
        wrapped = self._model
        if self.team.count > 1:
            ids = None if self._device.type == "cpu" else [self._device.index]
            wrapped = DistributedDataParallel(wrapped, device_ids=ids, **_buffers(not self._synchronised))
        if not self._compiled:
            return wrapped
        torch.compiler.reset()  # else torch gives up after eight networks, and runs the others as they are
        self._graphs = _graphs_compiled()
        return torch.compile(wrapped, mode=self._mode)  # type: ignore[return-value]


def _graphs_compiled() -> int:
    """Of this process, ever; torch tells no other way than by its own statistics."""
    from torch._dynamo.utils import counters  # slow to import, and only compiled runs need it

    return int(counters["stats"]["unique_graphs"])


def _buffers(shared: bool) -> dict[str, Any]:
    """Whether the wrapper sends the first process' buffers to all before each step; torch renamed the argument."""
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if new else "broadcast_buffers": shared}


def check_same_everywhere(model: nn.Module, where: str) -> None:
    """Compares the models of all processes by a fingerprint of 16 bytes each; does nothing in one process alone.

    Args:
        model: the plain model, not its wrapper.
        where: the words by which an error names this moment.

    Raises:
        TrainingError: they differ; every process raises it.

    Example:
        >>> check_same_everywhere(nn.Linear(2, 3), "at the start")
    """
    team = processes()
    if team.count == 1:
        return
    found = gathered(fingerprint(model))
    structures, values = zip(*found, strict=True)
    for kind, prints in (("structure (names and shapes of the parameters)", structures), ("weights", values)):
        odd = [rank for rank, own in enumerate(prints) if own != prints[0]]
        if odd:
            raise TrainingError(
                f"the processes no longer train the same network: {kind} of process {', '.join(map(str, odd))} and of "
                f"process 0 differ {where}; this is process {team.rank}. Something that decides was not the same in "
                "all of them: the seed, the version of apical or torch, a device of another kind, or code of your own "
                "that draws random numbers or changes weights. Make them equal, then resume from the last checkpoint."
            )


def fingerprint(model: nn.Module) -> tuple[int, int]:
    """Two numbers of 64 bits: of the parameters' names and shapes, and of their values.

    Units of the same number but of other positions have other values, so both together tell structures apart.

    Example:
        >>> torch.manual_seed(0) is not None
        True
        >>> one, two = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> fingerprint(one)[0] == fingerprint(two)[0], fingerprint(one)[1] == fingerprint(two)[1]
        (True, False)
    """
    shapes, sums = hashlib.sha256(), hashlib.sha256()
    numbers: list[Tensor] = []
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            shapes.update(f"{name}{tuple(parameter.shape)}{parameter.dtype};".encode())
            values = parameter.detach().flatten()
            wide = values.double() if values.device.type != "mps" else values.float()
            numbers.append(torch.stack([wide.sum(), wide[::2].sum(), wide.square().sum()]))
    sums.update(torch.cat(numbers).cpu().double().numpy().tobytes() if numbers else b"")
    return _whole(shapes), _whole(sums)


def _whole(digest: hashlib._Hash) -> int:
    return int(struct.unpack("<q", digest.digest()[:8])[0])


def process_seed(seed: int, epoch: int, team: Processes) -> int | None:
    """The seed of everything that a process draws in an epoch by itself, such as dropout; None in one process alone.

    One alone goes on with the generator that it has. Several start each epoch anew, each with a stream of its own, so
    that a run can be resumed by any number of processes from one checkpoint.
    """
    return None if team.count == 1 else (seed + RANK_SEED * (epoch * team.count + team.rank)) % 2**63


def refuse_unshared(loaders: Mapping[str, Any], team: Processes) -> None:
    """Raises if a loader does not give each process its own share of the batches.

    Raises:
        ConfigError: saying which.
    """
    for name, loader in loaders.items():
        share = (getattr(loader, "rank", 0), getattr(loader, "world_size", 1))
        if loader is not None and share != (team.rank, team.count):
            raise ConfigError(
                f"{team.count} processes train together, but the {name} loader ({type(loader).__name__}) is that of "
                f"process {share[0]} of {share[1]}: all would compute the same batches. Expected a loader with "
                f"rank={team.rank} and world_size={team.count} (apical.training.processes() knows both), such as "
                "apical.data.ImageLoader(..., rank=, world_size=)."
            )
