"""Models by name: our own, torchvision's, timm's, or any callable."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apical import models
from apical._checks import nearest
from apical.errors import ConfigError

#: Names of the models that apical brings along.
MODELS = tuple(models.__all__)
_BUILT_FOR_TORCH = ("torchvision", "timm")  # whose builds must fit torch's


@dataclass(frozen=True)
class ModelConfig:
    """The full-size model.

    Attributes:
        name: a function or class of `apical.models` (``"resnet20"``), ``"torchvision:NAME"``, ``"timm:NAME"``, or
            ``"package.module:callable"`` for one of your own.
        options: its keyword arguments; the numbers of classes and of image channels are taken from the data.
        initial_weights: a file with a state_dict to start from (.safetensors, or .pt without anything but tensors);
            None starts from scratch.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("model: name is empty; expected for example 'resnet20' or 'torchvision:resnet50'")


def build_model(config: ModelConfig, **facts: Any) -> nn.Module:
    """Build the model for a data set, from torch's global random state.

    Args:
        config: name and keyword arguments.
        facts: what the data says, such as ``num_classes``, ``in_channels`` or ``vocab_size``: passed where the
            callable takes an argument of that name; ``in_channels`` also as ``in_chans``.

    Raises:
        ConfigError: there is no such model, its package is not installed or does not load, or it does not take these
            arguments.

    Example:
        >>> build_model(ModelConfig("resnet20", {"width": 4}), num_classes=7, in_channels=1).fc
        Linear(in_features=16, out_features=7, bias=True)
    """
    call, arguments = find_builder(config.name)
    names, free = _parameters(call)
    if "in_channels" in facts:
        facts["in_chans"] = facts["in_channels"]
    taken = {*names, *(["num_classes"] if free else []), *(["in_chans"] if config.name.startswith("timm:") else [])}
    known = {name: value for name, value in facts.items() if name in taken}
    return call_builder(call, {**arguments, **known, **config.options}, config.name)


_SIZES = {
    32: ("CifarResNet", "resnet20", "resnet56", "CifarVGG16", "vgg16", "ViT", "vit_small", "WideResNet", "wrn28_10"),
    224: ("MobileNetV1", "mobilenet_v1", "ResNet", "resnet18", "resnet34", "resnet50", "resnet101"),
}
"""Pixels of a side, for which the models of `apical.models` that take images are meant."""


