"""Semantic segmentation: a class for every pixel of an image."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from apical.errors import ConfigError
from apical.recipes._model import ModelConfig, build_model, tried_out
from apical.recipes._task_kind import Described, Facts, TaskKind, image_example, last_name, not_known, register_task
from apical.recipes.tasks.segmentation._data import SegmentationData, prepare
from apical.training import TrainingConfig

KNOWN: dict[str, tuple[int, int]] = {"VOC2012": (1_464, 21), "camvid-voc": (367, 11)}
"""Images of the list ``train``, and classes (of PASCAL VOC with the background), of public data sets."""


def _foreseen(config: SegmentationData, _: TrainingConfig, told: Described) -> tuple[int, Facts]:
    if told.shape is not None:
        raise ConfigError("a segmentation takes no --input; its images are as large as --set data.crop=N says")
    number, classes = KNOWN.get(last_name(config.path), (0, 0)) if config.train_list == "train" else (0, 0)
    number, classes = told.images or number, told.classes or config.num_classes or classes
    if not number or not classes:
        raise not_known(config.path, KNOWN, "--images and --classes, such as --images 367 --classes 11")
    return number, {"classes": [str(i) for i in range(classes)], "image_shape": [3, config.crop, config.crop]}


def _template(config: ModelConfig, facts: Facts) -> nn.Module:
    classes, shape = len(facts["classes"]), tuple(facts["image_shape"])
    model = build_model(config, num_classes=classes, in_channels=shape[0])
    _check_outputs(model, shape, classes, config.name)
    return model


def _check_outputs(model: nn.Module, shape: tuple[int, ...], classes: int, name: str) -> None:
    """Refuse a model that does not give a logit per class for every pixel."""
    refused = f"model {name} does not run on images of shape {shape}"
    with tried_out(model, refused, ". Set data.crop to what it expects."):
        outputs = model(torch.zeros(1, *shape))
    named = outputs if isinstance(outputs, Mapping) else {"out": outputs}
    got = {
        key: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for key, value in named.items()
    }
    expected = (1, classes, *shape[1:])
    if got.get("out") != expected or got.get("aux", expected) != expected:
        raise ConfigError(
            f"model {name} returns {got} for one image, expected logits {expected} as a tensor or as 'out' (and 'aux') "
            "of a dict. Pass its argument for the number of classes with --set model.ARGUMENT=N."
        )


def without_auxiliary_head(model: nn.Module) -> nn.Module:
    """A copy without the head that only training needs; the model itself where there is none.

    Example:
        >>> from apical.models import DeepLabV3
        >>> model = DeepLabV3(18, num_classes=3, aux=True, width=4, head_width=4).eval()
        >>> list(without_auxiliary_head(model)(torch.zeros(1, 3, 16, 16)))
        ['out']
    """
    if getattr(model, "aux_classifier", None) is None:
        return model
    bare = copy.deepcopy(model)
    bare.register_module("aux_classifier", None)
    return bare


register_task(
    "segmentation",
    TaskKind(SegmentationData, prepare, _foreseen, _template, image_example, for_inference=without_auxiliary_head),
)
