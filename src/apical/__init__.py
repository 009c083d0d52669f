"""apical grows efficient PyTorch networks: from a small seed, under a budget, while your training loop runs."""

from apical.errors import ApicalError
from apical.resizing import DormantStore, ResizeReport, resize_, trace
from apical.structure import ChannelGroup, SkippableBlock, Structure, register_module, register_op

__version__ = "0.1.0"

__all__ = [
    "ApicalError",
    "ChannelGroup",
    "DormantStore",
    "ResizeReport",
    "SkippableBlock",
    "Structure",
    "__version__",
    "register_module",
    "register_op",
    "resize_",
    "trace",
]
