"""Parameter counts against published or independently computed numbers, and output shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from apical import models
from apical.errors import ConfigError

COUNTS: list[tuple[str, Callable[[], nn.Module], int]] = [
    ("resnet20", models.resnet20, 272_474),
    ("resnet20 zero_pad", lambda: models.resnet20(shortcut="zero_pad"), 269_722),
    ("resnet56 zero_pad", lambda: models.resnet56(shortcut="zero_pad"), 853_018),
    ("vgg16", models.vgg16, 14_724_042),
    ("vgg16 mlp", lambda: models.vgg16(head="mlp"), 14_724_042 + 512 * 512 + 2 * 512),
    ("wrn28_10", models.wrn28_10, 36_479_194),
    ("resnet18", models.resnet18, 11_689_512),
    ("resnet34", models.resnet34, 21_797_672),
    ("resnet50", models.resnet50, 25_557_032),
    ("resnet101", models.resnet101, 44_549_160),
    ("mobilenet_v1", models.mobilenet_v1, 4_231_976),
    ("deeplabv3_resnet50 aux", lambda: models.deeplabv3_resnet50(aux=True), 42_004_074),
    ("deeplabv3_resnet101 aux", lambda: models.deeplabv3_resnet101(aux=True), 60_996_202),
    ("gpt-2", lambda: models.GPT(50_257, 1024, 768, 12, 12), 124_439_808),
    # Zaremba's medium model: 2 x 650 on the Penn Treebank, 19.8 million.
    ("lstm medium", lambda: models.LSTMLanguageModel(10_000, 650, (650, 650)), 19_780_400),
]


@pytest.mark.parametrize(("build", "expected"), [row[1:] for row in COUNTS], ids=[row[0] for row in COUNTS])
def test_parameter_counts(build: Callable[[], nn.Module], expected: int) -> None:
    with torch.device("meta"):
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(
    ("build", "pixels", "millions"),
    [
        (lambda: models.resnet20(shortcut="zero_pad"), 32, 40.6),
        (lambda: models.resnet56(shortcut="zero_pad"), 32, 125.5),
        (models.vgg16, 32, 313.2),
        (models.wrn28_10, 32, 5246),
        (models.resnet50, 224, 4089),
        (models.mobilenet_v1, 224, 569),
    ],
    ids=["resnet20", "resnet56", "vgg16", "wrn28_10", "resnet50", "mobilenet_v1"],
)
def test_multiply_adds(build: Callable[[], nn.Module], pixels: int, millions: float) -> None:
    with torch.device("meta"):
        model, x = build().eval(), torch.zeros(1, 3, pixels, pixels)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() / 2e6 == pytest.approx(millions, rel=0.005)


SMALL: list[tuple[str, Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = [
    ("cifar resnet", lambda: models.CifarResNet(8, 7, 1, 4), (2, 1, 28, 28), (2, 7)),
    ("cifar resnet pad", lambda: models.CifarResNet(8, 7, 3, 4, "zero_pad"), (2, 3, 32, 32), (2, 7)),
    ("odd size pad", lambda: models.CifarResNet(8, 7, 3, 3, "zero_pad"), (2, 3, 17, 15), (2, 7)),
    ("digits", lambda: models.CifarResNet(8, 10, 1, 4), (2, 1, 8, 8), (2, 10)),
    ("vgg 28", lambda: models.CifarVGG16(7, 1, 2), (2, 1, 28, 28), (2, 7)),
    ("vgg 16 mlp", lambda: models.CifarVGG16(7, 3, 2, "mlp"), (2, 3, 16, 16), (2, 7)),
    ("wrn", lambda: models.WideResNet(10, 2, 7, 1, dropout=0.3), (2, 1, 28, 28), (2, 7)),
    ("resnet18", lambda: models.ResNet(18, 7, 1, 4), (2, 1, 64, 96), (2, 7)),
    ("resnet50", lambda: models.ResNet(50, 7, 3, 4), (2, 3, 64, 64), (2, 7)),
    ("mobilenet", lambda: models.MobileNetV1(7, 3, 0.1, dropout=0.1), (2, 3, 64, 64), (2, 7)),
    ("unet", lambda: models.UNet(5, 1, 2, levels=3), (2, 1, 24, 16), (2, 5, 24, 16)),
]


@pytest.mark.parametrize(("build", "shape", "expected"), [row[1:] for row in SMALL], ids=[row[0] for row in SMALL])
def test_shapes_and_gradients(
    build: Callable[[], nn.Module], shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    model = build()
    out: Tensor = model(torch.randn(shape))
    assert out.shape == expected
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: models.CifarResNet(21), "6n \\+ 2"),
        (lambda: models.CifarResNet(20, shortcut="pad"), "'pad'"),  # type: ignore[arg-type]
        (lambda: models.WideResNet(27), "6n \\+ 4"),
        (lambda: models.CifarVGG16(head="fc"), "'fc'"),  # type: ignore[arg-type]
        (lambda: models.ResNet(19), "19"),
        (lambda: models.ResNet(18, replace_stride_with_dilation=(True,)), "3 flags"),
        (lambda: models.MobileNetV1(width_mult=0.0), "positive"),
        (lambda: models.UNet(levels=0), "at least 1"),
        (lambda: models.GPT(10, embedding_size=10, num_heads=3), "head_dim"),
        (lambda: models.LSTMLanguageModel(10, 8, (8, 6), tied=True), "8 and 6"),
        (lambda: models.LSTMLanguageModel(10, 8, ()), "at least one layer"),
        (lambda: models.LSTMLanguageModel(10, cell="rnn"), "'rnn'"),  # type: ignore[arg-type]
    ],
)
def test_bad_configurations(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
