"""Checkpoints that a crash cannot spoil: written aside, flushed, moved into place; the one before is kept."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from apical._atomic import atomic_file
from apical._reading import regular
from apical.errors import CheckpointError

FORMAT = "apical-checkpoint"
VERSION = 1
DATA, CONTENTS = "data", "contents"  # of a run's identity: the settings of its data, and what the data hold
CURRENT, PREVIOUS, TORN = "checkpoint.pt", "checkpoint.prev.pt", "checkpoint.torn.pt"


@dataclass(frozen=True)
class Checkpoint:
    """A run between two epochs."""

    epoch: int  # number of completed epochs
    identity: Mapping[str, Any]  # what a resumed run must have alike: its configuration, in plain containers
    state: Mapping[str, Any]  # the states of model, optimizer, method, generators, loader and history, by name


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write `checkpoint.pt`; what was there becomes `checkpoint.prev.pt`.

    Whenever the process dies, at least one whole checkpoint is in the folder.
    """
    payload = {"format": FORMAT, "version": VERSION, **vars(checkpoint)}
    require_plain(payload, "checkpoint")
    path = folder / CURRENT
    try:
        with atomic_file(path, folder / PREVIOUS) as aside, aside.open("wb") as stream:
            torch.save(pytree.tree_map(_written_out, payload), stream)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(
            f"cannot write {path}: {error}. The last whole checkpoint in {folder} is untouched; free space or make "
            "the folder writable, then resume the run."
        ) from error
    return path


def load_checkpoint(
    folder: Path, identity: Mapping[str, Any] | None = None, notify: Callable[[str], None] = lambda _: None,
    damage: Callable[[Mapping[str, Any]], str | None] = lambda _: None,
) -> Checkpoint:  # fmt: skip
    """Read the newest whole checkpoint of a run folder, never a pickle.

    A torn `checkpoint.pt` is set aside as `checkpoint.torn.pt`, the previous one is taken, and `notify` is told.

    Args:
        folder: the run folder.
        identity: the configuration of the run that wants to resume; None accepts any.
        notify: receives messages for people.
        damage: what is wrong with other files that a state names; such a checkpoint counts as torn.
    """
    problems: list[str] = []
    for name in (CURRENT, PREVIOUS):
        path = folder / name
        if not path.exists():
            problems.append(f"{name} does not exist")
            continue
        try:
            checkpoint = _recognise(_read(path), path)
            problem = damage(checkpoint.state)
            if problem is not None:
                raise _TornError(f"{name} is torn ({problem})")
        except _TornError as error:
            problems.append(str(error))
            if name == CURRENT and (folder / PREVIOUS).exists():
                _set_aside(path, folder / TORN)
            continue
        if identity is not None:
            _require_same_run(checkpoint.identity, identity, path)
        if problems:
            notify(f"{problems[0]}; resuming from {name}, after epoch {checkpoint.epoch}")
        return checkpoint
    raise CheckpointError(
        f"no usable checkpoint in {folder}: {'; '.join(problems)}. Expected a run folder with a whole {CURRENT}; start "
        "the run again, or copy the folder anew."
    )


