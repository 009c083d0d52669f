"""apical grows efficient PyTorch networks: from a small seed, under a budget, while your training loop runs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from apical.errors import ApicalError

if TYPE_CHECKING:
    from apical.budget import Budget
    from apical.export import load, save
    from apical.growth import Grower, GrowthConfig
    from apical.resizing import DormantStore, ResizeReport, load_structure, resize_, resize_state, save_structure, trace
    from apical.structure import ChannelGroup, SkippableBlock, Structure, register_module, register_op

__version__ = "0.1.0"

__all__ = [
    "ApicalError",
    "Budget",
    "ChannelGroup",
    "DormantStore",
    "Grower",
    "GrowthConfig",
    "ResizeReport",
    "SkippableBlock",
    "Structure",
    "__version__",
    "load",
    "load_structure",
    "register_module",
    "register_op",
    "resize_",
    "resize_state",
    "save",
    "save_structure",
    "trace",
]

# Where each name lives. Imported when first asked for (PEP 562), so that `apical --help` need not wait for torch.
_HOMES = {
    "budget": ("Budget",),
    "export": ("load", "save"),
    "growth": ("Grower", "GrowthConfig"),
    "resizing": (
        "DormantStore",
        "ResizeReport",
        "load_structure",
        "resize_",
        "resize_state",
        "save_structure",
        "trace",
    ),
    "structure": ("ChannelGroup", "SkippableBlock", "Structure", "register_module", "register_op"),
}
_HOME = {name: package for package, names in _HOMES.items() for name in names}
_OTHERS = ("baselines", "data", "models", "quantize", "recipes", "reporting", "runs", "timing", "training")
_PACKAGES = (*_HOMES, *_OTHERS)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"apical.{_HOME[name]}"), name)
    elif name in _PACKAGES:
        value = import_module(f"apical.{name}")
    else:
        raise AttributeError(f"module 'apical' has no attribute {name!r}", name=name, obj=import_module(__name__))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_PACKAGES, "errors"})
