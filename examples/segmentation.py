"""Grow a U-Net that finds discs in noisy pictures, and say what it costs.

    python examples/segmentation.py --epochs 12

For folders in the layout of PASCAL VOC, `apical train voc-deeplabv3-resnet50 --data FOLDER` does the whole run.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import apical
from apical.models import UNet


def discs(count: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Noisy pictures  # (count, 1, size, size), and which pixels are discs  # (count, size, size)."""
    where = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).float()
    centre, radius = torch.rand(count, 2, 1, 1) * size, torch.rand(count, 1, 1) * size / 6 + size / 8
    mask = (where[None] - centre).square().sum(1) < radius.square()
    return (mask[:, None].float() + 0.7 * torch.randn(count, 1, size, size)), mask.long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--images", type=int, default=128)
    args = parser.parse_args()

    torch.manual_seed(0)
    (images, masks), (new_images, new_masks) = discs(args.images), discs(32)
    model = UNet(in_channels=1, num_classes=2, width=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    grower = apical.Grower(model, optimizer, (images[:1],), "30% macs", args.epochs)
    for epoch in range(args.epochs):
        model.train()
        for x, y in zip(images.split(16), masks.split(16), strict=True):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            found = model(new_images).argmax(1).bool()
        overlap = ((found & new_masks.bool()).sum() / (found | new_masks.bool()).sum()).item()
        record = grower.end_epoch()
        print(f"epoch {epoch + 1}: overlap with the discs {overlap:.2f}, {record['macs_fraction']:.0%} of the MACs")
    grower.finish()


if __name__ == "__main__":
    main()
