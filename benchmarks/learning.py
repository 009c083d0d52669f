"""Does learning pay? Networks that the data decided against rules, on held-out images.

    APICAL_DATA=... python benchmarks/learning.py --setting resnet20-16 --seeds 10 11 12 --out RESULTS.jsonl

One JSON line for each run; runs that the file has are not repeated, so that the command goes on where it was stopped.
Methods:

    learned        `apical.Grower` with its defaults, restructured between steps
    random         the same with utilities that are drawn
    probed         the same with utilities that are measured by switching units off (`probes.py`)
    one-ratio      the same with widths by one ratio and all blocks, from a seed that is small everywhere
    uniform        a fixed network, all widths by one ratio
    hand           a fixed network by the best rule we had before (decision 017): without early blocks, the rest by one
                   ratio; where there are no blocks, the widths that minimise the sum of N / n (full over present width)
    scs            the paper's version (`ScsConfig`)
    same-macs      the network that `learned` ended with, trained from the start for the same training MACs
    hand-same-macs the hand rule's network, trained for as many MACs as `learned` was
    other-images   as same-macs, with the proportions of the network that `learned` ended with on the other
                   resolution's images
    dense          the whole network

Training is that of `trial.py`: 20,000 images of CIFAR-10, SGD with Nesterov momentum, bfloat16 autocast, crops and
flips; accuracy on 5,000 held-out training images. MobileNetV1 and ResNet-18 (half as wide) see 8,000 photos of ten
classes in float32, at 64x64 (ResNet-18 at 16x16, too), and are judged on the other 1,469 training photos. The vision
transformer is trained with AdamW. The test images are read with ``--test`` only, when a network is done; they decide
nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from probes import ProbedController, probed
from torch import Tensor, nn
from trial import BATCH, HELD_OUT, TRAIN, Fixed, Images, Make, load, run

import apical
from apical.baselines import uniform_keep
from apical.budget import BoundBudget, Budget
from apical.growth import ScsConfig
from apical.growth._allocation import expected_values, moved, rates, unit_prices
from apical.growth._widths import Limits, fit
from apical.models import CifarResNet, MobileNetV1, ResNet, ViT, vgg16


@dataclass(frozen=True)
class Setting:
    """A network, its images and its budget.

    Attributes:
        build: makes the template.
        shrink: by which factor the images' resolution is reduced.
        epochs: of training.
        budget: of the final network.
        hand: blocks that the hand rule leaves out; None: there are none, and it chooses the widths.
        data: name of the images.
        train: how many, from the first on, are trained on.
        held_out: how many, from the last on, accuracy is measured on.
        amp: bfloat16 autocast.
        adam: AdamW instead of SGD.
        other: the setting with the same images at another resolution.
    """

    build: Callable[[], nn.Module]
    shrink: int
    epochs: int
    budget: str
    hand: tuple[str, ...] | None = None
    data: str = "cifar10"
    train: int = TRAIN.stop
    held_out: int = -HELD_OUT.start
    amp: bool = True
    adam: bool = False
    other: str = ""


def misproportioned() -> nn.Module:
    """ResNet-20 with four times the inner width in the first block of each stage and a quarter of it in the second."""
    model = CifarResNet(depth=20)
    for stage in (model.layer1, model.layer2, model.layer3):
        for block, factor in zip(stage, (4.0, 0.25, 1.0), strict=True):
            outputs, inputs, _, _ = block.conv1.weight.shape
            width = int(factor * outputs)
            block.conv1 = nn.Conv2d(inputs, width, 3, block.conv1.stride, padding=1, bias=False)
            block.bn1 = nn.BatchNorm2d(width)
            block.conv2 = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
            for conv in (block.conv1, block.conv2):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return model


def photos(build: Callable[[], nn.Module], shrink: int, budget: str, epochs: int = 8, other: str = "") -> Setting:
    """Photos of ten classes, in float32."""
    return Setting(build, shrink, epochs, budget, data="imagenette128", train=8_000, held_out=1_469, amp=False,
                   other=other)  # fmt: skip


def half_resnet18() -> nn.Module:
    """ResNet-18, half as wide."""
    return ResNet(18, num_classes=10, width=32)


EARLY = ("layer1.0", "layer1.1", "layer1.2", "layer2.2")
SETTINGS = {
    "resnet20-16": Setting(lambda: CifarResNet(depth=20), 2, 8, "50% macs", EARLY),
    "resnet20-16-quarter": Setting(
        lambda: CifarResNet(depth=20), 2, 8, "25% macs", EARLY, other="resnet20-32-quarter"
    ),
    "resnet20-16-long": Setting(lambda: CifarResNet(depth=20), 2, 40, "50% macs", EARLY),
    "resnet20-16-longest": Setting(lambda: CifarResNet(depth=20), 2, 160, "50% macs", EARLY),
    "resnet20-16-quarter-long": Setting(lambda: CifarResNet(depth=20), 2, 40, "25% macs", EARLY),
    "resnet20-16-eighth-long": Setting(lambda: CifarResNet(depth=20), 2, 40, "12.5% macs", EARLY),
    "misproportioned-16-long": Setting(misproportioned, 2, 40, "25% macs"),
    "resnet20-32": Setting(lambda: CifarResNet(depth=20), 1, 8, "50% macs", EARLY),
    "resnet20-32-quarter": Setting(
        lambda: CifarResNet(depth=20), 1, 8, "25% macs", EARLY, other="resnet20-16-quarter"
    ),
    "vgg16-32": Setting(vgg16, 1, 8, "13.6% macs, 5% params"),
    "vgg16-32-long": Setting(vgg16, 1, 40, "13.6% macs, 5% params"),
    "mobilenet-photos": photos(lambda: MobileNetV1(num_classes=10), 2, "50% macs"),
    "resnet18-photos": photos(half_resnet18, 2, "50% macs"),
    "resnet18-photos-quarter": photos(half_resnet18, 2, "25% macs", other="resnet18-photos-16-quarter"),
    "resnet18-photos-16-quarter": photos(half_resnet18, 8, "25% macs", other="resnet18-photos-quarter"),
    "resnet18-photos-16-quarter-long": photos(half_resnet18, 8, "25% macs", epochs=40),
    "vit-32": Setting(lambda: ViT(10, embedding_size=128, num_layers=6, num_heads=4), 1, 8, "50% macs", adam=True),
    "vit-32-patch8": Setting(
        lambda: ViT(10, patch_size=8, embedding_size=128, num_layers=6, num_heads=4), 1, 8, "50% macs", adam=True
    ),
}  # fmt: skip
GROWN: dict[str, dict[str, Any]] = {
    "learned": {},
    "random": {"utility": "random"},
    "probed": {},
    "one-ratio": {"damping": 0.0, "grow_depth": False, "seed_style": "small"},
}
SAME_MACS = ("same-macs", "hand-same-macs", "other-images")
# what a record lacks unless it was asked for; some files have runs whose learning rate followed the cost ("lr")
PLAIN = {"lr": None, "dtype": None}
METHODS = [*GROWN, "scs", "uniform", "hand", *SAME_MACS, "dense"]
DEFAULT = [method for method in METHODS if method not in ("probed", "other-images", "dense")]


def fixed(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor, widths: dict[str, int],
          skip: tuple[str, ...]) -> Fixed:  # fmt: skip
    """The model brought to these widths, for good."""
    structure = apical.trace(model, (example,))
    keep = {name: list(range(width)) for name, width in widths.items()}
    apical.resize_(model, structure, keep, skip, optimizer=optimizer)
    return Fixed(structure, keep, skip)


def maker(method: str, setting: Setting, seed: int, learned: dict[str, Any] | None, options: dict[str, Any]) -> Make:
    """What makes the method for a model; ``learned`` is the record of the learned network's last epoch."""

    def make(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor) -> Any:
        if method in GROWN:
            steps = setting.train // BATCH
            return apical.Grower(model, optimizer, (example,), setting.budget, setting.epochs, seed=seed,
                                 steps_per_epoch=steps, **(GROWN[method] | options))  # fmt: skip
        if method == "scs":
            return apical.Grower(model, optimizer, (example,), setting.budget, setting.epochs,
                                 ScsConfig(seed=seed, **options), steps_per_epoch=setting.train // BATCH)  # fmt: skip
        structure = apical.trace(model, (example,))
        if method in ("same-macs", "other-images"):
            assert learned is not None
            widths, skip = learned["widths"], tuple(learned["skipped"])
            if method == "other-images":
                widths = to_budget(structure, setting.budget, widths, skip)
            return fixed(model, optimizer, example, widths, skip)
        if method.startswith("hand") and setting.hand is None:
            return fixed(model, optimizer, example, balanced_widths(structure, setting.budget), ())
        skip = setting.hand if method.startswith("hand") and setting.hand else ()
        budget = "100% macs" if method == "dense" else setting.budget
        return fixed(model, optimizer, example, uniform_keep(structure, budget, skip=skip), skip)

    return make


def to_budget(
    structure: apical.Structure, budget: str, widths: dict[str, int], skip: tuple[str, ...]
) -> dict[str, int]:
    """Widths in these proportions that cost the budget: with other images, a network has another share of the MACs."""
    bound, limits = BoundBudget(Budget.of(budget), structure), Limits.of(structure, 1, 1)
    wanted = [float(widths.get(group.name, group.size)) for group in structure.groups]
    counts = fit(bound, limits, wanted, skip, 1.0, exact=True).counts
    return {group.name: count for group, count in zip(structure.groups, counts, strict=True)}


def balanced_widths(structure: apical.Structure, budget: str) -> dict[str, int]:
    """Widths that minimise Σ N_g / n_g under all limits of a budget, N_g being the full width."""
    bound, limits = BoundBudget(Budget.of(budget), structure), Limits.of(structure, 1, 1)
    sizes = [group.size for group in structure.groups]
    widths, weights = [float(size) for size in sizes], [1.0 / len(bound.reach)] * len(bound.reach)
    for _ in range(200):
        fitted = fit(bound, limits, widths, (), 1.0)
        counts = {group.name: count for group, count in zip(structure.groups, fitted.counts, strict=True)}
        widths = [min(w * math.exp(fitted.shift), n) for w, n in zip(widths, sizes, strict=True)]
        # the limit that is used up more weighs more
        loads = bound.loads(counts)
        raised = [weight * load / max(loads) for weight, load in zip(weights, loads, strict=True)]
        weights = [weight / sum(raised) for weight in raised]
        # at the minimum, N / n² of a unit per price is the same for all groups
        prices = unit_prices(bound, fitted.counts, limits.step, (), weights)
        worth = expected_values(sizes, fitted.counts)
        widths = moved(widths, rates(worth, prices, fitted.counts).relative, 0.2, 1.2)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--setting", choices=SETTINGS, required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of growth; names a variant")
    parser.add_argument("--float32", action="store_true", help="no autocast to bfloat16, for processors without it")
    parser.add_argument("--test", action="store_true", help="judge the networks on the test images, too")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.setting]
    options = {name: json.loads(value) for name, _, value in (text.partition("=") for text in arguments.set)}
    data: Images | None = None
    test = images(setting, "test") if arguments.test else None
    for seed in arguments.seeds:
        for method in arguments.methods:
            key = {"setting": arguments.setting, "method": method, "seed": seed, "options": options}
            key |= {"dtype": "float32"} if arguments.float32 else {}
            lines = read(arguments.out)
            if any(all(line.get(k) == v for k, v in (PLAIN | key).items()) for line in lines):
                continue
            data = images(setting) if data is None else data
            add(arguments.out, key | trained(method, setting, seed, data, lines, key, options, test))


