"""A forward pass in training mode that gives the same result every time, and so can be compared with another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

Replacement = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def _untouched(_: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Dropout at zero."""
    return args[0] if args else kwargs["input"]


def _filled(value: float) -> Replacement:
    """Numbers that are drawn into a tensor: all the same."""
    return lambda _draw, args, _kwargs: args[0].fill_(value)


def _full_like(value: float) -> Replacement:
    return lambda _, args, kwargs: torch.full_like(args[0] if args else kwargs["input"], value)


def _constant(draw: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``torch.rand`` makes of its many ways to be called, all the same: in the middle of its range.

    A single number is a constant, by which an exporter can decide a branch (a layer that is dropped now and then).
    """
    drawn = draw(*args, **kwargs)
    if drawn.numel() != 1:
        return torch.full_like(drawn, 0.5)
    value: Any = 0.5
    for _ in drawn.shape:
        value = [value]
    return torch.tensor(value, dtype=drawn.dtype, device=drawn.device)


def _without_dropout(position: int) -> Replacement:
    """An attention function without dropout, which is its argument ``dropout_p``."""

    def attend(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > position:
            return function(*args[:position], 0.0, *args[position + 1 :], **kwargs)
        return function(*args, **{**kwargs, "dropout_p": 0.0})

    return attend


def _stored_statistics(normalise: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """batch_norm(input, mean, var, weight, bias, training, …) with the statistics that are stored, if any are."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if given.get("running_mean") is not None:
        given["training"] = False
    return normalise(**given)


_STEADY: dict[Any, Replacement] = {
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
                     torch.dropout, torch.feature_dropout, torch.alpha_dropout), _untouched),
    F.scaled_dot_product_attention: _without_dropout(4),
    F.multi_head_attention_forward: _without_dropout(10),
    F.batch_norm: _stored_statistics,
    Tensor.bernoulli_: _filled(1.0),
    torch.bernoulli: _full_like(1.0),
    Tensor.uniform_: _filled(0.5),
    Tensor.normal_: _filled(0.5),
    Tensor.exponential_: _filled(0.5),
    torch.rand: _constant,
    torch.randn: _constant,
    torch.rand_like: _full_like(0.5),
    torch.randn_like: _full_like(0.5),
}  # fmt: skip


class _Steady(TorchFunctionMode):
    """Replaces what is random in a forward pass, and batch statistics, whoever calls it (modules or functions)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        replacement = _STEADY.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        return replacement(func, args, dict(kwargs or {}))


@contextmanager
def steady(model: nn.Module) -> Iterator[None]:
    """Run a model in the mode in which it is without chance: two networks that compute the same give the same.

    Dropout (of modules, functions and attention) is off, drop-path keeps every branch, random numbers are constant,
    and batch norms use and leave alone their stored statistics.
    """
    states = random.getstate(), np.random.get_state()
    recurrent = {module: module.dropout for module in model.modules() if isinstance(module, nn.RNNBase)}
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]
    random.seed(0)
    np.random.seed(0)
    for norm in norms:
        norm.training = False  # else they count their calls
    for module in recurrent:
        module.dropout = 0.0
    try:
        with _Steady():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        for norm in norms:
            norm.training = True
        for module, dropout in recurrent.items():
            module.dropout = dropout


@contextmanager
def steady_training(model: nn.Module) -> Iterator[None]:
    """`steady` in training mode; the modes of the modules are put back."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        with steady(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
