"""Image classification: a logit for each class of an image."""

from __future__ import annotations

import torch
from torch import nn

from apical.recipes._model import ModelConfig, build_model, check_outputs
from apical.recipes._task_kind import Described, Facts, TaskKind, image_example, last_name, not_known, register_task
from apical.recipes.tasks.classification._data import DataConfig, prepare_data
from apical.training import TrainingConfig

KNOWN: dict[str, tuple[int, int, tuple[int, int, int]]] = {
    "imagenet": (1_281_167, 1000, (3, 224, 224)),
    "cifar10": (50_000, 10, (3, 32, 32)),
    "fashion-mnist": (60_000, 10, (1, 28, 28)),
    "digits": (1_437, 10, (1, 8, 8)),
}
"""Training images, classes and image shape of public data sets."""


def _foreseen(config: DataConfig, _: TrainingConfig, told: Described) -> tuple[int, Facts]:
    number, classes, pixels = KNOWN.get(last_name(config.path), (0, 0, ()))
    number, classes = told.images or round(number * (1 - config.validation_fraction)), told.classes or classes
    shape = told.shape or pixels
    if not number or not classes or not shape:
        give = "--images, --classes and --input, such as --images 50000 --classes 10 --input 1x3x32x32"
        raise not_known(config.path, KNOWN, give)
    return number, {"classes": [str(i) for i in range(classes)], "image_shape": list(shape)}


def _template(config: ModelConfig, facts: Facts) -> nn.Module:
    classes = len(facts["classes"])
    channels, size, _ = facts["image_shape"]
    model = build_model(config, num_classes=classes, in_channels=channels, image_size=size)
    check_outputs(model, torch.zeros(1, *facts["image_shape"]), classes, config.name)
    return model


register_task("classification", TaskKind(DataConfig, prepare_data, _foreseen, _template, image_example))
