"""Small networks, each built around one trap for channel tracing: a sharing, a reshaping or a broadcast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU: the unit most of the nets below are made of."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class Head(nn.Module):
    """Global average pool and a linear classifier."""

    def __init__(self, channels: int, classes: int = 5) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class SpatialGate(nn.Module):
    """Squeeze-excite followed by a 1-channel spatial gate, which broadcasts over all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.body = conv_bn(12, 16)
        self.squeeze = nn.Conv2d(16, 6, 1)
        self.excite = nn.Conv2d(6, 16, 1)
        self.spatial = nn.Conv2d(16, 1, 3, padding=1)
        self.head = Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = x * gate
        return self.head(x * torch.sigmoid(self.spatial(x)))


class PixelShuffleNet(nn.Module):
    """Pixel unshuffle, convolutions, pixel shuffle: one unit owns r*r consecutive channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.inner = conv_bn(24, 20)
        self.expand = nn.Conv2d(20, 32, 3, padding=1)
        self.tail = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(F.pixel_unshuffle(self.stem(x), 2))
        return self.tail(F.relu(F.pixel_shuffle(self.expand(x), 2)))


class ChannelShuffleNet(nn.Module):
    """A channel shuffle written with view and transpose, between depthwise and grouped convolutions.

    With ``groups`` of three the widths are multiples of nine, so that equally many channels can go from every group.
    """

    def __init__(self, *, grouped: bool) -> None:
        super().__init__()
        groups = 3 if grouped else 1
        self.stem = conv_bn(3, 12)
        self.first = conv_bn(12, 36, kernel=1, groups=groups)
        self.depthwise = conv_bn(36, 36, groups=36)
        self.second = conv_bn(36, 18, kernel=1, groups=groups)
        self.mix = conv_bn(18, 10, kernel=1)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.stem(x))
        batch, channels, height, width = y.shape
        y = y.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(self.mix(self.second(self.depthwise(y))))


class GroupedConv(nn.Module):
    """Plain, grouped and depthwise-multiplier convolutions in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.grouped = conv_bn(8, 16, groups=4)
        self.multiplier = conv_bn(16, 32, groups=16)
        self.mix = conv_bn(32, 10, kernel=1)
        self.head = Head(10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.multiplier(self.grouped(self.stem(x)))))


class TransposedConv(nn.Module):
    """Transposed convolutions, plain and grouped, as in decoders."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8, stride=2)
        self.down = conv_bn(8, 12, stride=2)
        self.up_grouped = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        x = F.relu(self.norm(self.up_grouped(x)))
        return self.last(F.relu(self.up(x)))


class Conv1dNet(nn.Module):
    """A temporal network with a dilated residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(2, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv1d(12, 16, 3, padding=2, dilation=2), nn.BatchNorm1d(16), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv1d(16, 12, 1), nn.BatchNorm1d(12))
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.outer(self.inner(x)))
        return self.fc(F.max_pool1d(x, 2).mean(-1))


class Conv3dNet(nn.Module):
    """A small video network, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.MaxPool3d(2))
        self.body = nn.Sequential(nn.Conv3d(6, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU())
        self.fc = nn.Linear(8 * 2 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).flatten(1))


class CatSplitChunkStack(nn.Module):
    """Dense concatenation, uneven split, chunk and stack between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.left, self.right = conv_bn(8, 6), conv_bn(8, 10)
        self.mixed = conv_bn(24, 12)
        self.small, self.large = conv_bn(5, 4), conv_bn(7, 4)
        self.halves = conv_bn(4, 8)
        self.head = Head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.mixed(torch.cat([x, self.left(x), self.right(x)], 1))
        a, b = torch.split(x, [5, 7], 1)
        x = torch.stack([self.small(a), self.large(b)]).sum(0)
        value, gate = self.halves(x).chunk(2, 1)
        return self.head(value * torch.sigmoid(gate))


