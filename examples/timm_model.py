"""Grow a vision transformer of timm: heads, MLP widths and blocks; its stream under LayerNorm stays.

    python examples/timm_model.py --model vit_tiny_patch16_224 --size 224

The images are noise, so that nothing has to be downloaded: put your own loader in place of them.
"""

from __future__ import annotations

import argparse

import timm
import torch
from torch import nn

import apical


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--depth", type=int, default=12)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=10, img_size=args.size, depth=args.depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    images, labels = torch.randn(16, 3, args.size, args.size), torch.randint(10, (16,))
    grower = apical.Grower(model, optimizer, (images[:1],), "50% macs", args.epochs)
    for item in grower.structure.frozen[:3]:
        print(f"frozen: {item.name} ({item.size}): {item.reason}")
    for epoch in range(args.epochs):
        for x, y in zip(images.split(8), labels.split(8), strict=True):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        record = grower.end_epoch()
        print(f"epoch {epoch + 1}: {record['macs_fraction']:.0%} of the MACs, {record['blocks']} blocks present")
    grower.finish()


if __name__ == "__main__":
    main()
