"""Image classification: a logit for each class of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apical.recipes._model import ModelConfig, build_model, check_outputs
from apical.recipes._task_kind import Facts, Prepared, TaskKind, register_task
from apical.recipes.tasks.classification._data import DataConfig, prepare_data
from apical.training import Classification, TrainingConfig


def _prepare(config: DataConfig, training: TrainingConfig) -> Prepared:
    data = prepare_data(config, training)
    facts = {"classes": list(data.classes), "image_shape": list(data.image_shape)}
    task, notes = Classification(training.label_smoothing), {"data_in_memory": data.in_memory}
    return Prepared(data.loaders, task, facts, notes, remarks=data.remarks)


def _template(config: ModelConfig, facts: Facts) -> nn.Module:
    classes = len(facts["classes"])
    model = build_model(config, num_classes=classes, in_channels=facts["image_shape"][0])
    check_outputs(model, torch.zeros(1, *facts["image_shape"]), classes, config.name)
    return model


def _example(facts: Facts, device: torch.device) -> tuple[Tensor, ...]:
    return (torch.zeros(1, *facts["image_shape"], device=device),)  # (1, channels, height, width)


register_task("classification", TaskKind(DataConfig, _prepare, _template, _example))
