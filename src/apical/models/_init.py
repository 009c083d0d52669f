"""Initialisations that several of the networks share."""

from __future__ import annotations

from torch import nn


def init_convolutions_(model: nn.Module) -> None:
    """Draw every convolution from He's normal distribution (fan-out, ReLU); biases start at zero.

    Norm layers keep PyTorch's ones and zeros, linear layers its uniform default (He et al. 2015, arXiv:1502.01852).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
