"""`save`: a compact model as JSON and safetensors."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from apical._atomic import asides, flush_to_disk, lock_file, make_folder, new_aside
from apical._checks import as_path
from apical.errors import LoadError, ResizeError, SaveError, why_not_written
from apical.export._format import ARCHITECTURE, WEIGHTS, Architecture, SavedTensor, file_digest, size_attributes
from apical.quantize import QuantizedTensor, pack
from apical.quantize._packing import check_quantized
from apical.resizing._guards import refuse_wrapped
from apical.resizing._stand_in import StandIn
from apical.structure._analyse import tensor_specs

LOCK = ".apical-save.lock"
LOCK_PATIENCE_S = 600.0


def save(
    model: nn.Module, folder: str | os.PathLike[str], *, quantized: Mapping[str, QuantizedTensor] | None = None
) -> Path:
    """Write ``architecture.json`` and ``model.safetensors`` into a folder, which is made if need be.

    The folder changes as a whole: stopped at any moment, by a kill or a full disk, it holds either the model that was
    saved there before or this one, and `load` finds it. What is written is on the disk when this returns. Several
    processes or threads that save into one folder do so one after the other. Every parameter and buffer is saved,
    shared ones once.

    Args:
        model: any module, usually after `apical.resize_` or ``Grower.finish``.
        folder: where to write.
        quantized: bits and scale of weights that are integers times a scale, by name (``Grower.quantized``). They are
            written as codes of so many bits, so that the file of weights is as large as the budget of size says;
            `load` finds the weights as they are, to the last bit.

    Returns:
        The folder.

    Raises:
        ResizeError: if the model is wrapped (DDP, ``torch.compile``) or on the meta device.
        SaveError: (an `OSError`) if the folder cannot be written, or somebody else is saving there for ten minutes.
        LoadError: if a tensor has a type that safetensors does not know, or a weight is not what ``quantized`` says.

    Example:
        >>> import tempfile, torch, apical
        >>> net = torch.nn.Linear(2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = apical.save(net, folder)
        ...     copy = apical.load(torch.nn.Linear(2, 3), folder)
        >>> torch.equal(copy.weight, net.weight)
        True
    """
    path = as_path(folder, "folder", SaveError)
    refuse_wrapped(model, ResizeError)
    architecture, tensors = describe(model)
    check_quantized(quantized, tensors, LoadError)
    if quantized:
        architecture, tensors = _packed(architecture, tensors, quantized)
    try:
        make_folder(path)
        with lock_file(path / LOCK, LOCK_PATIENCE_S) as locked:
            _replace(path, architecture, tensors)
            for left in (*asides(path / WEIGHTS), *asides(path / ARCHITECTURE)) if locked else ():
                _remove(left)  # of a save that was killed
    except BlockingIOError as problem:
        raise SaveError(
            f"cannot write {path}: another process has been saving there for {LOCK_PATIENCE_S:.0f} seconds. Wait until "
            "it has ended, or choose another folder."
        ) from problem
    except (OSError, SafetensorError) as problem:
        why = why_not_written(path, problem) if isinstance(problem, OSError) else problem
        raise SaveError(
            f"cannot write {path}: {why}. Free space, make it writable, or choose another folder; a model that was "
            "saved there before can still be loaded."
        ) from problem
    return path


def describe(model: nn.Module) -> tuple[Architecture, dict[str, Tensor]]:
    """What `ARCHITECTURE` says about a model, and the tensors that `WEIGHTS` holds, by name, on the CPU."""
    specs = tensor_specs(model)
    live: dict[str, Tensor] = {**dict(model.named_parameters(remove_duplicate=False)),
                               **dict(model.named_buffers(remove_duplicate=False))}  # fmt: skip
    architecture = Architecture(
        model=f"{type(model).__module__}.{type(model).__qualname__}",
        tensors={
            n: SavedTensor(
                s.shape, str(live[n].dtype).removeprefix("torch."), "parameter" if s.is_parameter else "buffer"
            )
            for n, s in specs.items()
        },
        aliases={alias: n for n, s in specs.items() for alias in s.aliases},
        removed=tuple(path for path, module in model.named_modules() if type(module) in (nn.Identity, StandIn)),
        attributes=size_attributes(model),
        stand_ins={path: module.returns for path, module in model.named_modules() if isinstance(module, StandIn)},
    )
    return architecture, {n: live[n].detach().cpu().contiguous().clone() for n in specs}


def _packed(
    architecture: Architecture, tensors: dict[str, Tensor], quantized: Mapping[str, QuantizedTensor]
) -> tuple[Architecture, dict[str, Tensor]]:
    bits = {name: quantized[name].bits for name in tensors if name in quantized}
    return replace(architecture, quantized=bits), pack(tensors, quantized)


def _replace(path: Path, architecture: Architecture, tensors: Mapping[str, Tensor]) -> None:
    """Write both files aside; then the architecture changes the folder's model, in one step, and the weights follow.

    The architecture states the digest of its weights, by which `load` finds them under the name aside, too.
    """
    written: list[Path] = []
    try:
        for name in (WEIGHTS, ARCHITECTURE):
            written.append(new_aside(path / name))
        weights, text = written
        _write_weights(dict(tensors), weights, architecture.model)
        flush_to_disk(weights)
        text.write_text(architecture.to_json(file_digest(weights)), encoding="utf-8")
        flush_to_disk(text)
        flush_to_disk(path)
        text.replace(path / ARCHITECTURE)
    except BaseException:
        if len(written) < 2 or written[1].exists():  # else the folder's model is the new one already
            for aside in written:
                aside.unlink(missing_ok=True)
        raise
    flush_to_disk(path)
    weights.replace(path / WEIGHTS)
    flush_to_disk(path)


def _write_weights(tensors: dict[str, Tensor], aside: Path, model: str) -> None:
    """Through a folder of its own: safetensors writes beside its target under a name that nobody could tidy up."""
    with tempfile.TemporaryDirectory(prefix=f".{WEIGHTS}.", suffix=".tmp", dir=aside.parent) as private:
        file = Path(private) / WEIGHTS
        try:
            save_file(tensors, file)
        except (ValueError, KeyError) as problem:  # types that safetensors does not know
            raise LoadError(f"{model} cannot be written as safetensors: {problem}") from problem
        shutil.copymode(aside, file)  # that of an ordinary file; safetensors lets nobody else read it
        file.replace(aside)


def _remove(left: Path) -> None:
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)
