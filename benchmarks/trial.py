"""A small trial of growth options and of fixed architectures on held-out images, at half resolution or whole.

    APICAL_DATA=... python benchmarks/trial.py --seeds 10 11 12 13 --epochs 8
    APICAL_DATA=... python benchmarks/trial.py --data cifar10 --seeds 0 1 2 --epochs 20 --set seed_fraction=0.25
    APICAL_DATA=... python benchmarks/trial.py --data cifar10 --method uniform --epochs 16
    APICAL_DATA=... python benchmarks/trial.py --data cifar10 --method uniform --skip layer1.2 layer2.2 layer3.2

Trains a CIFAR ResNet on the first 20,000 training images, averaged to 14x14 (Fashion-MNIST) or 16x16 pixels (CIFAR-10,
with random crops and flips; ``--full``: at whole resolution), and reports accuracy on the last 5,000 of the training
set; the test set is not read.
Methods: grown (options by --set), uniform (all widths scaled by one ratio to the budget, without the blocks that --skip
names), dense. bfloat16 autocast, channels-last (where that is safe: `apical._memory_format`), SGD with Nesterov
momentum 0.9, learning rate 0.1 with one epoch of warm-up, then a cosine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import apical
from apical._memory_format import unsafe_in_channels_last
from apical.baselines import network_record, uniform_keep
from apical.data import RandomCrop, RandomFlip, load_images
from apical.models import CifarResNet

TRAIN, HELD_OUT = slice(0, 20_000), slice(-5_000, None)
BATCH = 128
Images = tuple[Tensor, Tensor]
Make = Callable[[nn.Module, torch.optim.Optimizer, Tensor], Any]  # a method for a model, its optimizer and an example


@dataclass(frozen=True)
class Outcome:
    """One run."""

    accuracy: float
    train_loss: float
    macs_fraction: float
    params_fraction: float
    train_macs: float  # in epochs of the full model
    blocks: int
    macs: int
    num_params: int
    churn: int  # units and blocks that were born, came back or died
    seconds: float  # of training and restructuring
    history: list[dict[str, Any]] = field(repr=False)  # one record per epoch
    test_accuracy: float | None = None  # where test images were given


class Fixed:
    """A network that does not change, with the Grower's interface."""

    def __init__(self, structure: apical.Structure, keep: dict[str, Any], skip: Sequence[str]) -> None:
        self._record = network_record(structure, keep, skip)

    def end_epoch(self) -> dict[str, Any]:
        return self._record

    def finish(self) -> None:
        pass


def load(name: str, shrink: int = 2, split: str = "train") -> Images:
    """Images averaged to a smaller resolution, normalised as the training images are, and labels

    Shapes: (N, C, H / shrink, W / shrink), (N,).
    """
    small, labels = _small(name, shrink, split)
    trained_on = small if split == "train" else _small(name, shrink, "train")[0]
    mean, std = trained_on.mean((0, 2, 3), keepdim=True), trained_on.std((0, 2, 3), keepdim=True)
    return (small - mean) / std, labels


def _small(name: str, shrink: int, split: str) -> Images:
    arrays = load_images(name, split)
    small = torch.cat([nn.functional.avg_pool2d(part.float(), shrink) for part in arrays.images.split(5_000)])
    return small, arrays.labels


def method_of(options: argparse.Namespace, seed: int, model: nn.Module, optimizer: torch.optim.Optimizer,
              example: Tensor) -> Any:  # fmt: skip
    """The method, with the model brought to its first shape."""
    if options.method == "grown":
        return apical.Grower(
            model, optimizer, (example,), options.budget, options.epochs, seed=seed, **dict(options.set)
        )
    structure = apical.trace(model, (example,))
    if options.method == "dense":
        return Fixed(structure, {}, ())
    widths = uniform_keep(structure, options.budget, skip=options.skip)
    keep = {name: list(range(width)) for name, width in widths.items()}
    apical.resize_(model, structure, keep, options.skip, optimizer=optimizer)
    return Fixed(structure, keep, options.skip)


