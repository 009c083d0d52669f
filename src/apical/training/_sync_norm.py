"""Batch norm over the batches of all processes, on CUDA and on a CPU."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm


class ProcessBatchNorm(_BatchNorm):
    """What torch's SyncBatchNorm is on CUDA, on a CPU (gloo), where torch has none.

    With n values a channel in all processes, x̂ = (x − mean) / √(var + ε) with mean = Σx / n, var = Σ(x − mean)² / n;
    the running variance takes Σ(x − mean)² / (n − 1), as everywhere in torch.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Normalises (batch, channels, ...); in eval mode nothing is exchanged."""
        if not self.training:
            return super().forward(input)
        dims = [d for d in range(input.dim()) if d != 1]
        shape = [-1 if d == 1 else 1 for d in range(input.dim())]
        values = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = _sum_of_all(values.new_tensor(float(input.numel() // input.shape[1])))
        mean = _sum_of_all(values.sum(dims)) / count  # (channels,)
        centred = values - mean.view(shape)
        variance = _sum_of_all(centred.square().sum(dims)) / count
        with torch.no_grad():
            self._follow(mean, variance * count / (count - 1).clamp(min=1))
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        """The norm that it stands for has checked its input when the model was traced."""

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, as `nn.BatchNorm2d` moves them."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)


class _SumOfAll(torch.autograd.Function):
    """Sum over the processes; so is its gradient, since every process' loss depends on every summand."""

    @staticmethod
    def forward(_ctx: FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_ctx: FunctionCtx, *grads: Any) -> Tensor:
        total = cast(Tensor, grads[0]).clone()
        dist.all_reduce(total)
        return total


def _sum_of_all(value: Tensor) -> Tensor:
    if not dist.is_initialized():
        return value
    return cast(Tensor, _SumOfAll.apply(value))  # type: ignore[no-untyped-call]


_ORIGINAL = "_apical_norm_class"


def synchronise_norms_(model: nn.Module, device: torch.device) -> list[str]:
    """Lets every batch norm see the batches of all processes, in place: same module objects, parameters and hooks.

    Returns:
        Module paths of the norms.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        >>> synchronise_norms_(model, torch.device("cpu")), type(model[1]).__name__
        (['1'], 'ProcessBatchNorm')
        >>> separate_norms_(model)
        >>> type(model[1]).__name__
        'BatchNorm2d'
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            setattr(module, _ORIGINAL, type(module).__name__)
            vars(module)["process_group"] = None  # the attribute that SyncBatchNorm has beyond a BatchNorm
            module.__class__ = nn.SyncBatchNorm if device.type == "cuda" else ProcessBatchNorm
            found.append(name)
    return found


def separate_norms_(model: nn.Module) -> None:
    """Undoes `synchronise_norms_`: the model is the user's own again."""
    for module in model.modules():
        if _ORIGINAL in vars(module):
            kind = getattr(nn, getattr(module, _ORIGINAL))
            delattr(module, _ORIGINAL)
            del module.process_group
            module.__class__ = kind
