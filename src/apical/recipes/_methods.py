"""Growth methods by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from apical.baselines import ISS, Dense, Uniform
from apical.errors import ConfigError
from apical.growth import Grower
from apical.recipes._config import RunConfig
from apical.recipes._fields import nearest
from apical.training import GrowthMethod, MethodFactory

Assemble = Callable[[RunConfig, tuple[Tensor, ...]], MethodFactory]
"""Makes a method's factory from a config and the arguments of one call of the model."""

Stepwise = Callable[[RunConfig, tuple[Tensor, ...], int], MethodFactory]
"""Likewise for a method that restructures within epochs; it is told the steps of an epoch, too."""

_METHODS: dict[str, Stepwise] = {}


def register_method(name: str, *, stepwise: bool = False) -> Callable[[Any], Any]:
    """Let ``--method NAME`` mean what the decorated function, an `Assemble`, assembles.

    Args:
        name: of the method.
        stepwise: whether the function is a `Stepwise` instead.

    Raises:
        ConfigError: the name is taken.
    """

    def register(assemble: Any) -> Any:
        if name in _METHODS:
            raise ConfigError(f"there is a method {name!r} already")
        _METHODS[name] = assemble if stepwise else lambda config, example, _steps: assemble(config, example)
        return assemble

    return register


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(_METHODS)


def method_factory(config: RunConfig, example: tuple[Tensor, ...], steps_per_epoch: int) -> MethodFactory:
    """The factory of the method that a config names.

    Args:
        config: of the run.
        example: arguments of one call of the model.
        steps_per_epoch: optimizer steps of an epoch.

    Raises:
        ConfigError: there is no such method.
    """
    if config.method not in _METHODS:
        raise ConfigError(
            f"method: there is no {config.method!r}{nearest(config.method, _METHODS, '.')} The methods are "
            f"{', '.join(_METHODS)}."
        )
    return _METHODS[config.method](config, example, steps_per_epoch)


@register_method("grown", stepwise=True)
def _grown(config: RunConfig, example: tuple[Tensor, ...], steps_per_epoch: int) -> MethodFactory:
    def make(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
        return Grower(
            model,
            optimizer,
            example_inputs=example,
            budget=config.budget,
            epochs=config.training.epochs,
            steps_per_epoch=steps_per_epoch if config.growth.interval_unit == "steps" else None,
            copies=copies,
            config=config.growth,
        )

    return make


@register_method("dense")
def _dense(_config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    def make(model: nn.Module, _optimizer: Optimizer, _copies: Sequence[nn.Module]) -> GrowthMethod:
        return Dense(model, example)

    return make


@register_method("uniform")
def _uniform(config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    def make(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
        return Uniform(
            model,
            optimizer,
            example_inputs=example,
            budget=config.budget,
            divisor=config.growth.divisor,
            copies=copies,
        )

    return make


@register_method("iss")
def _iss(config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    def make(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
        return ISS(
            model,
            optimizer,
            example,
            config.budget,
            config.training.epochs,
            divisor=config.growth.divisor,
            copies=copies,
        )

    return make
