"""Image classification: a logit for each class of an image. Its loss is the loop's own, `training.Classification`."""

from apical.recipes.tasks.classification import _recipes as _recipes  # registers them
from apical.recipes.tasks.classification import _task as _task  # registers the task
from apical.recipes.tasks.classification._data import DataConfig, prepare_data

__all__ = ["DataConfig", "prepare_data"]
