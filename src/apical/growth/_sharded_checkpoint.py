"""Checkpoints of a sharded model while it grows: each process writes its own part, any number of them reads."""

from __future__ import annotations

import io
import json
import pickle
import zlib
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from apical._atomic import atomic_file
from apical._reading import LARGEST_TEXT, read_object, regular
from apical.errors import CheckpointError
from apical.growth._grower import Grower
from apical.resizing._shards import is_sharded

MARK = "divided tensor "  # stands, with its number, for a tensor that the processes share
REST = "rest"
SUMS = "checksums.json"  # of all other files: torch notices neither a bit that changed nor parts that changed places
_PIECE = 2**20


def save_sharded(folder: Path | str, grower: Grower, optimizer: Optimizer) -> None:
    """Save a sharded model, its optimizer and its growth by ``torch.distributed.checkpoint``; all processes call it.

    No process gathers anything. Call it after `Grower.end_epoch`, and save what else your loop needs yourself. The
    folder is whole when the call returns in all processes: write to a new one each time, and remove older ones after.

    Args:
        folder: is made if it is not there; the same for all processes.
        grower: with the model that it grows.
        optimizer: the one that the Grower was given.

    Example:
        >>> import inspect
        >>> list(inspect.signature(save_sharded).parameters)  # called by all processes of a run under torchrun
        ['folder', 'grower', 'optimizer']
    """
    from torch.distributed.checkpoint.state_dict_saver import save  # slow to import

    growth = grower.state_dict()  # first: it brings the model to rest
    state = {"grower": growth, "model": grower.model.state_dict(), "optimizer": optimizer.state_dict()}
    leaves, containers = pytree.tree_flatten(state)
    divided = {str(i): leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and is_sharded(leaf)}
    if not divided:
        raise CheckpointError("the model is not sharded, so save its state_dict, the optimizer's and the Grower's")
    written: dict[str, Any] = dict(divided)
    if torch.distributed.get_rank() == 0:
        marked = [MARK + str(i) if str(i) in divided else leaf for i, leaf in enumerate(leaves)]
        held = io.BytesIO()
        torch.save(pytree.tree_unflatten(marked, containers), held)
        written[REST] = torch.frombuffer(bytearray(held.getvalue()), dtype=torch.uint8)
    save(written, checkpoint_id=str(folder))
    rank, count = torch.distributed.get_rank(), torch.distributed.get_world_size()
    names = sorted(path.name for path in Path(folder).iterdir() if path.is_file() and path.name != SUMS)
    sums = _from_all({name: _checksum(Path(folder) / name) for name in names[rank::count]})
    if rank == 0:
        with atomic_file(Path(folder) / SUMS) as aside:
            aside.write_text(json.dumps({name: known for found in sums for name, known in found.items()}))


def damage(folder: Path, rank: int = 0, count: int = 1) -> str | None:
    """Which file of a folder of `save_sharded` is not as it was written; None if all are, or older than checksums.

    Of ``count`` processes, that of this rank looks at some of the files.
    """
    if not (folder / SUMS).exists():
        return None if (folder / ".metadata").exists() else "there is none"
    try:
        sums = read_object(folder / SUMS, CheckpointError, "checksums by name", LARGEST_TEXT)
        for name in sorted(sums)[rank::count]:
            if Path(name).name != name or sums[name] != _checksum(folder / name):
                return f"{name} was changed since it was written"
    except (CheckpointError, OSError, ValueError) as error:
        return str(error)
    return None


def _checksum(path: Path) -> int:
    found = 0
    with regular(path).open("rb") as stream:
        while piece := stream.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found


