"""For loops with Hugging Face Accelerate: wrapping a model anew after a restructuring."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from apical.training import check_same_everywhere


def rewrapped(accelerator: Any, prepared: nn.Module) -> nn.Module:
    """The model as training calls it, after `Grower.end_epoch`; to be used instead of the one before.

    In one process Accelerate does not wrap, and the model is returned as it is. In several, its data-parallel wrapper
    holds on to parameters that are gone: it is taken out of the Accelerator, the processes' models are compared, and a
    new wrapper is made.

    Args:
        accelerator: the `accelerate.Accelerator`.
        prepared: what its `prepare` returned for the model, or this function the time before.

    Raises:
        TrainingError: the processes' models differ.

    Example: see examples/accelerate_pattern.py.
    """
    if not isinstance(prepared, DistributedDataParallel):
        return prepared
    model: nn.Module = accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
    check_same_everywhere(model, "after a restructuring")
    accelerator._models[:] = [known for known in accelerator._models if known is not prepared]
    wrapped: nn.Module = accelerator.prepare_model(model)
    return wrapped
