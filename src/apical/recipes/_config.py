"""What a run is: one complete, typed, immutable record that JSON can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil, isfinite
from typing import Any

from apical._checks import build, flattened, nearest
from apical.budget import Budget
from apical.errors import ConfigError
from apical.growth import GrowthConfig
from apical.recipes._model import ModelConfig
from apical.recipes._task_kind import task_kind
from apical.training import TrainingConfig


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Seed and device are in `training`; `--seed` sets those of training and growth.

    Attributes:
        recipe: the name of the recipe that this came from.
        model: the largest network that is acceptable.
        data: what it learns from: the data settings of the task, for classification a `DataConfig`.
        training: how it is trained.
        budget: what the final network may cost, as `apical.Budget` reads it.
        growth: how it grows; other methods read `divisor` and `seed` at most.
        method: a name in `methods()`: ``"grown"``, ``"dense"``, ``"uniform"``, …
        method_options: the method's own settings, by name; ``--set method.prune_at=0.6`` sets one.
        task: the kind of problem: ``"classification"``, …

    Example:
        >>> from apical.recipes import DataConfig
        >>> config = RunConfig("mine", ModelConfig("resnet20"), DataConfig("digits"), TrainingConfig(), "50% macs")
        >>> RunConfig.from_mapping(config.to_mapping()) == config
        True
    """

    recipe: str
    model: ModelConfig
    data: Any
    training: TrainingConfig
    budget: str
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    method: str = "grown"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classification"

    def __post_init__(self) -> None:
        Budget(self.budget)
        kind = task_kind(self.task).data
        if not isinstance(self.data, kind):
            raise ConfigError(f"data: a {self.task} run needs a {kind.__name__}, got {type(self.data).__name__}")
        problems = [
            f"{name}={value}, expected a finite number"
            for name, values in flattened(self.to_mapping())
            for value in (values if isinstance(values, (list, tuple)) else [values])
            if isinstance(value, float) and not isfinite(value)  # which JSON cannot hold, so no run could be resumed
        ]
        if problems:
            raise ConfigError("; ".join(problems))

    def to_mapping(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RunConfig:
        """The config of `to_mapping`, read back.

        Raises:
            ConfigError: a key is missing or unknown, or a value has the wrong type.
            BudgetError: the budget cannot be read.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"config: expected a mapping, got a {type(mapping).__name__}")
        missing = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory and f.name not in mapping]
        if missing:
            raise ConfigError(f"config: {', '.join(missing)} missing; expected what an apical run writes")
        parts = dict(mapping)
        data = task_kind(str(parts.get("task", "classification"))).data
        parts["data"] = build(data, parts["data"], "data")
        return build(cls, parts, "config")

    def with_seed(self, seed: int) -> RunConfig:
        """The same run with another seed, of training and growth."""
        return dataclasses.replace(
            self,
            training=dataclasses.replace(self.training, seed=seed),
            growth=dataclasses.replace(self.growth, seed=seed),
        )

    def with_epochs(self, epochs: int) -> RunConfig:
        """The same run, longer or shorter: warm-up, milestones and decay move in proportion."""
        schedule, factor = self.training.schedule, epochs / self.training.epochs
        milestones = sorted({max(1, round(milestone * factor)) for milestone in schedule.milestones})
        constant = schedule.constant_epochs * factor
        before, after = ceil(self.training.epochs - schedule.constant_epochs), ceil(epochs - constant)
        decays = schedule.name == "decay" and after > 0  # so many times; steeper ones, if fewer, end at the same rate
        schedule = dataclasses.replace(
            schedule,
            warmup_epochs=schedule.warmup_epochs * factor,
            milestones=tuple(milestones),
            constant_epochs=constant,
            gamma=schedule.gamma ** (before / after) if decays else schedule.gamma,
        )
        return dataclasses.replace(self, training=dataclasses.replace(self.training, epochs=epochs, schedule=schedule))


Recipe = Callable[[], RunConfig]

_RECIPES: dict[str, Recipe] = {}


def register_recipe(name: str) -> Callable[[Recipe], Recipe]:
    """Let ``apical train NAME`` mean the config that the decorated function returns.

    The first line of its docstring is what people see in the list of recipes.

    Raises:
        ConfigError: the name is taken, or there is no docstring.
    """

    def register(recipe: Recipe) -> Recipe:
        if name in _RECIPES:
            raise ConfigError(f"there is a recipe {name!r} already")
        if not (recipe.__doc__ or "").strip():
            raise ConfigError(f"recipe {name!r} needs a docstring: its first line is shown in the list of recipes")
        _RECIPES[name] = recipe
        return recipe

    return register


def recipes() -> dict[str, str]:
    """The names of all recipes, with a line about each."""
    return {name: (recipe.__doc__ or "").strip().splitlines()[0] for name, recipe in _RECIPES.items()}


def get_recipe(name: str) -> RunConfig:
    """The config of a recipe.

    Raises:
        ConfigError: there is none of this name.

    Example:
        >>> get_recipe("digits").budget
        '50% macs'
        >>> get_recipe("digit")
        Traceback (most recent call last):
        apical.errors.ConfigError: there is no recipe 'digit'; did you mean 'digits'? The recipes are ...
    """
    if name not in _RECIPES:
        raise ConfigError(
            f"there is no recipe {name!r}{nearest(name, _RECIPES, '.')} The recipes are {', '.join(_RECIPES)}."
        )
    return _RECIPES[name]()
