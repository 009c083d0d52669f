"""Grow a torchvision ResNet-18: any model that `torch.export` follows needs nothing to be said about it.

    python examples/torchvision_model.py --steps 100

torch and torchvision must be builds that fit each other, as `pip install torch torchvision` takes them in one command;
where `import torchvision` says that an operator does not exist, they do not.

The images are noise, so that nothing has to be downloaded: put your own loader in place of `batches`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor, nn

import apical


def batches(steps: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(steps):
        yield torch.randn(8, 3, size, size), torch.randint(10, (8,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="of an epoch")
    parser.add_argument("--size", type=int, default=64, help="of the images, in pixels")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    example = torch.zeros(1, 3, args.size, args.size)
    grower = apical.Grower(model, optimizer, (example,), "40% macs", args.epochs, divisor=8)
    for epoch in range(args.epochs):
        for images, labels in batches(args.steps, args.size):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        record = grower.end_epoch()
        print(f"epoch {epoch + 1}: {record['macs_fraction']:.0%} of the MACs, {record['params_fraction']:.0%} of the "
              f"parameters, {record['blocks']} of {len(grower.structure.blocks)} blocks")  # fmt: skip
    grower.finish()
    print(model.layer4[0])


if __name__ == "__main__":
    main()
