"""Starting from trained weights: a state_dict in a file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from apical._reading import read_text, regular
from apical.errors import ConfigError

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state")
_COUNTER = "num_batches_tracked"  # older files lack it, and nothing depends on it with a fixed momentum
_SHOWN = 5


def load_initial_weights_(model: nn.Module, path: str | Path, num_classes: int | None = None) -> list[str]:
    """Fill a full-size model from a file of weights.

    All names and shapes must fit, with two exceptions: a layer that gives one output per class, trained for another
    number of classes, keeps its initialisation; and the file may be that of a classifier whose features are the
    model's ``backbone``, so that only this is filled. Nothing is loaded if anything else does not fit.

    Args:
        model: freshly built.
        path: a .safetensors file, or one that ``torch.save(model.state_dict(), path)`` wrote; it is never unpickled. Or
            the folder of a finished run that trained the full-size model.
        num_classes: outputs of the model's own heads.

    Returns:
        What was not taken from the file, a sentence each.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(nn.Linear(4, 7).state_dict(), f"{folder}/seven.pt")
        ...     load_initial_weights_(nn.Linear(4, 3), f"{folder}/seven.pt", num_classes=3)
        ['bias and weight keep their initialisation: the file has 7 outputs, the model 3']
    """
    path = Path(path)
    values = read_weights(path)
    own = model.state_dict()
    notes: list[str] = []
    if not set(values) & set(own) and isinstance(backbone := getattr(model, "backbone", None), nn.Module):
        own = backbone.state_dict()
        left = sorted(set(values) - set(own))
        values = {name: value for name, value in values.items() if name in own}
        notes.append(
            f"{path} fills the backbone only; everything else keeps its initialisation"
            + (f", and {_list(left)} of the file is not used" if left else "")
        )
        model = backbone
    heads = [name for name in values if name in own and _other_classes(values[name], own[name], num_classes)]
    problems = [f"{name} is missing" for name in own if name not in values and not name.endswith(_COUNTER)]
    problems += [f"{name} is not in the model" for name in values if name not in own]
    problems += [
        f"{name} is {tuple(value.shape)} in the file and {tuple(own[name].shape)} in the model"
        for name, value in values.items()
        if name in own and name not in heads and value.shape != own[name].shape
    ]
    if problems:
        _refuse_other_run(path, type(model).__name__)
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise ConfigError(
            f"model.initial_weights: {path} does not fit {type(model).__name__}: {'; '.join(problems[:_SHOWN])}{more}. "
            "Expected the state_dict of the same full-size model; check model.name and its arguments."
        )
    if heads:
        got, wanted = values[heads[0]].shape[0], own[heads[0]].shape[0]
        notes.append(
            f"{_list(sorted(heads))} keep their initialisation: the file has {got} outputs, the model {wanted}"
        )
    model.load_state_dict({**own, **{name: value for name, value in values.items() if name not in heads}})
    return notes


def _refuse_other_run(path: Path, model: str) -> None:
    """Say so in a sentence if what does not fit is the network of a run that trained another one."""
    folder = path if path.is_dir() else path.parent
    try:
        content = json.loads(read_text(folder / "config.json"))
        recipe, method, name = content["recipe"], content["method"], content["model"]["name"]
        options = [f"{option}={value}" for option, value in content["model"]["options"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # not one of ours
    smaller = "" if method == "dense" else f", by method {method}, which made the network smaller than it was built"
    built = ", ".join([name, *options])
    raise ConfigError(
        f"model.initial_weights: {path} is a run of the recipe {recipe} (model {built}){smaller}; its weights do not "
        f"fit this {model}. Expected the same full-size model: a file of its weights, or the folder of a run of this "
        "recipe with --method dense."
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU; the wrappers that training scripts put around them are taken off."""
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():
            raise ConfigError(
                f"model.initial_weights: {path.parent} holds no {path.name}; expected a file of weights, or the folder "
                "of a finished run that trained the full-size model (--method dense)"
            )
    try:
        regular(path)
        content: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"model.initial_weights: {path} does not exist") from None
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"model.initial_weights: {path} holds more than tensors and plain containers, and loading it could run "
            "code. Save model.state_dict() where you trust the file, or convert it to safetensors."
        ) from error
    except Exception as error:  # what is no such file may raise anything
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise ConfigError(
            f"model.initial_weights: {path} cannot be read ({reason}); expected a .safetensors file, or one that "
            "torch.save(model.state_dict(), …) wrote"
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    tensors = (
        isinstance(content, Mapping)
        and content
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )
    if not tensors:
        raise ConfigError(f"model.initial_weights: {path} holds no state_dict (tensors by name)")
    return dict(content)


def _other_classes(value: Tensor, own: Tensor, num_classes: int | None) -> bool:
    return (
        num_classes is not None
        and value.dim() == own.dim() > 0
        and own.shape[0] == num_classes != value.shape[0]
        and value.shape[1:] == own.shape[1:]
    )


def _list(names: list[str]) -> str:
    """Names in a sentence, the first few of them."""
    if len(names) > _SHOWN:
        return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