class FlattenLinear(nn.Module):
    """Flatten into a linear layer: one channel owns height*width input columns."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(3, 6), nn.MaxPool2d(4), conv_bn(6, 9))
        self.classifier = nn.Sequential(nn.Linear(9 * 16, 14), nn.ReLU(), nn.Dropout(), nn.Linear(14, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class SharedConv(nn.Module):
    """One convolution used twice, once after itself, with a norm of its own each time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 10)
        self.shared = nn.Conv2d(10, 10, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(10), nn.BatchNorm2d(10)])
        self.last = conv_bn(10, 7)
        self.head = Head(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm in self.norms:
            x = F.relu(norm(self.shared(x)))
        return self.head(self.last(x))


class SharedHead(nn.Module):
    """A detection-like head whose one convolution reads two feature levels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv_bn(3, 8), conv_bn(8, 8, stride=2)
        self.tower = nn.Conv2d(8, 12, 3, padding=1)
        self.predict = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        coarse = self.down(fine)
        return {
            "fine": self.predict(F.relu(self.tower(fine))),
            "coarse": self.predict(F.relu(self.tower(coarse))),
        }


class LambdaLayer(nn.Module):
    """A module around a function, as in a well-known CIFAR ResNet repository."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.pad = planes // 4

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad), "constant", 0)


class LambdaBlock(nn.Module):
    """Residual block with the option-A shortcut: stride and zero channels on both sides."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = LambdaLayer(planes) if stride != 1 else nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class LambdaResNet(nn.Module):
    """CIFAR ResNet-14 with zero-pad shortcuts: 16 → 32 → 64 channels in miniature (8 → 16 → 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.layer1 = nn.Sequential(LambdaBlock(8, 8, 1), LambdaBlock(8, 8, 1))
        self.layer2 = nn.Sequential(LambdaBlock(8, 16, 2), LambdaBlock(16, 16, 1))
        self.layer3 = nn.Sequential(LambdaBlock(16, 32, 2), LambdaBlock(32, 32, 1))
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer3(self.layer2(self.layer1(self.stem(x))))
        return self.linear(F.avg_pool2d(out, out.size(3)).view(out.size(0), -1))


class NormZoo(nn.Module):
    """Group norm, instance norm, layer norm over channels last, PReLU per channel, learned scale."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.group = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.conv2, self.instance = nn.Conv2d(8, 6, 3, padding=1), nn.InstanceNorm2d(6, affine=True)
        self.act = nn.PReLU(6)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.conv3, self.layer = nn.Conv2d(6, 10, 1), nn.LayerNorm(10)
        self.mlp = nn.Sequential(nn.Linear(10, 16), nn.GELU(), nn.Linear(16, 10))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.group(self.conv1(x)))
        x = self.act(self.instance(self.conv2(x))) * self.scale
        x = self.layer(self.conv3(x).permute(0, 2, 3, 1))
        x = x + self.mlp(x)
        return self.fc(x.mean((1, 2)))


class NoNormMlp(nn.Module):
    """Linear layers with activations that are zero at zero and ones that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 8), nn.Linear(8, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        x = torch.sigmoid(self.layers[1](x))
        x = F.softplus(self.layers[2](x)) + 1.0
        return self.layers[3](x)


class SmallUNet(nn.Module):
    """Encoder, decoder with transposed convolutions, skip connections by concatenation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.enc1, self.enc2 = self.two_convs(3, width), self.two_convs(width, 2 * width)
        self.bottom = self.two_convs(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.dec2 = self.two_convs(4 * width, 2 * width)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.dec1 = self.two_convs(3 * width, width)
        self.last = nn.Conv2d(width, 4, 1)

    @staticmethod
    def two_convs(in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(conv_bn(in_channels, out_channels), conv_bn(out_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        one = self.enc1(x)
        two = self.enc2(F.max_pool2d(one, 2))
        deep = self.bottom(F.max_pool2d(two, 2))
        two = self.dec2(torch.cat([self.up2(deep), two], 1))
        return self.last(self.dec1(torch.cat([self.up1(two), one], 1)))


class GlobalFilter(nn.Module):
    """A learned filter per channel and frequency (GFNet) on convolved images."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.filter = nn.Parameter(torch.randn(6, size, size // 2 + 1, 2))
        self.last, self.head = nn.Conv2d(6, 7, 1), Head(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
        x = x + torch.fft.irfft2(y, s=x.shape[-2:], norm="ortho")
        return self.head(torch.relu(self.last(x)))


class AuxiliaryHead(nn.Module):
    """A second classifier in the middle, which only training runs."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 8), conv_bn(8, 12)
        self.auxiliary = nn.Sequential(nn.Conv2d(8, 6, 1), nn.ReLU(), Head(6, classes))
        self.head = Head(12, classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.first(x)
        out = self.head(self.second(y))
        return (out, self.auxiliary(y)) if self.training else out