def run(data: Images, seed: int, epochs: int, make: Make, depth: int = 20, augment: bool = False,
        build: Callable[[], nn.Module] | None = None, train: slice = TRAIN, held_out: slice = HELD_OUT,
        amp: bool = True, adam: bool = False, peak: float | None = None, weights: Path | None = None,
        save: Path | None = None, test: Images | None = None) -> Outcome:  # fmt: skip
    """Train one network by the method that ``make`` returns, and measure it on the held-out images.

    Args:
        data: images and labels.
        seed: of weights, order and augmentation.
        epochs: of training.
        make: the method for a model, its optimizer and an example.
        depth: of the CIFAR ResNet, where nothing else is built.
        augment: random crops and flips.
        build: makes the model.
        train: which images are trained on.
        held_out: which images accuracy is measured on.
        amp: bfloat16 autocast.
        adam: AdamW (learning rate 1e-3, weight decay 0.05, gradients clipped to norm 1) instead of SGD.
        peak: the highest learning rate; None: the optimizer's usual one.
        weights: of the whole network, to start from.
        save: where the trained weights go.
        test: images that the network is judged on once, when all is over, too.
    """
    images, labels = data
    inputs, targets = images[train], labels[train]
    torch.manual_seed(seed)
    model = CifarResNet(depth=depth, in_channels=inputs.shape[1]) if build is None else build()
    if weights is not None:
        model.load_state_dict(torch.load(weights))
    optimizer = sgd_or_adamw(model, adam)
    peak = peak or optimizer.param_groups[0]["lr"]
    method = make(model, optimizer, inputs[:1].contiguous())
    layout = torch.contiguous_format if unsafe_in_channels_last(model) else torch.channels_last
    inputs = inputs.contiguous(memory_format=layout)
    steps, records = len(inputs) // BATCH, []
    generator, start = torch.Generator().manual_seed(seed), time.perf_counter()
    for epoch in range(epochs):
        model.to(memory_format=layout).train()
        order, losses = torch.randperm(len(inputs), generator=generator), []
        for step, batch in enumerate(order[: steps * BATCH].split(BATCH)):
            for group in optimizer.param_groups:
                group["lr"] = peak * cosine(epoch + step / steps, epochs)
            crop = inputs.shape[-1] // 8  # pixels of padding
            x = RandomFlip()(RandomCrop(crop)(inputs[batch], generator), generator) if augment else inputs[batch]
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                loss = nn.functional.cross_entropy(model(x), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            if adam:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if hasattr(method, "end_step"):
                method.end_step()
        records.append({**method.end_epoch(), "loss": statistics.mean(losses)})
    seconds = time.perf_counter() - start
    method.finish()
    if save is not None:
        torch.save(model.state_dict(), save)
    found = outcome(accuracy(model, images[held_out], labels[held_out], amp), records, seconds)
    return found if test is None else dataclasses.replace(found, test_accuracy=accuracy(model, *test, amp))


def sgd_or_adamw(model: nn.Module, adam: bool) -> torch.optim.Optimizer:
    """The optimizer, at its highest learning rate."""
    if adam:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)


def outcome(judged: float, records: list[dict[str, Any]], seconds: float) -> Outcome:
    """What the epochs' records add up to."""
    last = records[-1]
    return Outcome(
        accuracy=judged,
        train_loss=last["loss"],
        macs_fraction=last["macs_fraction"],
        params_fraction=last["params_fraction"],
        train_macs=sum(record["macs_fraction"] for record in records),
        blocks=last["blocks"],
        macs=last["macs"],
        num_params=last["num_params"],
        churn=sum(record.get(change, 0) for record in records for change in ("born", "returned", "died")),
        seconds=seconds,
        history=records,
    )


def cosine(epoch: float, epochs: int) -> float:
    """One epoch of linear warm-up, then a cosine to zero."""
    return epoch if epoch < 1 else (1 + math.cos(math.pi * (epoch - 1) / (epochs - 1))) / 2


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, amp: bool = True) -> float:
    """Share of images that are classified rightly."""
    model.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        hits = sum(
            int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True)
        )
    return hits / len(labels)


def parse_option(text: str) -> tuple[str, Any]:
    """``damping=0.2`` as a name and a value."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", choices=["fashion-mnist", "cifar10"], default="fashion-mnist")
    parser.add_argument("--method", choices=["grown", "uniform", "dense"], default="grown")
    parser.add_argument("--skip", nargs="*", default=[], metavar="BLOCK", help="blocks that uniform leaves out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--full", action="store_true", help="do not halve the resolution")
    parser.add_argument("--budget", default="50% macs")
    parser.add_argument("--set", type=parse_option, action="append", default=[], metavar="OPTION=VALUE")
    options = parser.parse_args()
    data, outcomes = load(options.data, 1 if options.full else 2), []
    for seed in options.seeds:
        make = partial(method_of, options, seed)
        outcomes.append(run(data, seed, options.epochs, make, options.depth, augment=options.data == "cifar10"))
        print(f"seed {seed}: {outcomes[-1]}", flush=True)
    show: Callable[[str, float], str] = lambda name, scale: _mean([scale * getattr(o, name) for o in outcomes])  # noqa: E731
    print(f"accuracy {show('accuracy', 100)} %, training MACs {show('train_macs', 1)} epochs of the full model")


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
