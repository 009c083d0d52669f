"""A small trial of growth options on held-out images: ResNet on Fashion-MNIST averaged to 14x14.

    APICAL_DATA=... python benchmarks/trial.py --seeds 10 11 12 13 --epochs 8 --depth 20
    APICAL_DATA=... python benchmarks/trial.py --seeds 10 11 12 13 --epochs 8 --depth 20 --set grow_depth=false

Trains on 20,000 images and reports accuracy on 5,000 others of the training set; the test set is not read.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import apical
from apical.data import load_images
from apical.models import CifarResNet

TRAIN, HELD_OUT = slice(0, 20_000), slice(55_000, 60_000)
BATCH = 128


@dataclass(frozen=True)
class Outcome:
    """One run."""

    accuracy: float
    macs_fraction: float
    train_macs_fraction: float
    blocks: int


def images() -> tuple[Tensor, Tensor]:
    """Normalised 14x14 images and labels of the training set."""
    arrays = load_images("fashion-mnist", "train")
    small = nn.functional.avg_pool2d(arrays.images.float(), 2)
    return (small - small.mean()) / small.std(), arrays.labels


def run(x: Tensor, y: Tensor, seed: int, epochs: int, depth: int, budget: str, options: dict[str, Any]) -> Outcome:
    """Grow one network and measure it on the held-out images."""
    torch.manual_seed(seed)
    model = CifarResNet(depth=depth, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    inputs, targets = x[TRAIN], y[TRAIN]
    steps = len(inputs) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps * epochs, pct_start=0.15)
    grower = apical.Grower(model, optimizer, (inputs[:1],), budget, epochs, seed=seed, **options)
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(inputs))
        for batch in order[: steps * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        grower.end_epoch()
    macs = [record["macs_fraction"] for record in grower.history]
    with torch.no_grad():
        right = model.eval()(x[HELD_OUT]).argmax(1) == y[HELD_OUT]
    return Outcome(right.float().mean().item(), macs[-1], statistics.mean(macs), grower.history[-1]["blocks"])


def parse_option(text: str) -> tuple[str, Any]:
    """``score_lr=0.01`` as a name and a value."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--depth", type=int, default=14)
    parser.add_argument("--budget", default="40% macs")
    parser.add_argument("--set", type=parse_option, action="append", default=[], metavar="OPTION=VALUE")
    options = parser.parse_args()
    x, y = images()
    outcomes = []
    for seed in options.seeds:
        outcomes.append(run(x, y, seed, options.epochs, options.depth, options.budget, dict(options.set)))
        print(f"seed {seed}: {outcomes[-1]}", flush=True)
    accuracies = [100 * o.accuracy for o in outcomes]
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    print(f"accuracy {statistics.mean(accuracies):.2f}{spread} %")


if __name__ == "__main__":
    main()
