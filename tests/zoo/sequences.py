"""Recurrent and attention networks on sequences, small enough to trace in a second."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LstmLM(nn.Module):
    """Word-level LSTM language model; ``tied`` shares the embedding with the decoder."""

    def __init__(self, layers: int = 1, *, tied: bool = False, vocabulary: int = 23, width: int = 12) -> None:
        super().__init__()
        hidden = width if tied else 16
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, hidden, layers, batch_first=True)
        self.decoder = nn.Linear(hidden, vocabulary)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, state = self.lstm(self.embedding(tokens))
        return self.decoder(output), state


class StackedLstmLM(nn.Module):
    """Two separate LSTM modules with dropout between them, sequence first, no state returned."""

    def __init__(self, vocabulary: int = 19) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 10)
        self.first, self.second = nn.LSTM(10, 14), nn.LSTM(14, 9)
        self.dropout = nn.Dropout(0.5)
        self.decoder = nn.Linear(9, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens.transpose(0, 1))
        x = self.dropout(self.first(x)[0])
        return self.decoder(self.dropout(self.second(x)[0]))


class RecurrentClassifier(nn.Module):
    """A recurrent encoder of any kind, mean over time, linear classifier."""

    def __init__(self, cell: type[nn.RNNBase], layers: int = 1, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.project = nn.Linear(5, 8)
        self.rnn = cell(8, 11, layers, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(22 if bidirectional else 11, 4)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.rnn(torch.relu(self.project(x)))
        return self.fc(output.mean(1))


class LastStateClassifier(nn.Module):
    """Bidirectional LSTM whose two last hidden states are concatenated, as in text classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 9)
        self.lstm = nn.LSTM(9, 7, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(14, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.fc(torch.cat([hidden[0], hidden[1]], 1))


class CellLoop(nn.Module):
    """A recurrent cell unrolled by a Python loop from a zero state.

    The state's size is asked of the cell; with ``state_size`` it is a number of the model's own, which no library can
    know to change.
    """

    def __init__(self, cell: type[nn.RNNCellBase], state_size: int | None = None) -> None:
        super().__init__()
        self.state_size = state_size
        self.project = nn.Linear(6, 7)
        self.cell = cell(7, 10)
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.project(x))
        state = x.new_zeros(x.shape[0], self.state_size or self.cell.hidden_size)
        memory = torch.zeros_like(state)
        for step in range(x.shape[1]):
            if isinstance(self.cell, nn.LSTMCell):
                state, memory = self.cell(x[:, step], (state, memory))
            else:
                state = self.cell(x[:, step], state)
        return self.fc(state)


class EncoderClassifier(nn.Module):
    """``nn.TransformerEncoder`` over token embeddings with a learned position table."""

    def __init__(self, *, norm_first: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.position = nn.Parameter(torch.zeros(1, 7, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embedding(tokens) + self.position).mean(1))


class GptBlock(nn.Module):
    """Pre-norm transformer block with fused query-key-value projection, as in small GPT codebases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = self.qkv(x).split(width, dim=2)
        shape = (batch, time, self.heads, width // self.heads)
        q, k, v = (part.view(shape).transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(y.transpose(1, 2).contiguous().view(batch, time, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class SmallGpt(nn.Module):
    """Decoder-only transformer with the token embedding tied to the output projection."""

    def __init__(self, vocabulary: int = 19, width: int = 16, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(8, width)
        self.blocks = nn.ModuleList([GptBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
