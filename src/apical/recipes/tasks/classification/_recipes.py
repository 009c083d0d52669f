"""The recipes for image classification. Each is a complete config; nothing is added to it elsewhere."""

from __future__ import annotations

from apical.growth import GrowthConfig
from apical.recipes._config import RunConfig, register_recipe
from apical.recipes._model import ModelConfig
from apical.recipes.tasks.classification._data import DataConfig
from apical.training import OptimizerConfig, ScheduleConfig, TrainingConfig


@register_recipe("digits")
def digits() -> RunConfig:
    """A small residual network on scikit-learn's 1,797 real handwritten digits; about a minute on two cores.

    Needs no download. 144 of the 1,437 training images are held out for validation.
    """
    return RunConfig(
        recipe="digits",
        model=ModelConfig("CifarResNet", {"depth": 14, "width": 16}),
        data=DataConfig("digits", validation_fraction=0.1, crop_padding=1),
        training=TrainingConfig(
            epochs=40,
            batch_size=64,
            optimizer=OptimizerConfig(lr=0.1, nesterov=True, weight_decay=5e-4),
            schedule=ScheduleConfig("cosine", warmup_epochs=1.0),
        ),
        budget="50% macs",
    )


@register_recipe("fashion-mnist")
def fashion_mnist() -> RunConfig:
    """ResNet-20 on Fashion-MNIST: 60,000 grey images, 28x28, 10 classes.

    6,000 training images are held out for validation.
    """
    return RunConfig(
        recipe="fashion-mnist",
        model=ModelConfig("resnet20"),
        data=DataConfig("fashion-mnist", validation_fraction=0.1, crop_padding=2, flip=True),
        training=_cifar_training(epochs=30, weight_decay=5e-4),
        budget="50% macs",
    )


@register_recipe("cifar10-resnet20")
def cifar10_resnet20() -> RunConfig:
    """ResNet-20 on CIFAR-10, 50 % of its MACs.

    Crop and flip, SGD with momentum, batch 128, 160 epochs, as usual for this network (He et al. 2016); cosine
    schedule. All 50,000 training images are used, so that results compare with published ones; the test images are
    evaluated on after each epoch for the record only.
    """
    return _cifar10("cifar10-resnet20", ModelConfig("resnet20"), _cifar_training(160, 1e-4), "50% macs")


@register_recipe("cifar10-resnet56")
def cifar10_resnet56() -> RunConfig:
    """ResNet-56 on CIFAR-10, 50 % of its MACs."""
    return _cifar10("cifar10-resnet56", ModelConfig("resnet56"), _cifar_training(160, 1e-4), "50% macs")


@register_recipe("cifar10-vgg16")
def cifar10_vgg16() -> RunConfig:
    """VGG-16 with batch norm on CIFAR-10, 5 % of its parameters and at most 13.6 % of its MACs.

    The limits are the paper's parameter sparsity of 0.95 and what its network costs [SCS]: the late layers hold the
    parameters, the early ones the MACs.
    """
    growth = GrowthConfig(divisor=8)
    training = _cifar_training(160, 5e-4)
    return _cifar10("cifar10-vgg16", ModelConfig("vgg16"), training, "13.6% macs, 5% params", growth)


@register_recipe("cifar10-wrn28-10")
def cifar10_wrn28_10() -> RunConfig:
    """Wide ResNet 28-10 on CIFAR-10, 10 % of its parameters.

    The budget is the paper's parameter sparsity of 0.90 [SCS]; 200 epochs with Nesterov momentum as in Zagoruyko and
    Komodakis 2016. Not tried here.
    """
    training = _cifar_training(200, 5e-4, nesterov=True)
    growth = GrowthConfig(divisor=8)
    return _cifar10("cifar10-wrn28-10", ModelConfig("wrn28_10"), training, "10% params", growth)