def images(setting: Setting, split: str = "train") -> Images:
    """Images and labels; photos, which come ordered by class, in a random order that is always the same."""
    inputs, targets = load(setting.data, setting.shrink, split)
    if setting.data == "cifar10":
        return inputs, targets
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return inputs[order], targets[order]


def trained(method: str, setting: Setting, seed: int, data: Images, lines: list[dict[str, Any]], key: dict[str, Any],
            options: dict[str, Any], test: Images | None = None) -> dict[str, Any]:  # fmt: skip
    """The record of one run."""
    learned, epochs = None, setting.epochs
    if method in SAME_MACS:
        own = key | {"method": "learned"}
        source = own | {"setting": setting.other} if method == "other-images" else own
        found = [
            next((line for line in lines if all(line.get(k) == v for k, v in (PLAIN | wanted).items())), None)
            for wanted in (own, source)
        ]
        if None in found:
            raise SystemExit(f"{method} needs the learned run of the same seed first: {source}")
        learned = found[1]["last"]
        epochs = max(2, round(found[0]["train_macs"] / found[0]["last"]["macs_fraction"]))
    seen = (part[: setting.train] for part in data)
    with probed(*seen) if method == "probed" else nullcontext():
        outcome = run(
            data, seed, epochs, maker(method, setting, seed, learned, options), augment=True, build=setting.build,
            train=slice(setting.train), held_out=slice(-setting.held_out, None),
            amp=setting.amp and key.get("dtype") != "float32", adam=setting.adam, test=test,
        )  # fmt: skip
    record = dataclasses.asdict(outcome)
    history = record.pop("history")
    shown = ("macs_fraction", "widths", "skipped", "loss", "born", "returned", "died")
    return record | {
        "epochs": epochs,
        "probe_seconds": ProbedController.seconds if method == "probed" else None,
        "last": {name: history[-1][name] for name in shown if name in history[-1]},
        "trajectory": [{name: epoch[name] for name in shown if name in epoch} for epoch in history],
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "apical": apical.__version__},
    }


def read(path: Path) -> list[dict[str, Any]]:
    """The runs that a file has."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, record: dict[str, Any]) -> None:
    """Add a run to a file, and say what came out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(*(record[k] for k in ("setting", "method", "seed", "options")), f"{100 * record['accuracy']:.2f} %,",
          f"params {record['params_fraction']:.2f}, training {record['train_macs']:.2f},",
          record["last"]["skipped"], list(record["last"]["widths"].values()), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
