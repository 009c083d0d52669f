"""apical grows efficient PyTorch networks: from a small seed, under a budget, while your training loop runs."""

from apical.budget import Budget
from apical.errors import ApicalError
from apical.export import load, save
from apical.growth import Grower, GrowthConfig
from apical.resizing import DormantStore, ResizeReport, resize_, resize_state, trace
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
    "register_module",
    "register_op",
    "resize_",
    "resize_state",
    "save",
    "trace",
]
