"""Rules for modules of torch whose own code cannot run at other sizes than it was built with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.structure._registry import register_module


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` with fewer heads than its embedding has room for; the width of a head stays.

    Torch's own forward pass takes the width of a head to be ``embed_dim / num_heads``. While heads are missing, a
    module of exactly that class has this one instead; it has the same parameters, names and arguments, and prints
    the same. Once all heads are back, so is torch's class.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        return False  # keeps nn.TransformerEncoderLayer from its fused kernel, which assumes full width

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, value: bool) -> None:
        pass

    def _get_name(self) -> str:
        return "MultiheadAttention"

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """What `torch.nn.MultiheadAttention` computes, for as many heads as there are."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)  # (batch, heads, tokens, width per head)
        mask = self._mask(attn_mask, key_padding_mask, q, key.shape[1], k.shape[2])
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            y = weights @ v
        else:
            causal = is_causal and key_padding_mask is None  # torch then lets the hint stand for the mask
            y = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
        y = F.linear(y.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, with the learned extra key and value and the zero one, split into heads."""
        rows = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if self.in_proj_weight is None
            else self.in_proj_weight.chunk(3)
        )
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), rows, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, b.expand(x.shape[0], -1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        return q, k, v

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, given: int, total: int
    ) -> Tensor | None:
        """Both masks as one sum to the scores, zero for the keys that were added  # (batch, heads or 1, q, k)"""
        masks = []
        for mask, kind in ((attn_mask, "attn"), (padding, "padding")):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
            if kind == "padding":
                mask = mask.view(-1, 1, 1, given)
            elif mask.dim() == 3 and mask.shape[0] != q.shape[0]:
                mask = mask.view(q.shape[0], -1, *mask.shape[1:])  # one mask per head
            elif mask.dim() == 3:
                mask = mask.unsqueeze(1)
            masks.append(F.pad(mask.to(q.dtype), (0, total - given)))
        return masks[0] if len(masks) == 1 else masks[0] + masks[1] if masks else None


@register_module(nn.MultiheadAttention)
def refresh_attention(module: nn.MultiheadAttention) -> None:
    """Torch's own class where all heads and the whole embedding are there, else the one that can do with fewer."""
    if type(module) not in (nn.MultiheadAttention, NarrowMultiheadAttention):
        return
    full = tuple(module.out_proj.weight.shape) == (module.embed_dim, module.embed_dim)
    module.__class__ = nn.MultiheadAttention if full else NarrowMultiheadAttention


@register_module(nn.LayerNorm)
def refresh_layer_norm(module: nn.LayerNorm) -> None:
    """The shape over which it normalises is that of its weight."""
    if module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)


@register_module(nn.RMSNorm)
def refresh_rms_norm(module: nn.RMSNorm) -> None:
    """The shape over which it normalises is that of its weight."""
    if module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
