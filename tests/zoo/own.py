"""The library's own networks, at the sizes of the paper where that is cheap and narrower where it is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from apical import models

IMAGES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "own_resnet20_projection": (partial(models.resnet20, shortcut="projection"), 16),
    "own_resnet20_zero_pad": (partial(models.resnet20, shortcut="zero_pad"), 16),
    "own_resnet56_projection": (partial(models.resnet56, shortcut="projection"), 16),
    "own_resnet56_zero_pad": (partial(models.resnet56, shortcut="zero_pad"), 16),
    "own_vgg16_narrow": (partial(models.vgg16, width=8), 32),
    "own_vgg16_mlp_head": (partial(models.vgg16, width=8, head="mlp"), 32),
    "own_wrn10_2": (partial(models.WideResNet, 10, 2), 16),
    "own_wrn16_1": (partial(models.WideResNet, 16, 1), 16),
    "own_resnet18": (partial(models.resnet18, num_classes=10), 64),
    "own_mobilenet_v1": (partial(models.mobilenet_v1, num_classes=10, width_mult=0.5), 64),
    "own_unet": (partial(models.UNet, width=8, levels=3), 16),
    "own_deeplabv3_resnet18": (partial(models.DeepLabV3, 18, 5, aux=True, width=16, head_width=24), 64),
}

SLOW_IMAGES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "own_vgg16": (models.vgg16, 32),
    "own_wrn28_10": (models.wrn28_10, 32),
    "own_resnet50": (partial(models.resnet50, num_classes=10), 64),
    "own_deeplabv3_resnet50": (partial(models.deeplabv3_resnet50, num_classes=5, aux=True), 64),
}

VOCABULARY = 31
_lm = partial(models.LSTMLanguageModel, VOCABULARY)

RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "own_lstm_lm_1": partial(_lm, 12, (16,)),
    "own_lstm_lm_2": partial(_lm, 12, (16, 14)),
    "own_lstm_lm_1_tied": partial(_lm, 12, (12,), tied=True),
    "own_lstm_lm_2_tied": partial(_lm, 12, (16, 12), tied=True),
    "own_gru_lm_2": partial(_lm, 12, (16, 14), cell="gru"),
}

TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "own_gpt": partial(models.GPT, VOCABULARY, 8, 24, 2, 4),
    "own_gpt_untied": partial(models.GPT, VOCABULARY, 8, 24, 2, 4, tied=False),
}
