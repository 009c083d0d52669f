"""The recipes for semantic segmentation."""

from __future__ import annotations

from apical.growth import GrowthConfig
from apical.recipes._config import RunConfig, register_recipe
from apical.recipes._model import ModelConfig
from apical.recipes.tasks.segmentation._data import SegmentationData
from apical.training import OptimizerConfig, ScheduleConfig, TrainingConfig


@register_recipe("voc-deeplabv3-resnet101")
def voc_deeplabv3_resnet101() -> RunConfig:
    """DeepLabV3 on ResNet-101 on PASCAL VOC 2012, or any folder of that layout, 50 % of its MACs.

    Crops of 513 pixels, scales 0.5 to 2, batch 16, learning rate 0.007 with the poly schedule (Chen et al. 2017); an
    auxiliary head with weight 0.4. From scratch unless --set model.initial_weights=FILE names a state_dict of
    torchvision's network (or of its backbone).
    """
    return _voc("voc-deeplabv3-resnet101", "deeplabv3_resnet101")


@register_recipe("voc-deeplabv3-resnet50")
def voc_deeplabv3_resnet50() -> RunConfig:
    """DeepLabV3 on ResNet-50 on PASCAL VOC 2012, or any folder of that layout, 50 % of its MACs."""
    return _voc("voc-deeplabv3-resnet50", "deeplabv3_resnet50")


@register_recipe("camvid-deeplabv3-small")
def camvid_deeplabv3_small() -> RunConfig:
    """DeepLabV3 on a narrow ResNet-18 on CamVid at 240x180, for one processor core; 50 % of its MACs.

    Any folder in the layout of PASCAL VOC with images of about this size will do.
    """
    return RunConfig(
        recipe="camvid-deeplabv3-small",
        model=ModelConfig("DeepLabV3", {"depth": 18, "aux": True, "width": 16, "head_width": 64, "rates": [3, 6, 9]}),
        data=SegmentationData("camvid-voc", crop=160, scale=(0.75, 1.5), workers=0),
        training=TrainingConfig(
            epochs=20,
            batch_size=8,
            optimizer=OptimizerConfig(lr=0.1, weight_decay=5e-4, decay_vectors=False),
            schedule=ScheduleConfig("poly", warmup_epochs=1.0),
            amp="auto",
            channels_last=True,
            eval_every=5,
        ),
        budget="50% macs",
        growth=GrowthConfig(seed_fraction=0.16, growth_end=0.5, divisor=4),
        task="segmentation",
    )


def _voc(name: str, model: str) -> RunConfig:
    return RunConfig(
        recipe=name,
        model=ModelConfig(model, {"aux": True}),
        data=SegmentationData("VOCdevkit/VOC2012", memory_gb=8.0, workers=8),
        training=TrainingConfig(
            epochs=50,
            batch_size=16,
            optimizer=OptimizerConfig(lr=0.007, weight_decay=1e-4),
            schedule=ScheduleConfig("poly"),
            amp="auto",
            channels_last=True,
        ),
        budget="50% macs",
        growth=GrowthConfig(divisor=8),
        task="segmentation",
    )