def _from_all(own: Any) -> list[Any]:
    """What every process has, by rank."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def load_sharded(folder: Path | str, grower: Grower, optimizer: Optimizer) -> None:
    """Put a model, its optimizer and its growth back to what `save_sharded` saved; all processes call it.

    Args:
        folder: what `save_sharded` was given.
        grower: made anew with ``shard``, as it was made for the saved run, by any number of processes.
        optimizer: the one that the Grower was given.

    Raises:
        CheckpointError: the folder holds no such checkpoint, or one of another model, budget or configuration; nothing
            has changed then.

    Example:
        >>> import inspect
        >>> list(inspect.signature(load_sharded).parameters)  # called by all processes of a run under torchrun
        ['folder', 'grower', 'optimizer']
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load  # slow to import
    from torch.distributed.tensor import zeros

    like: Any = next((p for p in grower.model.parameters() if is_sharded(p)), None)
    if like is None:
        raise CheckpointError("this Grower's model is not sharded: make the Grower with shard=, as for the saved run")
    known, problem = _looked_at(Path(folder))
    found = next((text for text in _from_all(problem) if text is not None), None)
    if found is not None:
        raise CheckpointError(f"{folder} holds no checkpoint of save_sharded ({found}). {_EXPECTED}")
    rest = torch.empty(_size(known[REST]), dtype=torch.uint8, device="cpu")
    values: dict[str, Any] = {REST: rest}
    for key, what in known.items():
        if key != REST:
            size, dtype = _size(what), what.properties.dtype
            values[key] = zeros(size, dtype=dtype, device_mesh=like.device_mesh, placements=like.placements)
    try:
        load(values, checkpoint_id=str(folder))
        state = torch.load(io.BytesIO(rest.numpy().tobytes()), weights_only=True, map_location=like.to_local().device)
    except (Exception, CheckpointException) as error:  # torch's is none of Python's ordinary ones
        first = (str(error).strip().splitlines() or [""])[-1][:200]
        raise CheckpointError(f"{folder} cannot be read ({type(error).__name__}: {first}). {_EXPECTED}") from error

    def value(leaf: Any) -> Any:
        return values[leaf.removeprefix(MARK)] if isinstance(leaf, str) and leaf.startswith(MARK) else leaf

    state = pytree.tree_map(value, state)
    grower.load_state_dict(state["grower"])
    grower.model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


_EXPECTED = "Expected the folder that it was given, whole; go back to an older one if its saving was cut short"


def _looked_at(folder: Path) -> tuple[dict[str, Any], str | None]:
    """What tensors a folder holds, or what is wrong with it as far as this process looked."""
    try:
        known = _described(folder)
        _size(known[REST])
        return known, damage(folder, torch.distributed.get_rank(), torch.distributed.get_world_size())
    except Exception as error:  # noqa: BLE001 (a file that was changed may raise anything)
        return {}, f"{type(error).__name__}: {error}"


def _described(folder: Path) -> dict[str, Any]:
    """What tensors a folder holds. Torch describes them in a pickle, of which nothing but its own records is taken."""
    with (regular(folder / ".metadata")).open("rb") as stream:
        found = _Records(stream).load()
    known = dict(found.state_dict_metadata)
    odd = [key for key, what in known.items() if not isinstance(key, str) or type(what).__name__ != _TENSOR]
    if odd:
        raise CheckpointError(f"{odd[0]!r:.40} is no tensor")
    return known


class _Records(pickle.Unpickler):
    """Reads a pickle that holds nothing but the records of ``torch.distributed.checkpoint``."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):  # by which some releases of Python 3.11 pickle enumerations
            return _member
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if not dtype and (module, name) not in _ALLOWED:
            raise CheckpointError(f"it names {module}.{name}, which no such checkpoint has, and is not read")
        return super().find_class(module, name)


def _member(owner: Any, name: Any) -> Any:
    """A member of an enumeration, in the place of ``getattr``."""
    if not (isinstance(owner, type) and issubclass(owner, Enum) and name in owner.__members__):
        raise CheckpointError(f"it asks for {name!r:.40} of {owner!r:.60}, and is not read")
    return owner[name]


_TENSOR = "TensorStorageMetadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *((_METADATA, name) for name in ("Metadata", _TENSOR, "TensorProperties", "ChunkStorageMetadata",
                                     "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING")),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
}  # fmt: skip


def _size(what: Any) -> torch.Size:
    return torch.Size(what.size)
