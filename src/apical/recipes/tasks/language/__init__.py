"""Language modelling: the next word of a stream of text."""

from apical.recipes.tasks.language import _recipes as _recipes  # registers them
from apical.recipes.tasks.language._task import LanguageModelling, TextConfig

__all__ = ["LanguageModelling", "TextConfig"]
