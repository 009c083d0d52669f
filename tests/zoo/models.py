"""The zoo: every network that tracing and resizing are tested on, with its inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from structure.nets import LanguageModel

from . import handmade, own, sequences, vision

Build = Callable[[], nn.Module]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class ZooModel:
    """A network of the zoo.

    ``tags`` name its origin ("torchvision", "timm", "own", "trap", "sequence") and its cost ("fast", "slow"); "refused"
    marks a network in which nothing can be removed.
    ``shape`` is the shape of its only input, batch of two included; ``vocabulary`` is set for integer inputs.
    ``state_outputs`` are the positions of outputs that carry a recurrent state.
    """

    name: str
    builder: Build
    shape: Shape
    tags: frozenset[str]
    input_domain: Literal["real", "ints"] = "real"
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
        if self.input_domain == "ints":
            return (torch.randint(self.vocabulary, self.shape, generator=generator),)
        return (torch.randn(self.shape, generator=generator),)

    @property
    def slow(self) -> bool:
        """Whether the network is large."""
        return "slow" in self.tags


def image(name: str, builder: Build, size: int, *tags: str) -> ZooModel:
    """A network on two RGB images of ``size`` pixels."""
    speed = set() if "slow" in tags else {"fast"}
    return ZooModel(name, builder, (2, 3, size, size), frozenset(tags) | speed)


def tokens(name: str, builder: Build, length: int, vocabulary: int, *tags: str) -> ZooModel:
    """A network on two sequences of token indices; a language model with a state returns it second."""
    state = (1,) if "stateful" in tags else ()
    return ZooModel(name, builder, (2, length), frozenset(tags) | {"fast", "sequence"}, "ints", vocabulary, state)


def real(name: str, builder: Build, shape: Shape, *tags: str) -> ZooModel:
    """A network on a real tensor of any shape."""
    return ZooModel(name, builder, shape, frozenset(tags) | {"fast"})


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


def trap_zoo() -> list[ZooModel]:
    """Handmade nets, each around one trap."""
    images: dict[str, tuple[Build, int]] = {
        "spatial_gate": (handmade.SpatialGate, 8),
        "pixel_shuffle": (handmade.PixelShuffleNet, 8),
        "channel_shuffle": (partial(handmade.ChannelShuffleNet, grouped=False), 8),
        "channel_shuffle_grouped": (partial(handmade.ChannelShuffleNet, grouped=True), 8),
        "grouped_conv": (handmade.GroupedConv, 8),
        "transposed_conv": (handmade.TransposedConv, 16),
        "cat_split_chunk_stack": (handmade.CatSplitChunkStack, 8),
        "flatten_linear": (handmade.FlattenLinear, 16),
        "shared_conv": (handmade.SharedConv, 8),
        "shared_head": (handmade.SharedHead, 16),
        "lambda_zero_pad": (handmade.LambdaResNet, 16),
        "norm_zoo": (handmade.NormZoo, 8),
        "small_unet": (handmade.SmallUNet, 16),
        "global_filter": (handmade.GlobalFilter, 8),
        "auxiliary_head": (handmade.AuxiliaryHead, 8),
    }
    return [
        *(image(name, builder, size, "trap") for name, (builder, size) in images.items()),
        real("conv1d", handmade.Conv1dNet, (2, 2, 24), "trap"),
        real("conv3d", handmade.Conv3dNet, (2, 1, 4, 8, 8), "trap"),
        real("no_norm_mlp", handmade.NoNormMlp, (2, 6), "trap"),
    ]


def sequence_zoo() -> list[ZooModel]:
    """Recurrent nets and transformers over sequences."""
    recurrent = partial(partial, sequences.RecurrentClassifier)
    real_nets: dict[str, Build] = {
        "gru": recurrent(nn.GRU),
        "gru_2": recurrent(nn.GRU, 2),
        "rnn": recurrent(nn.RNN),
        "lstm_bidirectional": recurrent(nn.LSTM, bidirectional=True),
        "lstm_bidirectional_2": recurrent(nn.LSTM, 2, bidirectional=True),
    }
    cells: dict[str, Build] = {
        "lstm_cell_loop": partial(sequences.CellLoop, nn.LSTMCell),
        "gru_cell_loop": partial(sequences.CellLoop, nn.GRUCell),
        "rnn_cell_loop": partial(sequences.CellLoop, nn.RNNCell),
        "lstm_cell_fixed_state": partial(sequences.CellLoop, nn.LSTMCell, state_size=10),
    }

    def lm(layers: int, *, tied: bool = False) -> nn.Module:
        return LanguageModel(tied=tied, width=12, hidden=12 if tied else 16, vocabulary=23, layers=layers)

    return [
        *(real(name, builder, (2, 6, 5), "sequence") for name, builder in real_nets.items()),
        *(real(name, builder, (2, 5, 6), "sequence") for name, builder in cells.items()),
        tokens("lstm_lm_1", partial(lm, 1), 6, 23, "stateful"),
        tokens("lstm_lm_2", partial(lm, 2), 6, 23, "stateful"),
        tokens("lstm_lm_1_tied", partial(lm, 1, tied=True), 6, 23, "stateful"),
        tokens("lstm_lm_2_tied", partial(lm, 2, tied=True), 6, 23, "stateful"),
        tokens("lstm_lm_2_state_kept", partial(lm, 2), 6, 23),
        tokens("lstm_lm_stacked", sequences.StackedLstmLM, 6, 19),
        tokens("lstm_last_state", sequences.LastStateClassifier, 6, 17),
        tokens("transformer_post_norm", partial(sequences.EncoderClassifier, norm_first=False), 7, 13),
        tokens("transformer_pre_norm", partial(sequences.EncoderClassifier, norm_first=True), 7, 13),
        tokens("small_gpt", sequences.SmallGpt, 7, 19),
        tokens("small_bert", sequences.SmallBert, 7, 13),
        tokens("small_llama", sequences.SmallLlama, 7, 19),
        tokens("multi_query", sequences.MultiQuery, 7, 13),
        tokens("small_mamba", sequences.SmallMamba, 5, 13),
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
    entries = [*own_zoo(), *torchvision_zoo(), *timm_zoo(), *trap_zoo(), *sequence_zoo()]
    table: dict[str, ZooModel] = {}
    for entry in entries:
        if entry.name in table:
            raise ValueError(f"two zoo models are called {entry.name!r}")
        table[entry.name] = entry
    return table


ZOO = all_models()
