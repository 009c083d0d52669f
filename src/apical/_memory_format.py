"""Where training in channels-last order is not safe.

In the backward pass of a 1x1 convolution with a stride and fewer input channels than a vector register holds (8 with
AVX2, 16 with AVX-512), torch's oneDNN writes past the end of an array if weights or inputs are in channels-last order
(torch 2.13.0, float32 and bfloat16; 2.14.1 with AVX2). The process ends with a segmentation fault or "free(): invalid
next size", or goes on with damaged memory. Networks that grow get as narrow as that. In contiguous order nothing
happens.

Source: https://github.com/uxlfoundation/oneDNN/issues/6035, open in November 2026.
"""

from __future__ import annotations

import torch
from torch import nn

REGISTERS = {"AVX2": 8, "AVX512": 16}  # numbers that a vector register of these processors holds


def safe_channels() -> int:
    """From how many input channels on such layers are safe on this processor; 0 if they always are."""
    return REGISTERS.get(torch.backends.cpu.get_cpu_capability(), 0)


def has_channels_last(model: nn.Module) -> bool:
    """Whether the weights are in that format; those of 1x1 kernels are in both, and say nothing."""
    images = [p for p in model.parameters() if p.ndim == 4 and not p.is_contiguous()]
    return any(p.is_contiguous(memory_format=torch.channels_last) for p in images)


def unsafe_in_channels_last(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers that may damage memory on this machine, if they get narrower than `safe_channels`."""
    if not safe_channels():
        return ()
    return tuple(name for name, module in model.named_modules() if _strided_pointwise(module))


def _strided_pointwise(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.weight.device.type == "cpu"
        and module.groups == 1
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
    )
