"""Transformers whose combination of parts no smaller test has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
