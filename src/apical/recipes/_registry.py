"""Recipes by name."""

from __future__ import annotations

from collections.abc import Callable

from apical._checks import nearest
from apical.errors import ConfigError
from apical.recipes._config import RunConfig

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
