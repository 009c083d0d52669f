"""DeepLabV3 for semantic segmentation (Chen et al. 2017, arXiv:1706.05587).

Parameter names, shapes and outputs equal torchvision's ``deeplabv3_resnet50`` and ``deeplabv3_resnet101``, so that a
``state_dict`` of those loads strictly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.models._resnet import ResNet


def _conv_norm_relu(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> list[nn.Module]:
    padding = dilation * (kernel_size // 2)
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class DilatedBackbone(nn.Module):
    """A ResNet without pooling and classifier; stages 3 and 4 are dilated, so the output is an eighth of the input."""

    def __init__(self, depth: int, in_channels: int, width: int) -> None:
        super().__init__()
        resnet = ResNet(
            depth, num_classes=1, in_channels=in_channels, width=width, replace_stride_with_dilation=(False, True, True)
        )
        self.conv1 = resnet.conv1
        self.bn1 = resnet.bn1
        self.relu = resnet.relu
        self.maxpool = resnet.maxpool
        self.layer1 = resnet.layer1
        self.layer2 = resnet.layer2
        self.layer3 = resnet.layer3
        self.layer4 = resnet.layer4
        self.out_channels = resnet.fc.in_features
        self.aux_channels = resnet.fc.in_features // 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, in_channels, H, W) -> 2 x (N, channels, H / 8, W / 8)
        """Return the features of stage 4 and of stage 3."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        aux = self.layer3(self.layer2(self.layer1(x)))
        return self.layer4(aux), aux


class ASPPPooling(nn.Sequential):
    """Image-level features: global average, 1x1 convolution, norm, ReLU, spread over the feature map again."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(1), *_conv_norm_relu(in_channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, out, H, W)
        pooled = x
        for layer in self:
            pooled = layer(pooled)
        return F.interpolate(pooled, size=x.shape[-2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1, several dilated 3x3 and a pooling branch, concatenated and projected."""

    def __init__(self, in_channels: int, out_channels: int, rates: Sequence[int]) -> None:
        super().__init__()
        branches: list[nn.Module] = [nn.Sequential(*_conv_norm_relu(in_channels, out_channels, 1))]
        branches += [nn.Sequential(*_conv_norm_relu(in_channels, out_channels, 3, rate)) for rate in rates]
        branches.append(ASPPPooling(in_channels, out_channels))
        self.convs = nn.ModuleList(branches)
        self.project = nn.Sequential(*_conv_norm_relu(len(branches) * out_channels, out_channels, 1), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:  # (N, in, H, W) -> (N, out, H, W)
        out: Tensor = self.project(torch.cat([conv(x) for conv in self.convs], dim=1))
        return out


def _make_head(in_channels: int, num_classes: int, width: int, rates: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(
        ASPP(in_channels, width, rates), *_conv_norm_relu(width, width, 3), nn.Conv2d(width, num_classes, 1)
    )


def _make_aux_head(in_channels: int, num_classes: int) -> nn.Sequential:
    width = in_channels // 4
    return nn.Sequential(*_conv_norm_relu(in_channels, width, 3), nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1))


class DeepLabV3(nn.Module):
    """Dilated ResNet, atrous spatial pyramid pooling and a small decoder; logits at the resolution of the input.

    Training with batch norm needs at least two images a batch (the pooling branch has one pixel an image).

    Args:
        depth: of the ResNet: 50 or 101 as in torchvision; 18 and 34 work too.
        num_classes: classes, background included.
        aux: also classify the features of stage 3 (an auxiliary loss for training).
        in_channels: channels of the image.
        width: channels of the ResNet's stem; 64 in the paper.
        head_width: channels of each pyramid branch and of the decoder; 256 in the paper.
        rates: dilations of the pyramid's 3x3 convolutions.

    Raises:
        ConfigError: there is no ResNet of this depth.

    Example:
        >>> model = DeepLabV3(18, num_classes=4, aux=True, width=8, head_width=8).eval()
        >>> {name: tuple(logits.shape) for name, logits in model(torch.zeros(1, 3, 40, 56)).items()}
        {'out': (1, 4, 40, 56), 'aux': (1, 4, 40, 56)}
    """

    def __init__(
        self,
        depth: int = 101,
        num_classes: int = 21,
        aux: bool = False,
        in_channels: int = 3,
        width: int = 64,
        head_width: int = 256,
        rates: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__()
        self.backbone = DilatedBackbone(depth, in_channels, width)
        self.classifier = _make_head(self.backbone.out_channels, num_classes, head_width, rates)
        self.aux_classifier = _make_aux_head(self.backbone.aux_channels, num_classes) if aux else None

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # (N, in_channels, H, W) -> each (N, num_classes, H, W)
        """Return ``{"out": logits}``, and ``"aux"`` where there is an auxiliary head."""
        size = x.shape[-2:]
        features, aux_features = self.backbone(x)
        logits = {"out": F.interpolate(self.classifier(features), size=size, mode="bilinear", align_corners=False)}
        if self.aux_classifier is not None:
            aux = self.aux_classifier(aux_features)
            logits["aux"] = F.interpolate(aux, size=size, mode="bilinear", align_corners=False)
        return logits


def deeplabv3_resnet50(num_classes: int = 21, aux: bool = False) -> DeepLabV3:
    """DeepLabV3 on ResNet-50: 39.6 million parameters (42.0 with the auxiliary head)."""
    return DeepLabV3(50, num_classes, aux)


def deeplabv3_resnet101(num_classes: int = 21, aux: bool = False) -> DeepLabV3:
    """DeepLabV3 on ResNet-101: 58.6 million parameters (61.0 with the auxiliary head)."""
    return DeepLabV3(101, num_classes, aux)
