"""How well a layer's outputs can be rebuilt from some of the channels that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.baselines._subject import Rows, Subject
from apical.structure import ChannelGroup

IMAGES, LOCATIONS, OUTPUTS = 4, 4, 16  # sampled per batch, per image, and output channels per location


class Reader:
    """A convolution or linear layer that reads a group, and a sample of what it read most recently."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, rows: Rows, samples: int, generator: torch.Generator) -> None:
        self.layer, self.rows, self.samples, self._generator = layer, rows, samples, generator
        self._read: list[Tensor] = []  # (locations, in channels, kernel elements)
        self.hook = layer.register_forward_pre_hook(self._remember)

    @torch.no_grad()
    def _remember(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if layer.training:
            self._read.append(self._locations(inputs[0].detach()).float())
            while sum(map(len, self._read[1:])) >= self.samples:
                del self._read[0]

    def _locations(self, x: Tensor) -> Tensor:
        """What some randomly chosen outputs are computed from  # (locations, in channels, kernel elements)"""
        if isinstance(self.layer, nn.Linear):
            vectors = x.reshape(-1, x.shape[-1])
            return vectors[self._draw(len(vectors), IMAGES * LOCATIONS)][:, :, None]
        x = x[self._draw(len(x), IMAGES)]
        layer = self.layer
        windows = F.unfold(_padded(x, layer), layer.kernel_size, layer.dilation, 0, layer.stride)  # (n, c k, places)
        windows = windows.transpose(1, 2).reshape(-1, x.shape[1], windows.shape[1] // x.shape[1])
        return windows[self._draw(len(windows), len(x) * LOCATIONS)]

    def _draw(self, among: int, number: int) -> Tensor:
        return torch.randperm(among, generator=self._generator)[:number]

    @property
    def read(self) -> Tensor:
        """What was remembered  # (locations, in channels, kernel elements)"""
        return torch.cat(self._read)

    def outputs(self, locations: int) -> Tensor:
        """Randomly chosen output channels for each location  # (locations, outputs)"""
        return torch.randint(self.layer.weight.shape[0], (locations, OUTPUTS), generator=self._generator)


def _padded(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """The image with the convolution's own padding; zeros wherever it pads otherwise."""
    return F.pad(x, layer._reversed_padding_repeated_twice)


def readers_of(subject: Subject, group: ChannelGroup, samples: int, generator: torch.Generator) -> list[Reader]:
    """Watch the layers that read a group. Depthwise, grouped and recurrent layers are not watched."""
    found = []
    for rows in subject.rows(group, group.readers):
        path, _, leaf = rows.name.rpartition(".")
        layer = subject.model.get_submodule(path)
        plain = isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
        if plain and leaf == "weight" and rows.dim == 1:
            assert isinstance(layer, (nn.Conv2d, nn.Linear))
            found.append(Reader(layer, rows, samples, generator))
    return found


@torch.no_grad()
def gram_of(reader: Reader) -> Tensor:
    """G = ZᵀZ of the units' contributions Z to sampled outputs of the layer  # (units, units) float64

    The sum of all entries is the energy Σ y² of the outputs, bias left out.
    """
    read = reader.read.cpu()  # (n, channels, kernel)
    weight = reader.rows.tensor.detach().float().cpu()
    weight = weight.reshape(*weight.shape[:2], -1)  # (out, channels, kernel)
    gram = torch.zeros(len(reader.rows.index), len(reader.rows.index), dtype=torch.float64)
    index = reader.rows.index.cpu()
    for chunk, outputs in zip(read.split(64), reader.outputs(len(read)).split(64), strict=True):
        z = torch.einsum("nck,nock->noc", chunk, weight[outputs])  # (n, outputs, channels)
        units = z[:, :, index].sum(-1).reshape(-1, len(index)).double()  # (n outputs, units)
        gram += units.T @ units
    return gram


def greedy_removal(gram: Tensor, width: int) -> list[int]:
    """The units that stay when those are removed, one by one, whose joint contribution is smallest.

        next = argmin_c ‖Σ_{d ∈ T ∪ c} z_d‖² = argmin_c 2 Σ_{d ∈ T} G_cd + G_cc

    Args:
        gram: G  # (units, units)
        width: how many stay.

    Example:
        >>> greedy_removal(torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]), 1)
        [1]
    """
    removed = torch.zeros(len(gram), dtype=torch.bool)
    joint = torch.zeros(len(gram), dtype=gram.dtype)  # Σ_{d ∈ T} G_cd
    for _ in range(len(gram) - width):
        cost = (2 * joint + gram.diagonal()).masked_fill(removed, torch.inf)
        chosen = int(cost.argmin())
        removed[chosen] = True
        joint += gram[chosen]
    return (~removed).nonzero().reshape(-1).tolist()


def rescaling(gram: Tensor, kept: Sequence[int]) -> Tensor:
    """Factors for the kept units that rebuild the outputs best: ŵ = argmin ‖Z 1 − Z_S w‖²  # (kept,)

    The normal equations G_SS w = G_S· 1 are solved with a little of the mean diagonal added, against collinear units.

    Example:
        >>> rescaling(torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64), [0]).round(decimals=2)
        tensor([2.], dtype=torch.float64)
    """
    chosen = list(kept)
    inner = gram[chosen][:, chosen]
    ridge = 1e-4 * inner.diagonal().mean().clamp(min=1e-12) * torch.eye(len(chosen), dtype=gram.dtype)
    factors: Tensor = torch.linalg.solve(inner + ridge, gram[chosen].sum(1) + ridge.sum(1))
    return factors
