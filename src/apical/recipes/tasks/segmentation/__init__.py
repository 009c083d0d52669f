"""Semantic segmentation: a class for every pixel of an image."""

from apical.recipes.tasks.segmentation import _recipes as _recipes  # registers them
from apical.recipes.tasks.segmentation._data import SegmentationData
from apical.recipes.tasks.segmentation._loss import Segmentation, class_iou, confusion
from apical.recipes.tasks.segmentation._task import without_auxiliary_head

__all__ = ["Segmentation", "SegmentationData", "class_iou", "confusion", "without_auxiliary_head"]