def usual_input(name: str, model: nn.Module, options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Shape of one image as a model known by name usually takes it, (1, channels, height, width), or None."""
    library, _, rest = name.rpartition(":")
    if library in ("", "apical.models"):
        size = options.get("image_size") or next((size for size, names in _SIZES.items() if rest in names), None)
        return None if size is None else (1, options.get("in_channels", 3), size, size)
    if library == "timm":
        facts: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
        channels, *sides = facts.get("input_size") or (3,)
        if "img_size" in options:
            sides = [options["img_size"]] * 2 if isinstance(options["img_size"], int) else [*options["img_size"]]
        return (1, options.get("in_chans", channels), *sides) if sides else None
    if library == "torchvision":
        try:  # of the weights, whose preprocessing says what was trained on
            transforms = _import("torchvision.models", name).get_model_weights(rest).DEFAULT.transforms
            side = transforms.keywords["crop_size"]
        except (AttributeError, KeyError, TypeError, ValueError):  # a class, or of videos or detection
            return None
        return (1, 3, side, side) if isinstance(side, int) else None
    return None


@contextmanager
def tried_out(model: nn.Module, refused: str, advice: str = "") -> Iterator[None]:
    """While entered, the model is in eval mode and without gradients.

    Args:
        model: its mode is put back afterwards.
        refused: what is said of a model that does not run, before its own words.
        advice: what is said behind them.
    """
    training = model.training
    try:
        with torch.no_grad():
            model.eval()
            yield
    except Exception as error:
        raise ConfigError(f"{refused}: {type(error).__name__}: {str(error).strip()}{advice}") from error
    finally:
        model.train(training)


def check_outputs(model: nn.Module, example: Tensor, num_classes: int, name: str) -> None:
    """Refuse a model that does not run on the images, or gives something else than a logit per class."""
    refused = f"model {name} does not run on images of shape {tuple(example.shape[1:])}"
    with tried_out(model, refused, ". Set data.image_size or data.channels to what it expects."):
        outputs = model(example)
    if not isinstance(outputs, Tensor) or outputs.shape != (len(example), num_classes):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ConfigError(
            f"model {name} returns {got} for {len(example)} image, expected logits ({len(example)}, {num_classes}), "
            "one for each class of the data. Pass its argument for the number of classes with --set model.ARGUMENT=N."
        )


def call_builder(call: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> nn.Module:
    """Call what builds a model, with errors that name it."""
    names, free = _parameters(call)
    unknown = [key for key in arguments if key not in names and not free]
    if unknown:
        hint = nearest(unknown[0], names, ".")
        raise ConfigError(f"model {name} takes no argument {unknown[0]!r}{hint} It takes {', '.join(names)}.")
    if isinstance(call, nn.Module):
        return call
    try:
        model = call(**arguments)
    except Exception as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ConfigError(f"model {name} cannot be built with {shown or 'no arguments'}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{name} returns a {type(model).__name__}, expected a torch.nn.Module")
    return model


def import_callable(spec: str) -> Callable[..., Any]:
    """What ``package.module:name`` names; modules in the current folder are found too."""
    module_name, sign, attribute = spec.partition(":")
    if not sign or not module_name or not attribute:
        with_colon = ":".join(spec.rsplit(".", 1))
        hint = f"; did you mean {with_colon!r}?" if not sign and "." in spec else ", for example my_package.nets:Net"
        raise ConfigError(f"{spec!r}: expected package.module:callable{hint}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(module_name, spec)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            raise ConfigError(f"{spec}: {module_name} has no {part!r}{nearest(part, public)}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{spec} is a {type(found).__name__}, expected something that builds a model")
    made: Callable[..., Any] = found
    return made


def _import(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        hint = (
            f"install it (pip install {missing})"
            if missing in _BUILT_FOR_TORCH
            else "run in the folder that has it, or install it"
        )
        raise ConfigError(f"{spec}: there is no module {missing!r}; {hint}") from error
    except Exception as error:
        hint = (
            f"Its build may not fit torch {torch.__version__}: take both from one place, in one command, such as "
            "pip install --upgrade torch torchvision."
            if name.partition(".")[0] in _BUILT_FOR_TORCH
            else "Import it in Python to see where."
        )
        raise ConfigError(f"{spec}: {name} does not load: {type(error).__name__}: {error}. {hint}") from error


def find_builder(name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The callable that a model's name stands for, and the arguments that naming it implies.

    Example:
        >>> find_builder("apical.models.resnet20")
        Traceback (most recent call last):
        apical.errors.ConfigError: 'apical.models.resnet20': expected package.module:callable; did you mean ...
    """
    library, sign, rest = name.partition(":")
    if not sign:
        if "." in name:
            return import_callable(name), {}  # says where the colon belongs
        if name not in MODELS:
            raise ConfigError(
                f"there is no model {name!r}{nearest(name, MODELS, '.')} apical.models has "
                f"{', '.join(MODELS)}; others are torchvision:NAME, timm:NAME and package.module:callable"
            )
        return getattr(models, name), {}
    if library == "torchvision":
        return import_callable(f"torchvision.models:{rest}"), {}
    if library == "timm":
        create = import_callable("timm:create_model")
        listed = _import("timm", name).list_models()
        if rest.split(".")[0] not in listed:
            raise ConfigError(f"timm has no model {rest!r}{nearest(rest, listed)}")
        return create, {"model_name": rest}
    return import_callable(name), {}


def _parameters(call: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of the keyword arguments, and whether any other are taken too."""
    try:
        parameters = inspect.signature(call).parameters.values()
    except (TypeError, ValueError):
        return [], True
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return [p.name for p in parameters if p.kind in kinds], free
