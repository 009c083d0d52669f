"""Builders for torchvision and timm models: few classes, small images, random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from torchvision_shim import import_torchvision

Build = Callable[[], nn.Module]

CLASSES = 10


def torchvision_model(name: str, **options: Any) -> Build:
    """Builder of a torchvision classification model."""

    def build() -> nn.Module:
        models = import_torchvision().models
        return models.get_model(name, weights=None, num_classes=CLASSES, **options)

    return build


def torchvision_inception(name: str) -> Build:
    """GoogLeNet or Inception v3 without auxiliary heads and without the slow truncated-normal initialisation."""
    return torchvision_model(name, aux_logits=False, init_weights=False)


def segmentation_model(name: str) -> Build:
    """Builder of a torchvision segmentation model; its output is a dictionary."""

    def build() -> nn.Module:
        models = import_torchvision().models
        return models.get_model(name, weights=None, weights_backbone=None, num_classes=5)

    return build


def small_vision_transformer() -> nn.Module:
    """torchvision's VisionTransformer class at a small width."""
    models = import_torchvision().models
    return models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=CLASSES
    )


def small_maxvit() -> nn.Module:
    """torchvision's MaxVit class at 32 px with partitions of 2."""
    models = import_torchvision().models
    return models.MaxVit(
        input_size=(32, 32),
        stem_channels=16,
        partition_size=2,
        block_channels=[16, 32],
        block_layers=[2, 1],
        head_dim=8,
        stochastic_depth_prob=0.1,
        num_classes=CLASSES,
    )


def timm_model(name: str, **options: Any) -> Build:
    """Builder of a timm model."""

    def build() -> nn.Module:
        import_torchvision()
        import timm

        return timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)

    return build


def sized(family: Callable[[str], Build], sizes: dict[int, tuple[str, ...]]) -> dict[str, tuple[Build, int]]:
    """Names by image size, as a table name → (builder, size)."""
    return {name: (family(name), size) for size, names in sizes.items() for name in names}


TORCHVISION: dict[str, tuple[Build, int]] = {
    **sized(
        torchvision_model,
        {
            64: (
                *("resnet18", "regnet_y_400mf", "regnet_x_400mf"),
                *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0"),
                *("efficientnet_b0", "efficientnet_v2_s", "densenet121", "shufflenet_v2_x1_0", "squeezenet1_1"),
            ),
            32: ("resnet50", "resnext50_32x4d", "convnext_tiny", "swin_t", "swin_v2_t"),
        },
    ),
    **sized(torchvision_inception, {64: ("googlenet",), 80: ("inception_v3",)}),
    **sized(
        segmentation_model,
        {
            32: ("deeplabv3_resnet50", "fcn_resnet50"),
            64: ("deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"),
        },
    ),
    "vit_small": (small_vision_transformer, 32),
    "maxvit_small": (small_maxvit, 32),
}

SLOW: dict[str, tuple[Build, int]] = {
    **sized(torchvision_model, {64: ("wide_resnet50_2", "alexnet", "vgg16_bn")}),
    "vit_b_16": (torchvision_model("vit_b_16", image_size=32), 32),
    "maxvit_t": (torchvision_model("maxvit_t", input_size=(224, 224)), 224),
}

TIMM: dict[str, tuple[Build, int]] = {
    **sized(
        timm_model,
        {
            64: (
                *(
                    "resnet26d",
                    "regnety_002",
                    "convnext_atto",
                    "convnextv2_atto",
                    "efficientvit_b0",
                    "edgenext_xx_small",
                ),
                *("mobilevit_xxs", "ghostnet_100", "poolformer_s12", "mobilenetv1_100", "rexnet_100", "mixnet_s"),
                *("skresnet18", "hrnet_w18_small", "edgenext_xx_small"),
            ),
            32: (
                *("resnetv2_50", "resnet50_gn", "res2net50_26w_4s", "dla34", "cspresnet50", "repvgg_a0"),
                *("mobileone_s0", "nfnet_l0"),
            ),
        },
    ),
    "vit_tiny_patch16_224": (timm_model("vit_tiny_patch16_224", img_size=64), 64),
    "deit_tiny_patch16_224": (timm_model("deit_tiny_patch16_224", img_size=64), 64),
    "mixer_s32_224": (timm_model("mixer_s32_224", img_size=64), 64),
    "coatnet_nano_rw_224": (timm_model("coatnet_nano_rw_224", img_size=64), 64),
    "swin_tiny_patch4_window7_224": (timm_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4), 64),
}

REFUSED: dict[str, tuple[Build, int]] = sized(timm_model, {32: ("resnetv2_50x1_bit",)})
