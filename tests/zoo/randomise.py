"""Make a freshly built network generic: no parameter is zero, no statistic is trivial, signals keep their scale."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def randomise_(model: nn.Module, inputs: Sequence[Tensor], seed: int) -> nn.Module:
    """Perturb every parameter, fit the batch-norm statistics to the perturbed net, perturb them too; eval mode.

    Zero-initialised gates (last norms of residual branches, layer scales, class tokens) and unit-initialised norms
    would make a wrong channel map look right, so vectors receive noise of 0.2 and matrices a fifth of their own
    spread. Fitting the statistics keeps the signal of a deep net from dying out or blowing up.
    """
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for parameter in model.parameters():
        vector = parameter.numel() == max(parameter.shape, default=1)
        spread = parameter.std().item() if parameter.numel() > 1 else 0.0
        scale = 0.2 if vector else max(0.2 * spread, 0.0 if spread > 1e-3 else 0.1)
        parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=scale)
    for norm in _fit_statistics_(model, inputs, seed):
        noise = torch.rand(2, norm.num_features, generator=generator, dtype=torch.float64)
        variance = norm.running_var
        variance.clamp_(min=0.2 * variance.mean().clamp(min=1e-3)).mul_(0.7 + 0.7 * noise[0])
        norm.running_mean.add_(0.4 * (noise[1] - 0.5) * variance.sqrt())
    return model.eval()


def _fit_statistics_(model: nn.Module, inputs: Sequence[Tensor], seed: int) -> list[nn.Module]:
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model.train()(*inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return norms
