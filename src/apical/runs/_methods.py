"""Growth methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from apical._checks import build, nearest
from apical.baselines import ISS, L1, Comparator, Dense, Rule, Slimming, Taylor, Uniform
from apical.budget import Budget
from apical.errors import BudgetError, ConfigError
from apical.growth import Grower, GrowthConfig, ScsConfig
from apical.growth._options import changed
from apical.recipes import RunConfig
from apical.runs._sharding import sharder
from apical.training import GrowthMethod, MethodFactory

T = TypeVar("T")
Assemble = Callable[[RunConfig, tuple[Tensor, ...]], MethodFactory]
"""Makes a method's factory from a config and the arguments of one call of the model."""

Stepwise = Callable[[RunConfig, tuple[Tensor, ...], int], MethodFactory]
"""Likewise for a method that restructures within epochs; it is told the steps of an epoch, too."""

Resolve = Callable[[RunConfig], RunConfig]
"""Completes a config before its run starts, for instance with what another run's folder says."""

Check = Callable[[RunConfig], object]
"""Refuses what can be refused before anything is trained; what it returns is not used."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A growth method by name; `register_method` says what each field is."""

    assemble: Stepwise
    resolve: Resolve
    check: Check
    reads: tuple[str, ...]
    shards: bool


_METHODS: dict[str, Method] = {}
_GONE = ("autogrow", "soft", "thinet")


def register_method(
    name: str,
    resolve: Resolve = lambda config: config,
    *,
    stepwise: bool = False,
    check: Check = lambda _config: None,
    reads: tuple[str, ...] = ("divisor", "seed"),
    shards: bool = False,
) -> Callable[[Any], Any]:
    """Let ``--method NAME`` mean what the decorated function, an `Assemble`, assembles.

    Args:
        name: of the method; docs/methods/NAME.md is its card.
        stepwise: whether the function is a `Stepwise` instead.
        resolve: completes a config of this method before its run starts. It must not change what it completed before.
        check: refuses options and lengths of training that the method cannot have, so that a comparison says so before
            its first run.
        reads: the settings of growth that it reads; the others do not change its runs.
        shards: whether it can divide the model among processes, as ``training.shard`` asks.

    Raises:
        ConfigError: the name is taken.
    """

    def register(assemble: Any) -> Any:
        if name in _METHODS:
            raise ConfigError(f"there is a method {name!r} already")
        told = assemble if stepwise else lambda config, example, _steps: assemble(config, example)
        _METHODS[name] = Method(told, resolve, check, reads, shards)
        return assemble

    return register


def methods() -> tuple[str, ...]:
    """The names of all methods."""
    return tuple(_METHODS)


def method_named(name: str) -> Method:
    """The method of this name."""
    if name in _GONE:
        raise ConfigError(
            f"method: {name!r} is gone, since no result carried it; the methods are {', '.join(_METHODS)}. Finished "
            "runs of it still load; one that was stopped needs the version that its config.json names."
        )
    if name not in _METHODS:
        raise ConfigError(
            f"method: there is no {name!r}{nearest(name, _METHODS, '.')} The methods are {', '.join(_METHODS)}."
        )
    return _METHODS[name]


def sharding_methods() -> tuple[str, ...]:
    """The names of the methods that can divide the model among processes."""
    return tuple(name for name, method in _METHODS.items() if method.shards)


def method_options(config: RunConfig, kind: type[T]) -> T:
    """The options of a config's method; a seed that is not given is that of growth.

    Raises:
        ConfigError: an option does not exist or cannot have this value.
    """
    values = dict(config.method_options)
    if "seed" in {f.name for f in dataclasses.fields(kind)}:  # type: ignore[arg-type]
        values.setdefault("seed", config.growth.seed)
    return build(kind, values, f"method {config.method}")


def no_options(config: RunConfig) -> None:
    """Refuse options."""
    if config.method_options:
        raise ConfigError(
            f"method {config.method} has no options of its own, got {', '.join(config.method_options)}; growth is set "
            "by growth.NAME"
        )


def _grower(
    config: RunConfig, growth: GrowthConfig | ScsConfig, example: tuple[Tensor, ...], steps: int
) -> MethodFactory:
    def make(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
        return Grower(
            model,
            optimizer,
            example_inputs=example,
            budget=config.budget,
            epochs=config.training.epochs,
            steps_per_epoch=None if growth.interval_unit == "epochs" else steps,
            copies=copies,
            shard=sharder(config.training),
            config=growth,
        )

    return make


@register_method(
    "grown", stepwise=True, check=no_options, reads=tuple(f.name for f in dataclasses.fields(GrowthConfig)), shards=True
)
def _grown(config: RunConfig, example: tuple[Tensor, ...], steps: int) -> MethodFactory:
    no_options(config)
    return _grower(config, config.growth, example, steps)


_SHARED = ("divisor", "min_units", "grow_depth", "ignore", "seed")


def _preset(make: Callable[..., ScsConfig], config: RunConfig) -> ScsConfig:
    """A preset of growth: what the model and the machine ask for is as configured, ``method.NAME`` changes the rest."""
    shared = {name: getattr(config.growth, name) for name in _SHARED}
    lists_as_tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in config.method_options.items()}
    return changed(make(**shared), lists_as_tuples)


def _grown_by(preset: Callable[[RunConfig], ScsConfig], config: RunConfig, example: tuple[Tensor, ...],
              steps: int) -> MethodFactory:  # fmt: skip
    return _grower(config, preset(config), example, steps)


for _name, _make in (("scs", ScsConfig), ("random", ScsConfig.random)):
    _of_preset = partial(_preset, _make)
    register_method(_name, stepwise=True, check=_of_preset, reads=_SHARED, shards=True)(partial(_grown_by, _of_preset))


def _rule(kind: type, config: RunConfig) -> Any:
    """The rule of a comparator, which this length of training leaves time for."""
    if not dataclasses.fields(kind):
        no_options(config)
    rule: Any = method_options(config, kind)
    rule.last(config.training.epochs)
    odd = [target for target in Budget.of(config.budget).targets if target.kind not in ("macs", "params")]
    if odd and kind is not Dense:
        raise BudgetError(
            f"method {config.method} goes by macs and params, got the budget {odd[0]}, which only growth can meet; "
            "compare at macs or params (a comparison measures the seconds of all final networks)"
        )
    return rule


def comparator(rule: Rule, config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    """What makes a comparator that goes by a rule."""
    divisor = config.growth.step if "divisor" in method_named(config.method).reads else 1

    def make(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
        epochs = config.training.epochs
        return Comparator(rule, model, optimizer, example, config.budget, epochs, divisor=divisor, copies=copies)

    return make


def _by_rule(kind: type, config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
    return comparator(_rule(kind, config), config, example)


register_method("dense", check=partial(_rule, Dense), reads=())(partial(_by_rule, Dense))
for _kind in (Uniform, L1, Slimming, Taylor, ISS):
    register_method(_kind.name, check=partial(_rule, _kind))(partial(_by_rule, _kind))
