"""Import torchvision without its compiled operators, as the CPU build of torch that the tests pin requires.

``import torchvision`` registers a fake kernel for ``torchvision::nms``, an operator that only its compiled extension
defines. Declaring the operators' signatures first is enough for models and transforms, which never call them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType

import torch

_SIGNATURES = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_KEEP_ALIVE: list[torch.library.Library] = []


def has_torchvision() -> bool:
    """Whether torchvision is installed, be it with or without its compiled operators."""
    return importlib.util.find_spec("torchvision") is not None


def import_torchvision() -> ModuleType:
    """The torchvision module; its operators are declared first if its own extension does not load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchvision")
        except RuntimeError:
            return _import_with_declared_operators()


def _import_with_declared_operators() -> ModuleType:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for signature in _SIGNATURES:
        library.define(signature)
    _KEEP_ALIVE.append(library)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return importlib.import_module("torchvision")
