"""Complete configurations by name, and running them: `run(get_recipe("digits"), "runs/digits")`."""

from apical.recipes import _classification as _classification  # registers the task
from apical.recipes import _final as _final  # registers two methods
from apical.recipes import _language as _language
from apical.recipes import _recipes as _recipes  # registers the recipes
from apical.recipes import _segmentation_recipes as _segmentation_recipes
from apical.recipes._compare import Planned, compare, plan, split_options
from apical.recipes._config import DataConfig, ModelConfig, RunConfig
from apical.recipes._data import PreparedData, prepare_data
from apical.recipes._files import read_config_file, write_config_file
from apical.recipes._language import TextConfig
from apical.recipes._live import LoggedProgress, LoggerFactory, logger_factory
from apical.recipes._methods import method_factory, method_options, methods, register_method, resolve_method
from apical.recipes._model import build_model, call_builder, find_builder, import_callable
from apical.recipes._registry import get_recipe, recipes, register_recipe
from apical.recipes._run import load_run, load_serving, read_config, run
from apical.recipes._segmentation import SegmentationData, without_auxiliary_head
from apical.recipes._settings import apply_settings, setting_types
from apical.recipes._tasks import Facts, Prepared, Serving, TaskKind, register_task, task_kind
from apical.recipes._trust import names_foreign_code, require_trusted

__all__ = [
    "DataConfig",
    "Facts",
    "LoggedProgress",
    "LoggerFactory",
    "ModelConfig",
    "Planned",
    "Prepared",
    "PreparedData",
    "RunConfig",
    "SegmentationData",
    "Serving",
    "TaskKind",
    "TextConfig",
    "apply_settings",
    "build_model",
    "call_builder",
    "compare",
    "find_builder",
    "get_recipe",
    "import_callable",
    "load_run",
    "load_serving",
    "logger_factory",
    "method_factory",
    "method_options",
    "methods",
    "names_foreign_code",
    "plan",
    "prepare_data",
    "read_config",
    "read_config_file",
    "recipes",
    "register_method",
    "register_recipe",
    "register_task",
    "require_trusted",
    "resolve_method",
    "run",
    "setting_types",
    "split_options",
    "task_kind",
    "without_auxiliary_head",
    "write_config_file",
]
