"""A small GPT: pre-norm transformer decoder.

Radford et al. 2019, "Language models are unsupervised multitask learners" (GPT-2). With GPT-2's sizes it has
GPT-2's number of parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.errors import ConfigError


class SelfAttention(nn.Module):
    """Multi-head attention; with ``causal`` a position sees itself and what came before, else every other.

    The reshapes use only ``num_heads`` and ``head_dim``, so a head is removed by removing its rows of ``qkv`` (in each
    of the three thirds), its columns of ``proj``, and counting down ``num_heads``. The inner width
    ``num_heads * head_dim`` may differ from the embedding's.
    """

    def __init__(
        self, embedding_size: int, num_heads: int, head_dim: int, dropout: float = 0.0, causal: bool = True
    ) -> None:
        super().__init__()
        self.causal = causal
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.qkv = nn.Linear(embedding_size, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, embedding_size)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, embedding) -> (B, T, embedding)
        """Attend; B sequences of T positions."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, T, head_dim)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
        merged = attended.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim)
        out: Tensor = self.proj(merged)
        return out


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, embedding_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embedding_size, hidden_size)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden_size, embedding_size)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, embedding) -> (B, T, embedding)
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``."""

    def __init__(
        self, embedding_size: int, num_heads: int, head_dim: int, mlp_size: int, dropout: float, causal: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embedding_size)
        self.attn = SelfAttention(embedding_size, num_heads, head_dim, dropout, causal)
        self.norm2 = nn.LayerNorm(embedding_size)
        self.mlp = MLP(embedding_size, mlp_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, embedding) -> (B, T, embedding)
        x = x + self.dropout(self.attn(self.norm1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class GPT(nn.Module):
    """Token and position embeddings, pre-norm blocks, a last norm, linear head.

    Weights start normal with standard deviation 0.02, the two projections into the residual stream with
    0.02 / sqrt(2 * num_layers), biases at zero.

    Args:
        vocab_size: number of tokens.
        context_length: longest sequence.
        embedding_size: width of the residual stream.
        num_layers: blocks.
        num_heads: attention heads of each block.
        head_dim: width of a head; by default ``embedding_size // num_heads``.
        mlp_size: hidden width of the MLPs; by default ``4 * embedding_size``.
        dropout: probability on embeddings, attention weights and branches.
        tied: let the head share the token embedding's weight.

    Raises:
        ConfigError: ``head_dim`` is not given and heads do not divide the embedding.

    Example:
        >>> model = GPT(vocab_size=50, context_length=16, embedding_size=12, num_layers=2, num_heads=3)
        >>> model(torch.zeros(2, 7, dtype=torch.long)).shape
        torch.Size([2, 7, 50])
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 256,
        embedding_size: int = 192,
        num_layers: int = 6,
        num_heads: int = 6,
        head_dim: int | None = None,
        mlp_size: int | None = None,
        dropout: float = 0.0,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if head_dim is None:
            if embedding_size % num_heads:
                raise ConfigError(
                    f"num_heads must divide embedding_size, got {num_heads} and {embedding_size}; or pass head_dim"
                )
            head_dim = embedding_size // num_heads
        mlp_size = 4 * embedding_size if mlp_size is None else mlp_size
        self.token_embedding = nn.Embedding(vocab_size, embedding_size)
        self.position_embedding = nn.Embedding(context_length, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(Block(embedding_size, num_heads, head_dim, mlp_size, dropout) for _ in range(num_layers))
        )
        self.norm = nn.LayerNorm(embedding_size)
        self.head = nn.Linear(embedding_size, vocab_size, bias=False)
        _init_(self, num_layers)
        if tied:
            self.head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) int64 -> (B, T, vocab_size)
        """Predict the next token at every position."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


class StreamGPT(GPT):
    """A `GPT` with the interface of `LSTMLanguageModel`: streams of tokens in, time first, and a state that is empty.

    Every window starts without a past, so the first tokens of a window are predicted from little.

    Example:
        >>> logits, state = StreamGPT(50, 16, 12, 2, 3)(torch.zeros(7, 2, dtype=torch.long))
        >>> logits.shape, state
        (torch.Size([7, 2, 50]), ())
    """

    def forward(self, tokens: Tensor, _state: tuple[()] = ()) -> tuple[Tensor, tuple[()]]:  # type: ignore[override]
        """(T, B) int64 -> (T, B, vocab_size) and the empty state."""
        return super().forward(tokens.t()).transpose(0, 1), ()


def gpt_small(vocab_size: int, context_length: int = 256, **options: Any) -> StreamGPT:
    """Six blocks of width 192 with six heads, dropout 0.1: 2.7 million parameters beside the embeddings.

    Example:
        >>> model = gpt_small(50, num_layers=2)
        >>> len(model.blocks), model.position_embedding
        (2, Embedding(256, 192))
    """
    return StreamGPT(vocab_size, context_length, **({"dropout": 0.1} | options))


def _init_(model: GPT, num_layers: int) -> None:
    residual_std = 0.02 / math.sqrt(2 * num_layers)
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            into_stream = name.endswith((".attn.proj", ".mlp.fc2"))
            nn.init.normal_(module.weight, std=residual_std if into_stream else 0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