@register_recipe("imagenet-resnet50")
def imagenet_resnet50() -> RunConfig:
    """ResNet-50 on ImageNet, or on any Parquet or image folder of photographs, 50 % of its MACs.

    Parameter names are torchvision's. 90 epochs, batch 256, random resized crops of 224 pixels (Goyal et al. 2017).
    """
    return _imagenet("imagenet-resnet50", ModelConfig("resnet50"), epochs=90, weight_decay=1e-4)


@register_recipe("imagenet-mobilenetv1")
def imagenet_mobilenetv1() -> RunConfig:
    """MobileNetV1 on ImageNet, or on any Parquet or image folder of photographs, 50 % of its MACs."""
    model = ModelConfig("mobilenet_v1")
    return _imagenet("imagenet-mobilenetv1", model, epochs=120, weight_decay=4e-5, crop_scale=0.25)


@register_recipe("folder")
def folder() -> RunConfig:
    """Your own images (--data FOLDER) with any model (--model NAME, torchvision:NAME, timm:NAME, module:callable).

    The folder has train/CLASS/*.jpg and val/CLASS/*.jpg, or only CLASS/*.jpg (then a fifth of each class is held out,
    always the same images), or Parquet files with the columns image and label.
    """
    return RunConfig(
        recipe="folder",
        model=ModelConfig("resnet18"),
        data=DataConfig("", image_size=128, resize=146, random_resized_crop=True, crop_scale=0.25, flip=True),
        training=_imagenet_training(epochs=60, lr=0.05, weight_decay=1e-4, batch_size=64),
        budget="50% macs",
        growth=GrowthConfig(divisor=8),
    )


@register_recipe("vit-cifar10")
def vit_cifar10() -> RunConfig:
    """A small vision transformer (6 blocks of width 192, patches of 4 pixels) on CIFAR-10, 50 % of its MACs.

    AdamW with cosine schedule, crops and flips; the settings are usual ones and were not tuned.
    """
    training = TrainingConfig(
        epochs=100,
        batch_size=128,
        optimizer=OptimizerConfig("adamw", lr=1e-3, weight_decay=0.05, decay_vectors=False),
        schedule=ScheduleConfig("cosine", warmup_epochs=5.0),
        clip_grad_norm=1.0,
        amp="auto",
    )
    return _cifar10("vit-cifar10", ModelConfig("vit_small"), training, "50% macs")


def _cifar10(
    name: str, model: ModelConfig, training: TrainingConfig, budget: str, growth: GrowthConfig | None = None
) -> RunConfig:
    data = DataConfig("cifar10", image_size=32, crop_padding=4, flip=True)
    return RunConfig(name, model, data, training, budget, growth or GrowthConfig())


def _cifar_training(epochs: int, weight_decay: float, nesterov: bool = False) -> TrainingConfig:
    return TrainingConfig(
        epochs=epochs,
        batch_size=128,
        optimizer=OptimizerConfig(lr=0.1, nesterov=nesterov, weight_decay=weight_decay),
        schedule=ScheduleConfig("cosine", warmup_epochs=1.0),
    )


def _imagenet(name: str, model: ModelConfig, epochs: int, weight_decay: float, crop_scale: float = 0.08) -> RunConfig:
    data = DataConfig(
        "imagenet", image_size=224, resize=256, random_resized_crop=True, crop_scale=crop_scale, flip=True, workers=8
    )
    training = _imagenet_training(epochs, 0.1, weight_decay)
    return RunConfig(name, model, data, training, "50% macs", GrowthConfig(divisor=8))


def _imagenet_training(epochs: int, lr: float, weight_decay: float, batch_size: int = 256) -> TrainingConfig:
    return TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        optimizer=OptimizerConfig(lr=lr, weight_decay=weight_decay, decay_vectors=False),
        schedule=ScheduleConfig("cosine", warmup_epochs=5.0),
        amp="auto",
        channels_last=True,
        label_smoothing=0.1,
    )
