"""Growth methods by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from apical.baselines import Dense, Uniform
from apical.errors import ConfigError
from apical.growth import Grower
from apical.recipes._config import RunConfig
from apical.recipes._fields import nearest
from apical.training import GrowthMethod, MethodFactory

Assemble = Callable[[RunConfig, tuple[Tensor, ...]], MethodFactory]
"""Makes a method's factory from a config and the arguments of one call of the model."""

_METHODS: dict[str, Assemble] = {}


def register_method(name: str) -> Callable[[Assemble], Assemble]:
    """Let ``--method NAME`` mean what the decorated function assembles.

    Raises:
        ConfigError: the name is taken.
    """

    def register(assemble: Assemble) -> Assemble:
        if name in _METHODS:
            raise ConfigError(f"there is a method {name!r} already")
        _METHODS[name] = assemble
        return assemble

    return register


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(_METHODS)


def method_factory(config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    """The factory of the method that a config names.

    Raises:
        ConfigError: there is no such method.
    """
    if config.method not in _METHODS:
        raise ConfigError(
            f"method: there is no {config.method!r}{nearest(config.method, _METHODS, '.')} The methods are "
            f"{', '.join(_METHODS)}."
        )
    return _METHODS[config.method](config, example)


@register_method("grown")
def _grown(config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    if config.growth.interval_unit == "steps":
        raise ConfigError(
            "growth.interval_unit='steps' is for loops of your own; here the network changes after epochs"
        )

    def make(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
        return Grower(
            model,
            optimizer,
            example_inputs=example,
            budget=config.budget,
            epochs=config.training.epochs,
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
