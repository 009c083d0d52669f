"""The recurrent and the transformer language model."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from apical.models import GPT, LSTMLanguageModel
from apical.models._gpt import CausalSelfAttention


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_layers_of_different_sizes(cell: Literal["lstm", "gru"]) -> None:
    model = LSTMLanguageModel(11, 5, (7, 3, 4), cell=cell)
    logits, state = model(torch.randint(11, (6, 2)))
    assert logits.shape == (6, 2, 11)
    assert [tuple(part.shape for part in layer) for layer in state] == [
        ((1, 2, units),) * (2 if cell == "lstm" else 1) for units in (7, 3, 4)
    ]


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_state_continues_the_stream(cell: Literal["lstm", "gru"]) -> None:
    model = LSTMLanguageModel(11, 5, (7, 4), cell=cell).double()
    tokens = torch.randint(11, (8, 3))
    whole, last = model(tokens)
    first, state = model(tokens[:5])
    second, end = model(tokens[5:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    for layer, expected in zip(end, last, strict=True):
        torch.testing.assert_close(layer, expected)


def test_equals_stacked_lstm() -> None:
    model = LSTMLanguageModel(11, 5, (6, 6)).double()
    stacked = torch.nn.LSTM(5, 6, num_layers=2).double()
    for position, layer in enumerate(model.layers):
        for name, parameter in layer.named_parameters():
            getattr(stacked, name.replace("l0", f"l{position}")).data = parameter.data
    tokens = torch.randint(11, (4, 2))
    expected = model.decoder(stacked(model.embedding(tokens))[0])
    torch.testing.assert_close(model(tokens)[0], expected)


def test_tied_weights_and_initial_range() -> None:
    model = LSTMLanguageModel(11, 6, (7, 6), tied=True, init_range=0.05)
    assert model.decoder.weight is model.embedding.weight
    assert all(parameter.abs().max() <= 0.05 for parameter in model.parameters())
    untied = LSTMLanguageModel(11, 6, (7, 6))
    difference = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in model.parameters())
    assert difference == 11 * 6


def test_dropout_acts_in_training_only() -> None:
    model = LSTMLanguageModel(11, 5, (7,), dropout=0.5)
    tokens = torch.randint(11, (6, 2))
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_gpt_is_causal() -> None:
    model = GPT(17, 12, 8, num_layers=2, num_heads=2).double().eval()
    tokens = torch.randint(17, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 17
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_head_of_zero_output_can_be_removed() -> None:
    attention = CausalSelfAttention(10, num_heads=3, head_dim=4).double()
    with torch.no_grad():
        attention.proj.weight[:, 4:8] = 0  # the second head
    x = torch.randn(2, 5, 10, dtype=torch.float64)
    expected = attention(x)
    kept = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    rows = torch.cat([kept, kept + 12, kept + 24])
    attention.qkv.weight = torch.nn.Parameter(attention.qkv.weight[rows])
    attention.qkv.bias = torch.nn.Parameter(attention.qkv.bias[rows])
    attention.proj.weight = torch.nn.Parameter(attention.proj.weight[:, kept])
    attention.num_heads = 2
    torch.testing.assert_close(attention(x), expected)


def test_gpt_starts_near_the_uniform_distribution() -> None:
    model = GPT(64, 16, 32, num_layers=4, num_heads=4, dropout=0.1)
    tokens = torch.randint(64, (4, 16))
    loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(torch.tensor(64.0).log().item(), rel=0.1)