def has_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint, whole or torn."""
    try:
        return (folder / CURRENT).exists() or (folder / PREVIOUS).exists()
    except (OSError, ValueError):  # no folder can have this name, or it may not be entered
        return False


def saved_identity(folder: Path) -> Mapping[str, Any]:
    """The identity that the newest whole checkpoint of a folder holds; empty if there is none. Nothing is changed."""
    for name in (CURRENT, PREVIOUS):
        try:
            return _recognise(_read(folder / name), folder / name).identity
        except (_TornError, CheckpointError):
            continue
    return {}


def _set_aside(path: Path, torn: Path) -> None:
    try:
        path.replace(torn)
    except OSError as error:
        raise CheckpointError(
            f"{path} is torn, and cannot be moved aside to {torn}: {error}. Remove it, so that the checkpoint before "
            "it is taken."
        ) from error


class _TornError(Exception):
    """The file is not a whole zip archive of tensors, or not all of a checkpoint is in it."""


def _read(path: Path) -> Any:
    try:
        regular(path)
        with zipfile.ZipFile(path) as archive:
            if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
                raise _TornError(f"{path.name} is torn (packed, which torch.save never does)")
            damaged = archive.testzip()
        if damaged is not None:
            raise _TornError(f"{path.name} is damaged (checksum of {damaged} is wrong)")
        content = torch.load(path, map_location="cpu", weights_only=True)
        size = path.stat().st_size
        if any(_nbytes(leaf) > size for leaf in pytree.tree_leaves(content)):
            raise _TornError(f"{path.name} is torn (a tensor in it says to be larger than the file)")
        return content
    except PermissionError as error:
        raise CheckpointError(f"cannot read {path}: {error}. Make it readable for you.") from error
    except _TornError:
        raise
    except pickle.UnpicklingError as error:
        raise _TornError(
            f"{path.name} holds more than tensors and plain containers, and loading it could run code; expected a "
            f"checkpoint that apical wrote; it was not loaded"
        ) from error
    except Exception as error:  # a file that was changed may raise anything
        reason = (str(error).splitlines() or [""])[0][:120]
        raise _TornError(f"{path.name} is torn ({type(error).__name__}: {reason})") from error


def _nbytes(leaf: Any) -> int:
    """What a tensor takes once each of its elements is written out; one number can be stored as all of them."""
    return leaf.numel() * leaf.element_size() if isinstance(leaf, Tensor) and leaf.layout == torch.strided else 0


def _written_out(leaf: Any) -> Any:
    return leaf.contiguous() if is_expanded(leaf) else leaf


def is_expanded(leaf: Any) -> bool:
    """Whether something is a tensor of which one stored number stands for several, as `Tensor.expand` makes them."""
    return _nbytes(leaf) > 0 and _nbytes(leaf) > leaf.untyped_storage().nbytes()


def _recognise(payload: Any, path: Path) -> Checkpoint:
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of apical: expected format={FORMAT!r}, got "
            f"{payload.get('format') if isinstance(payload, dict) else type(payload).__name__!r}. Weights alone cannot "
            "be resumed; load them into the model instead."
        )
    version = payload.get("version")
    if type(version) is not int or version != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version!r:.40}, this apical reads version {VERSION}; resume with "
            "the apical that wrote it"
        )
    epoch, identity, state = (payload.get(name) for name in ("epoch", "identity", "state"))
    if type(epoch) is not int or epoch < 0:
        raise _TornError(f"{path.name} is incomplete: epoch is {epoch!r:.40}, expected a whole number")
    if not (_by_name(identity) and _by_name(state)):
        raise _TornError(f"{path.name} is incomplete: expected identity and state, values by name")
    return Checkpoint(epoch, identity, state)


def _by_name(part: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(part, dict) and all(isinstance(key, str) for key in part)


def _require_same_run(saved: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    found = sorted(differences(saved, wanted), key=lambda text: text.startswith(f"{CONTENTS}."))  # follow from settings
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        mend = (
            "The data are not those that the run was begun with: bring those back (or give their folder with --data)"
            if all(text.startswith(f"{CONTENTS}.") for text in found)
            else "Resume with the run's own configuration (config.json beside it)"
        )
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(found[:5])}{more}. {mend}, or start a new run in another "
            "folder."
        )


def differences(
    saved: Any, wanted: Any, names: tuple[str, str] = ("the checkpoint", "this run"), where: str = ""
) -> list[str]:
    """In words, in what two nests of settings, called by these names, differ.

    Example:
        >>> differences({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3})
        ['a.b is 1 in the checkpoint, 2 in this run', 'c is only in this run']
    """
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        found = []
        for key in sorted({*saved, *wanted}, key=str):
            inner = f"{where}.{key}" if where else str(key)
            if key not in saved or key not in wanted:
                found.append(f"{inner} is only in {names[0] if key in saved else names[1]}")
            else:
                found += differences(saved[key], wanted[key], names, inner)
        return found
    return [] if _same(saved, wanted) else [f"{where} is {saved!r} in {names[0]}, {wanted!r} in {names[1]}"]


def _same(saved: Any, wanted: Any) -> bool:
    """Equality of settings, among which a tensor, also one within a list, is none: it would compare by elements."""
    if isinstance(saved, Tensor):
        return False
    if isinstance(saved, list) and isinstance(wanted, list):
        return len(saved) == len(wanted) and all(map(_same, saved, wanted))
    if isinstance(saved, Mapping) and isinstance(wanted, Mapping):
        return not differences(saved, wanted)
    return bool(saved == wanted)


_PLAIN = (str, int, float, bool, bytes, complex, type(None))


def require_plain(value: Any, where: str) -> None:
    """Refuse what `torch.load(weights_only=True)` would later refuse to read.

    Example:
        >>> require_plain({"a": [1, (2.0, None)], "b": torch.zeros(2)}, "state")
        >>> require_plain({"a": [Path("x")]}, "state")
        Traceback (most recent call last):
        apical.errors.CheckpointError: state['a'][0] is a PosixPath; expected tensors, numbers, strings, lists, ...
    """
    if type(value) in _PLAIN or isinstance(value, (Tensor, torch.Size, torch.dtype, torch.device)):
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) not in _PLAIN:
                raise CheckpointError(f"{where} has a key of type {type(key).__name__}; expected strings or numbers")
            require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            require_plain(item, f"{where}[{index}]")
    else:
        raise CheckpointError(
            f"{where} is a {type(value).__name__}; expected tensors, numbers, strings, lists, tuples or dicts, so that "
            "the checkpoint can be read without running code. Convert it in state_dict()."
        )
