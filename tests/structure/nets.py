"""Small networks for the engine's tests: named parts and a forward function, each around one question."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical import Structure, trace


class Net(nn.Module):
    """Named parts, and a function of the module and its inputs as forward pass.

    Parts are modules, parameters or (plain tensors) buffers.
    """

    def __init__(self, fn: Callable[..., Any], **parts: nn.Module | Tensor | int) -> None:
        super().__init__()
        self.fn = fn
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(self, *args, **kwargs)


def conv(i: int, o: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the image size at stride 1."""
    return nn.Conv2d(i, o, kernel, padding=kernel // 2, **options)


def unit(i: int, o: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(conv(i, o, kernel, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU())


class Residual(nn.Module):
    """Post-activation residual block, with a projection when ``inner`` and the shape ask for one."""

    def __init__(self, i: int, o: int, inner: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(i, inner, stride=stride, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, o, bias=False), nn.BatchNorm2d(o)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or i != o:
            self.shortcut = nn.Sequential(conv(i, o, 1, stride=stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class PreActivation(nn.Module):
    """Pre-activation residual block."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), conv(width, inner)
        self.bn2, self.conv2 = nn.BatchNorm2d(inner), conv(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class ZeroPadShortcut(nn.Module):
    """ResNet's option A: every second pixel, and zeros for the channels that the input lacks."""

    def __init__(self, i: int, o: int, inner: int) -> None:
        super().__init__()
        self.extra = o - i
        self.conv1, self.bn1 = conv(i, inner, stride=2, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, o, bias=False), nn.BatchNorm2d(o)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        half = self.extra // 2
        return F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra - half)))


class SqueezeExcite(nn.Module):
    """Channel attention from the mean over the image."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class RmsNorm(nn.Module):
    """RMSNorm as most language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Module):
    """Self-attention with separate projections, ``num_heads`` and ``head_dim`` as attributes."""

    def __init__(self, width: int, heads: int, head_dim: int, out: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, head_dim
        self.query, self.key, self.value = (nn.Linear(width, heads * head_dim) for _ in range(3))
        self.project = nn.Linear(heads * head_dim, width if out is None else out)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.project(y.transpose(1, 2).reshape(*x.shape[:2], self.num_heads * self.head_dim))


class ExplicitAttention(Attention):
    """The same, with the products and the softmax written out."""

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        q, k, v = (part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.head_dim**-0.5, -1)
        return self.project((weights @ v).transpose(1, 2).flatten(2))


class CellLoop(nn.Module):
    """A recurrent cell over time, from a zero state as wide as the cell says."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.up, self.cell, self.fc = nn.Linear(3, 5), kind(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.cell.hidden_size)
        memory = torch.zeros_like(state)
        for t in range(x.shape[1]):
            step = torch.relu(self.up(x[:, t]))
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(step, (state, memory))
            else:
                state = self.cell(step, state)
        return self.fc(state)


def recurrent(kind: str, layers: int = 1, bidirectional: bool = False, **options: Any) -> nn.Module:
    """A linear layer, a recurrent module, a linear layer on its outputs; ``kind`` is LSTM, GRU or RNN."""
    rnn = getattr(nn, kind)(4, 6, layers, batch_first=True, bidirectional=bidirectional, **options)
    width = (options.get("proj_size") or 6) * (2 if bidirectional else 1)
    return Net(lambda m, x: m.fc(m.rnn(torch.relu(m.up(x)))[0]), up=nn.Linear(3, 4), rnn=rnn, fc=nn.Linear(width, 2))


class LanguageModel(nn.Module):
    """Embedding, LSTM, decoder; takes and returns the state; the decoder may share the embedding's weight."""

    def __init__(self, *, tied: bool, width: int = 6, hidden: int = 6, vocabulary: int = 11, layers: int = 1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True)
        self.decoder = nn.Linear(hidden, vocabulary)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        y, state = self.lstm(self.embedding(tokens))
        return self.decoder(y), state


def tiny_resnet() -> nn.Module:
    """Three residual blocks, one with a projection: blocks, streams and inner groups in one small net."""
    return nn.Sequential(
        unit(3, 8), Residual(8, 8, 6), Residual(8, 12, 10, stride=2), Residual(12, 12, 7),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


@cache
def tiny_structure() -> Structure:
    """Its structure, traced once."""
    with torch.random.fork_rng():
        return trace(tiny_resnet(), image())


def head(i: int, o: int = 2) -> nn.Sequential:
    """Mean over the image and a linear layer."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, o))


def image(batch: int = 2, channels: int = 3, size: int = 8) -> tuple[Tensor]:
    """One random image batch, the same at every call."""
    return (torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(7)),)


def vectors(*shape: int) -> tuple[Tensor]:
    """One random tensor, the same at every call."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(7)),)


def tokens(batch: int = 2, length: int = 5, vocabulary: int = 11) -> tuple[Tensor]:
    """Token indices, the same at every call."""
    return (torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(7)),)
