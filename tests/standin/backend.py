"""A device for tests that stands in for a GPU, made from device.cpp, under the name "standin".

Its results are those of the CPU. Operands of several devices are an error, as on a GPU, and it counts how often the
host waits for it. A process that uses it keeps it until its end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils.cpp_extension import include_paths, library_paths

NAME = "standin"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


class _Module(ModuleType):
    """What torch asks a device's Python module for."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def synchronize(self, _device: Any = None) -> None:
        """Nothing is ever under way."""

    def manual_seed_all(self, seed: int) -> None:
        """It draws from the CPU's generator, which is seeded besides."""

    def get_rng_state(self, _device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, _device: Any = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return []

    def _is_in_bad_fork(self) -> bool:
        return False

    def _lazy_init(self) -> None:
        """It needs no start."""


def build(folder: Path) -> Path:
    """Compile the device into a shared library."""
    library = folder / f"libstandin{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"
    headers = [f"-I{path}" for path in include_paths()]
    libraries = [f"-L{path}" for path in library_paths()] + ["-lc10", "-ltorch_cpu", "-ltorch"]
    source = Path(__file__).with_name("device.cpp")
    options = ["-std=c++20", "-O0", "-fPIC", "-shared", "-w"]
    command = [str(COMPILER), *options, *headers, str(source), *libraries, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return library


def use(library: str) -> torch.device:
    """Make the device known to torch in this process."""
    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(library)
    torch._register_device_module(NAME, _Module(f"torch.{NAME}"))
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device(NAME)


def waited() -> int:
    """How often the host has waited for a value of the device so far."""
    return int(torch.ops.standin.waited())
