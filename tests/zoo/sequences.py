"""Recurrent and attention networks on sequences, small enough to trace in a second."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class BertOutput(nn.Module):
    """A projection, the addition, and the norm after it."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.dense, self.dropout, self.norm = nn.Linear(inner, width), nn.Dropout(0.1), nn.LayerNorm(width)

    def forward(self, hidden: Tensor, given: Tensor) -> Tensor:
        return self.norm(self.dropout(self.dense(hidden)) + given)


class BertHeads(nn.Module):
    """Attention without its output projection; its weights are returned, too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_width = width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = (self.query(x), self.key(x), self.value(x))
        q, k, v = (part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in parts)
        weights = (q @ k.transpose(-2, -1) / self.head_width**0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights


class BertLayer(nn.Module):
    """Post-norm encoder layer in the modules of BERT: no module computes a whole residual branch."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads, self.attended = BertHeads(width, heads), BertOutput(width, width)
        self.up, self.output = nn.Linear(width, inner), BertOutput(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attended(self.heads(x)[0], x)
        return self.output(F.gelu(self.up(x)), x)


class SmallBert(nn.Module):
    """Two such layers between an embedding and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 16)
        self.layers = nn.Sequential(BertLayer(16, 4, 24), BertLayer(16, 4, 24))
        self.fc = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc(self.layers(self.embedding(tokens)).mean(1))


class MultiQuery(nn.Module):
    """Attention of several query heads with one key and value head, which is copied for each of them."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.copies, self.head_width = heads, width // heads
        self.embedding, self.norm = nn.Embedding(13, width), nn.LayerNorm(width)
        self.query, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(width, self.head_width), nn.Linear(width, self.head_width)
        self.fc = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = self.norm(x)
        q = self.query(y).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
        k, v = (p(y).unsqueeze(1).expand(-1, self.copies, -1, -1) for p in (self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.fc((x + self.output(y.transpose(1, 2).flatten(2))).mean(1))


class SmallMamba(nn.Module):
    """A selective state-space layer, as an unrolled recurrence; its convolution reads a view of its weight."""

    def __init__(self, width: int = 8, inner: int = 12, states: int = 3) -> None:
        super().__init__()
        self.states = states
        self.embedding, self.norm = nn.Embedding(13, width), nn.LayerNorm(width)
        self.wide, self.conv = nn.Linear(width, 2 * inner), nn.Conv1d(inner, inner, 3, groups=inner)
        self.select, self.step = nn.Linear(inner, 2 + 2 * states, bias=False), nn.Linear(2, inner)
        self.decay, self.direct = nn.Parameter(torch.zeros(inner, states)), nn.Parameter(torch.ones(inner))
        self.narrow, self.fc = nn.Linear(inner, width), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.fc((x + self.mix(self.norm(x))).mean(1))

    def mix(self, x: Tensor) -> Tensor:
        x, gate = self.wide(x).transpose(1, 2).chunk(2, dim=1)
        weight = self.conv.weight.squeeze(1)
        x = F.conv1d(x, weight.unsqueeze(1), self.conv.bias, padding=2, groups=x.shape[1])[:, :, : x.shape[2]]
        x = F.silu(x)
        step, enters, leaves = torch.split(self.select(x.transpose(1, 2)), [2, self.states, self.states], dim=-1)
        step = F.softplus(self.step.weight @ step.transpose(1, 2) + self.step.bias[:, None])
        kept = torch.exp(-torch.exp(self.decay)[None, :, None, :] * step[..., None])
        added = step[..., None] * enters[:, None] * x[..., None]
        state, outputs = torch.zeros_like(kept[:, :, 0]), []
        for t in range(x.shape[2]):
            state = kept[:, :, t] * state + added[:, :, t]
            outputs.append((state @ leaves[:, t, :, None])[..., 0])
        y = torch.stack(outputs, -1) + x * self.direct[:, None]
        return self.narrow((y * F.silu(gate)).transpose(1, 2))


class StackedExperts(nn.Module):
    """Tokens go to two of four experts, whose weights lie in one tensor each."""

    def __init__(self, width: int = 8, inner: int = 10, experts: int = 4) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(13, width), nn.LayerNorm(width)
        self.router = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, 2 * inner, width) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, width, inner) / inner**0.5)
        self.fc = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        rows = self.norm(x).flatten(0, 1)
        share, chosen = self.router(rows).softmax(-1).topk(2, -1)  # (rows, 2)
        rows = rows.repeat_interleave(2, dim=0)
        gate, y = (self.up[chosen.flatten()] @ rows[..., None]).squeeze(-1).chunk(2, dim=-1)
        y = (self.down[chosen.flatten()] @ (F.silu(gate) * y)[..., None]).squeeze(-1) * share.flatten()[:, None]
        return self.fc((x + y.unflatten(0, (-1, 2)).sum(1).view_as(x)).mean(1))


class LlamaBlock(nn.Module):
    """Rotary positions, two key heads of two query heads each, a gated MLP; called with more than x, gives a tuple."""

    def __init__(self, width: int = 16, queries: int = 4, keys: int = 2, inner: int = 20) -> None:
        super().__init__()
        self.head_width, self.copies = width // queries, queries // keys
        kv = keys * self.head_width
        self.before_attention, self.before_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, n, bias=False) for n in (width, kv, kv))
        self.output = nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], use_cache: bool = False) -> tuple[Tensor, None]:
        y = self.before_attention(x)
        q, k, v = (
            p(y).unflatten(-1, (-1, self.head_width)).transpose(1, 2) for p in (self.query, self.key, self.value)
        )
        q, k = self.turn(q, *turns), self.turn(k, *turns)
        k, v = (t.repeat_interleave(self.copies, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(y.transpose(1, 2).flatten(2))
        y = self.before_mlp(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y)), None

    @staticmethod
    def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin


class SmallLlama(nn.Module):
    """A decoder as in Llama: its blocks get the positions' angles, computed once, and give a cache along."""

    def __init__(self, width: int = 16, vocabulary: int = 19, depth: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LlamaBlock(width) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.register_buffer("rates", 1.0 / 100.0 ** (torch.arange(0, 4, 2) / 4), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        steps = torch.arange(tokens.shape[1], device=tokens.device, dtype=self.rates.dtype)
        angles = torch.outer(steps, self.rates).repeat(1, 2)  # (tokens, width of a head)
        for block in self.blocks:
            x, _ = block(x, (angles.cos(), angles.sin()), use_cache=False)
        return self.head(self.norm(x))
