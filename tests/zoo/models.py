"""The zoo: every network that tracing and resizing are tested on, with its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import own, sequences, vision

Build = Callable[[], nn.Module]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ZooModel:
    """A network of the zoo.

    ``tags`` name its origin ("torchvision", "timm", "own", "sequence") and "slow" a large one; "refused" marks one
    in which nothing can be removed.
    ``shape`` is the shape of its only input, batch of two included; ``vocabulary`` is set for token indices.
    ``state_outputs`` are the positions of outputs that carry a recurrent state.
    """

    name: str
    builder: Build
    shape: Shape
    tags: frozenset[str]
    vocabulary: int = 0
    state_outputs: tuple[int | str, ...] = ()

    def build(self, seed: int = 0) -> nn.Module:
        """A freshly initialised model in training mode; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torchvision and timm say while building is not ours to test
            torch.manual_seed(seed)
            return self.builder()

    def inputs(self, seed: int = 0) -> tuple[Tensor, ...]:
        """Example inputs in float32, or token indices."""
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            return (torch.randint(self.vocabulary, self.shape, generator=generator),)
        return (torch.randn(self.shape, generator=generator),)

    @property
    def slow(self) -> bool:
        """Whether the network is large."""
        return "slow" in self.tags


def image(name: str, builder: Build, size: int, *tags: str) -> ZooModel:
    """A network on two RGB images of ``size`` pixels."""
    return ZooModel(name, builder, (2, 3, size, size), frozenset(tags))


def tokens(name: str, builder: Build, length: int, vocabulary: int, *tags: str) -> ZooModel:
    """A network on two sequences of token indices; a language model with a state returns it second."""
    state = (1,) if "stateful" in tags else ()
    return ZooModel(name, builder, (2, length), frozenset(tags) | {"sequence"}, vocabulary, state)


def torchvision_zoo() -> list[ZooModel]:
    """torchvision's families."""
    return [
        *(image(name, builder, size, "torchvision") for name, (builder, size) in vision.TORCHVISION.items()),
        *(image(name, builder, size, "torchvision", "slow") for name, (builder, size) in vision.SLOW.items()),
    ]


def timm_zoo() -> list[ZooModel]:
    """timm's families."""
    return [
        *(image(name, builder, size, "timm") for name, (builder, size) in vision.TIMM.items()),
        *(image(name, builder, size, "timm", "refused") for name, (builder, size) in vision.REFUSED.items()),
    ]


def sequence_zoo() -> list[ZooModel]:
    """Transformers in which parts meet that `tests/structure` has one by one."""
    return [
        tokens("small_llama", sequences.SmallLlama, 7, 19),
        tokens("stacked_experts", sequences.StackedExperts, 7, 13),
    ]


def own_zoo() -> list[ZooModel]:
    """The networks of `apical.models`."""
    return [
        *(image(name, builder, size, "own") for name, (builder, size) in own.IMAGES.items()),
        *(image(name, builder, size, "own", "slow") for name, (builder, size) in own.SLOW_IMAGES.items()),
        *(tokens(name, builder, 6, own.VOCABULARY, "own", "stateful") for name, builder in own.RECURRENT.items()),
        *(tokens(name, builder, 6, own.VOCABULARY, "own") for name, builder in own.TRANSFORMERS.items()),
    ]


def all_models() -> dict[str, ZooModel]:
    """The whole table by name; a name that occurs twice is an error."""
    entries = [*own_zoo(), *torchvision_zoo(), *timm_zoo(), *sequence_zoo()]
    table: dict[str, ZooModel] = {}
    for entry in entries:
        if entry.name in table:
            raise ValueError(f"two zoo models are called {entry.name!r}")
        table[entry.name] = entry
    return table


ZOO = all_models()
