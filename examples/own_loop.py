"""Grow a network in a training loop of your own: scheduler, mixed precision, clipping and a moving average included.

python examples/own_loop.py                 real handwritten digits, a minute
python examples/own_loop.py --epochs 3      a shorter look
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import apical
from apical.models import CifarResNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--budget", default="50% macs")
    parser.add_argument("--out", default="runs/own-loop")
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # (1797, 1, 8, 8)
    labels = torch.tensor(digits.target)
    held_out = torch.arange(len(labels)) % 5 == 0

    model = CifarResNet(depth=14, width=16, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)

    # The model shrinks here. The average is a copy of it, so it is named and resized with it.
    grower = apical.Grower(model, optimizer, (images[:1],), args.budget, args.epochs, copies=[average])
    print(grower.structure)

    for epoch in range(args.epochs):
        model.train()
        order = torch.randperm(len(labels))
        for index in order[~held_out[order]].split(64):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            average.update_parameters(model)
        scheduler.step()
        average.eval()
        with torch.inference_mode():
            right = (average(images[held_out]).argmax(1) == labels[held_out]).double().mean().item()
        record = grower.end_epoch()  # restructures model, optimizer and average
        print(
            f"epoch {epoch + 1}: held-out accuracy {right:.1%}, {record['macs_fraction']:.0%} of the MACs, "
            f"{record['blocks']} blocks, widths {list(record['widths'].values())}"
        )
    grower.finish()
    model.load_state_dict(average.module.state_dict())
    print(f"saved to {apical.save(model, args.out)}")


if __name__ == "__main__":
    main()
