"""Grow the hidden units of a two-layer LSTM that reads a text letter by letter.

    python examples/lstm.py
    python examples/lstm.py --text book.txt --epochs 20 --units 512

A unit goes with its state, its four gate rows, its recurrent column and everything that reads it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

import apical
from apical.models import LSTMLanguageModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path(__file__), help="this very file, unless you name another")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--units", type=int, default=96)
    args = parser.parse_args()

    torch.manual_seed(0)
    text = args.text.read_text(encoding="utf-8")
    letters = sorted(set(text))
    numbers = torch.tensor([letters.index(letter) for letter in text])
    streams = numbers[: len(numbers) // 8 * 8].view(8, -1).T  # (time, streams)

    model = LSTMLanguageModel(len(letters), embedding_size=32, hidden_sizes=(args.units, args.units))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    example = torch.zeros(16, 1, dtype=torch.long)
    grower = apical.Grower(model, optimizer, (example,), "40% params", args.epochs)
    for epoch in range(args.epochs):
        losses = []
        for start in range(0, len(streams) - 17, 16):
            window = streams[start : start + 17]
            output, _state = model(window[:-1])
            loss = nn.functional.cross_entropy(output.flatten(0, 1), window[1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        record = grower.end_epoch()
        print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.2f}, widths {record['widths']}")
    grower.finish()


if __name__ == "__main__":
    main()
