"""Stacked LSTM language model (Zaremba et al. 2014, arXiv:1409.2329)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from apical.errors import ConfigError

#: One tuple per layer: ``(hidden, cell)`` of an LSTM, ``(hidden,)`` of a GRU; each (1, B, hidden size of the layer).
State = tuple[tuple[Tensor, ...], ...]


class LSTMLanguageModel(nn.Module):
    """Embedding, recurrent layers with dropout between them, linear decoder.

    Every layer is a single-layer module of its own, so that each has its own hidden size. All parameters start
    uniformly in ``[-init_range, init_range]``, as in the paper (0.1 small, 0.05 medium, 0.04 large).
    `lstm_small`, `lstm_medium` and `lstm_large` have the paper's sizes.

    Args:
        vocab_size: number of words.
        embedding_size: width of the word vectors.
        hidden_sizes: hidden units of each layer, first to last.
        dropout: probability on all non-recurrent connections.
        tied: let decoder and embedding share their weight (Press and Wolf 2017, arXiv:1608.05859).
        cell: ``"lstm"`` or ``"gru"``.
        init_range: bound of the initial weights.

    Raises:
        ConfigError: no layer, another cell, or ``tied`` while embedding and last layer differ in width.

    Example:
        >>> import torch
        >>> model = LSTMLanguageModel(vocab_size=100, embedding_size=8, hidden_sizes=(16, 12))
        >>> tokens = torch.zeros(5, 2, dtype=torch.long)
        >>> logits, state = model(tokens)
        >>> logits.shape, [tuple(h.shape) for h, c in state]
        (torch.Size([5, 2, 100]), [(1, 2, 16), (1, 2, 12)])
        >>> logits, state = model(tokens, state)  # goes on with the stream
    """

    state_outputs = (1,)  # the second output is the state: its size may change with the layers'

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int = 200,
        hidden_sizes: Sequence[int] = (200, 200),
        dropout: float = 0.0,
        tied: bool = False,
        cell: Literal["lstm", "gru"] = "lstm",
        init_range: float = 0.1,
    ) -> None:
        super().__init__()
        _check(embedding_size, hidden_sizes, tied, cell)
        recurrent = nn.LSTM if cell == "lstm" else nn.GRU
        inputs = [embedding_size, *hidden_sizes[:-1]]
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.layers = nn.ModuleList(
            recurrent(input_size=fan_in, hidden_size=units) for fan_in, units in zip(inputs, hidden_sizes, strict=True)
        )
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(hidden_sizes[-1], vocab_size)
        if tied:
            self.decoder.weight = self.embedding.weight
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_range, init_range)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Predict the next word at every position.

        Args:
            tokens: (T, B), int64.
            state: what the previous window returned (detach it first), or None to start at zero.

        Returns:
            Logits (T, B, vocab_size) and the state after the last step.
        """
        x = self.dropout(self.embedding(tokens))  # (T, B, embedding_size)
        new_state: list[tuple[Tensor, ...]] = []
        for position, layer in enumerate(self.layers):
            previous = None if state is None else state[position]
            if isinstance(layer, nn.GRU):
                x, hidden = layer(x, None if previous is None else previous[0])
                new_state.append((hidden,))
            else:
                x, (hidden, memory) = layer(x, previous)
                new_state.append((hidden, memory))
            x = self.dropout(x)  # (T, B, hidden size of the layer)
        logits: Tensor = self.decoder(x)
        return logits, tuple(new_state)


def lstm_small(vocab_size: int, **options: Any) -> LSTMLanguageModel:
    """The paper's small network: 2 x 200 units, no dropout. Options override its sizes.

    Example:
        >>> sum(p.numel() for p in lstm_small(10_000).parameters())
        4653200
    """
    sizes: dict[str, Any] = {"embedding_size": 200, "hidden_sizes": (200, 200), "init_range": 0.1}
    return LSTMLanguageModel(vocab_size, **(sizes | options))


def lstm_medium(vocab_size: int, **options: Any) -> LSTMLanguageModel:
    """The paper's medium network: 2 x 650 units, dropout 0.5. Options override its sizes.

    Example:
        >>> lstm_medium(50, dropout=0.1).dropout
        Dropout(p=0.1, inplace=False)
    """
    sizes: dict[str, Any] = {"embedding_size": 650, "hidden_sizes": (650, 650), "dropout": 0.5, "init_range": 0.05}
    return LSTMLanguageModel(vocab_size, **(sizes | options))


def lstm_large(vocab_size: int, **options: Any) -> LSTMLanguageModel:
    """The paper's large network: 2 x 1500 units, dropout 0.65. Options override its sizes.

    Example:
        >>> [layer.hidden_size for layer in lstm_large(50).layers]
        [1500, 1500]
    """
    sizes: dict[str, Any] = {"embedding_size": 1500, "hidden_sizes": (1500, 1500), "dropout": 0.65, "init_range": 0.04}
    return LSTMLanguageModel(vocab_size, **(sizes | options))


def _check(embedding_size: int, hidden_sizes: Sequence[int], tied: bool, cell: str) -> None:
    if isinstance(hidden_sizes, int):
        raise ConfigError(f"hidden_sizes must name the size of each layer, for example (200, 200), got {hidden_sizes}")
    if not hidden_sizes:
        raise ConfigError("hidden_sizes must name at least one layer, got none")
    if cell not in ("lstm", "gru"):
        raise ConfigError(f"cell must be 'lstm' or 'gru', got {cell!r}")
    if tied and embedding_size != hidden_sizes[-1]:
        raise ConfigError(
            f"tied weights need embedding_size equal to the last hidden size, got {embedding_size} and "
            f"{hidden_sizes[-1]}; make them equal or pass tied=False"
        )
