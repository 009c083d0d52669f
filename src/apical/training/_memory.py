"""How much memory training took."""

from __future__ import annotations

import sys

import torch


def peak_memory_mib(device: torch.device) -> float | None:
    """The most memory that was in use so far, in MiB.

    On a CUDA device what torch allocated on it since the last call; elsewhere what the process held since it started
    (its peak resident set), data and libraries included.

    Args:
        device: where the model trains.

    Returns:
        MiB; None where the system does not say (Windows).

    Example:
        >>> peak_memory_mib(torch.device("cpu")) is None or peak_memory_mib(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak / 2**20
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
