"""`save`: a compact model as JSON and safetensors."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from apical.errors import LoadError, ResizeError
from apical.export._format import ARCHITECTURE, WEIGHTS, Architecture, SavedTensor, file_digest, size_attributes
from apical.resizing import StandIn, refuse_wrapped
from apical.structure import tensor_specs


def save(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write ``architecture.json`` and ``model.safetensors`` into a folder, which is made if need be.

    Both files are replaced atomically, the weights first. Every parameter and buffer is saved, shared ones once.

    Args:
        model: any module, usually after `apical.resize_` or ``Grower.finish``.
        folder: where to write.

    Returns:
        The folder.

    Raises:
        ResizeError: if the model is wrapped (DDP, ``torch.compile``) or on the meta device.
        OSError: if the folder cannot be written.

    Example:
        >>> import tempfile, torch, apical
        >>> net = torch.nn.Linear(2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = apical.save(net, folder)
        ...     copy = apical.load(torch.nn.Linear(2, 3), folder)
        >>> torch.equal(copy.weight, net.weight)
        True
    """
    refuse_wrapped(model, ResizeError)
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
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    weights = path / (WEIGHTS + ".tmp")
    try:
        save_file({n: live[n].detach().cpu().contiguous().clone() for n in specs}, weights)
    except (ValueError, KeyError) as problem:  # types that safetensors does not know
        weights.unlink(missing_ok=True)
        raise LoadError(f"{architecture.model} cannot be written as safetensors: {problem}") from problem
    text = path / (ARCHITECTURE + ".tmp")
    text.write_text(architecture.to_json(file_digest(weights)), encoding="utf-8")
    weights.replace(path / WEIGHTS)
    text.replace(path / ARCHITECTURE)
    return path
