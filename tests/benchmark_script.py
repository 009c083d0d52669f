"""Scripts of benchmarks/ as modules, and images that take them seconds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    """A script of benchmarks/, whose imports look beside it, as when it is run."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


def random_images(_: Any = None) -> tuple[Tensor, Tensor]:
    """Images of eight pixels and labels, in the place of a setting's."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(512, 3, 8, 8, generator=generator), torch.randint(10, (512,), generator=generator)
