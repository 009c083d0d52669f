"""Complete configurations by name, and what they are made of: `get_recipe("digits")`. Running one is `apical.runs`."""

from apical.recipes._config import RunConfig, get_recipe, recipes, register_recipe
from apical.recipes._files import read_config_file, write_config_file
from apical.recipes._model import ModelConfig, build_model
from apical.recipes._settings import apply_settings
from apical.recipes._task_kind import Facts, Prepared, Serving, TaskKind, register_task
from apical.recipes.tasks.classification import DataConfig
from apical.recipes.tasks.language import LanguageModelling, TextConfig
from apical.recipes.tasks.segmentation import Segmentation, SegmentationData, without_auxiliary_head

__all__ = [
    "DataConfig",
    "Facts",
    "LanguageModelling",
    "ModelConfig",
    "Prepared",
    "RunConfig",
    "Segmentation",
    "SegmentationData",
    "Serving",
    "TaskKind",
    "TextConfig",
    "apply_settings",
    "build_model",
    "get_recipe",
    "read_config_file",
    "recipes",
    "register_recipe",
    "register_task",
    "without_auxiliary_head",
    "write_config_file",
]
