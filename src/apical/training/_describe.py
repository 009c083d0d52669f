"""Machine and versions, in words."""

from __future__ import annotations

import platform

import torch


def describe_device(device: torch.device) -> str:
    """The device in words, for tables."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{device.type} ({platform.processor() or platform.machine()})"


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        apical = version("apical")
    except PackageNotFoundError:
        apical = "unknown"
    return {"apical": apical, "torch": torch.__version__, "python": platform.python_version()}
