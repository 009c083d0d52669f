"""Does each comparator show the relation that its paper is about? ResNet-14 on Fashion-MNIST averaged to 14x14.

    APICAL_DATA=... python benchmarks/relations.py --out runs/relations.jsonl
    APICAL_DATA=... python benchmarks/relations.py --out runs/relations.jsonl --only l1 taylor

Trains on 6,000 images and judges on 5,000 others of the training set; the test set is not read. Every run is a line of
the file, and runs that are there already are not repeated. Right after pruning, a copy is judged whose BatchNorm
statistics were estimated anew on training images: without that, everything pruned is at chance.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import apical
from apical import baselines as b
from apical.data import load_images
from apical.growth import GrowthConfig, ScsConfig
from apical.models import CifarResNet
from apical.reporting import MeanStd, difference, mean_std

TRAIN, HELD_OUT = slice(0, 6_000), slice(55_000, 60_000)
BATCH, EPOCHS, BUDGET, DEPTH = 128, 8, "50% macs", 14
Make = Callable[[nn.Module, Optimizer, Tensor, int], Any]


def comparator(rule: b.Rule) -> Make:
    """A comparator that goes by a rule."""
    return lambda model, optimizer, x, epochs: b.Comparator(rule, model, optimizer, x, BUDGET, epochs)


def grower(preset: Callable[..., GrowthConfig | ScsConfig], **changes: Any) -> Make:
    """Growth by a preset."""
    return lambda model, optimizer, x, epochs: apical.Grower(
        model, optimizer, (x,), BUDGET, epochs, preset(seed=torch.initial_seed(), **changes)
    )


METHODS: dict[str, Make] = {
    "dense": comparator(b.Dense()),
    "uniform": comparator(b.Uniform()),
    "l1": comparator(b.L1()),
    "l1, random filters": comparator(b.L1(order="random")),
    "l1, largest filters": comparator(b.L1(order="largest")),
    "slimming": comparator(b.Slimming(penalty=3e-3)),
    "slimming, no penalty": comparator(b.Slimming(penalty=0.0)),
    "taylor": comparator(b.Taylor()),
    "taylor, random units": comparator(b.Taylor(random=True)),
    "grown": grower(GrowthConfig),
    "scs": grower(ScsConfig),
    "random": grower(ScsConfig.random),
}


@dataclass(frozen=True)
class Relation:
    """What a paper says: `better` above `worse`, right after pruning or at the end."""

    method: str
    better: str
    worse: str
    when: str
    source: str


RELATIONS = (
    Relation("uniform", "dense", "uniform", "final", "the full model is more accurate"),
    Relation("l1", "l1", "l1, random filters", "pruned", "Li et al. 2017: smallest above random"),
    Relation("l1", "l1, random filters", "l1, largest filters", "pruned", "Li et al. 2017: random above largest"),
    Relation("l1", "l1", "l1, random filters", "final", "the same after fine-tuning"),
    Relation("slimming", "slimming", "slimming, no penalty", "pruned", "Liu et al. 2017: sparse scales go unnoticed"),
    Relation("slimming", "slimming", "slimming, no penalty", "final", "the same after fine-tuning"),
    Relation("taylor", "taylor", "taylor, random units", "pruned", "Molchanov et al. 2019: above random"),
    Relation("taylor", "taylor", "taylor, random units", "final", "the same at the end"),
    Relation("random", "scs", "random", "final", "[SCS]: learned above random growth"),
    Relation("random", "grown", "random", "final", "ours above random growth"),
    Relation("final-same-macs", "final, same epochs", "final, same macs", "final", "longer training is better"),
)


@dataclass(frozen=True)
class Outcome:
    """One run; accuracies on held-out images."""

    method: str
    seed: int
    pruned: float | None  # right after the last restructuring
    final: float
    macs_fraction: float
    train_macs_fraction: float
    widths: dict[str, int]
    skipped: list[str]


def images() -> tuple[Tensor, Tensor]:
    """Normalised 14x14 images and labels of the training set."""
    arrays = load_images("fashion-mnist", "train")
    small = nn.functional.avg_pool2d(arrays.images.float(), 2)
    return (small - small.mean()) / small.std(), arrays.labels


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(part).argmax(1) for part in x[HELD_OUT].split(1000)]) == y[HELD_OUT]
    return right.float().mean().item()


@torch.no_grad()
def recalibrated(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy with BatchNorm statistics of its own; no weight changes."""
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over the batches
    for batch in inputs[:2000].split(200):
        twin(batch)
    return twin


def run(name: str, make: Make, x: Tensor, y: Tensor, seed: int, epochs: int = EPOCHS) -> Outcome:
    """Train one network by one method."""
    torch.manual_seed(seed)
    model = CifarResNet(depth=DEPTH, in_channels=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    inputs, targets = x[TRAIN], y[TRAIN]
    steps = len(inputs) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps * epochs, pct_start=0.15)
    method = make(model, optimizer, inputs[:1], epochs)
    records, pruned = [], None
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(inputs))
        for batch in order[: steps * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        sizes = [p.shape for p in model.parameters()]
        records.append(method.end_epoch())
        if sizes != [p.shape for p in model.parameters()]:
            pruned = accuracy(recalibrated(model, inputs), x, y)
    method.finish()
    macs = [record["macs_fraction"] for record in records]
    last = records[-1]
    return Outcome(
        name, seed, pruned, accuracy(model, x, y), macs[-1], sum(macs) / EPOCHS, last["widths"], list(last["skipped"])
    )


def from_scratch(grown: Outcome, x: Tensor, y: Tensor, same_macs: bool) -> Outcome:
    """The grown network's architecture, for the same epochs or for the same training MACs."""
    cost = grown.train_macs_fraction / grown.macs_fraction
    epochs = math.ceil(EPOCHS * cost - 1e-9) if same_macs else EPOCHS
    name = f"final, same {'macs' if same_macs else 'epochs'}"
    rule = b.Final(grown.widths, tuple(grown.skipped))
    return run(name, comparator(rule), x, y, grown.seed, epochs)


def load(path: Path) -> dict[tuple[str, int], Outcome]:
    lines = path.read_text().splitlines() if path.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    return {(o.method, o.seed): o for o in outcomes}


def needed(only: list[str]) -> list[str]:
    """Methods that the relations of some comparators need, `grown` before what repeats it."""
    chosen = [r for r in RELATIONS if not only or r.method in only]
    names = dict.fromkeys(name for r in chosen for name in (r.better, r.worse))
    final = [name for name in names if name.startswith("final")]
    return [*dict.fromkeys([*(["grown"] if final else []), *(n for n in names if n not in final)]), *final]


def table(done: dict[tuple[str, int], Outcome], only: list[str]) -> str:
    def stat(method: str, when: str, seeds: Collection[int]) -> MeanStd | None:
        runs = [o for (name, seed), o in done.items() if name == method and seed in seeds]
        return mean_std([100 * value for o in runs if (value := getattr(o, when)) is not None])

    lines = ["| relation | better | worse | difference | holds |", "|---|---|---|---|---|"]
    for r in RELATIONS:
        shared = {s for name, s in done if name == r.better and (r.worse, s) in done}  # like is compared with like
        high, low = stat(r.better, r.when, shared), stat(r.worse, r.when, shared)
        if (only and r.method not in only) or high is None or low is None:
            continue
        found = difference(high, low)
        pairs = [getattr(done[r.better, s], r.when) - getattr(done[r.worse, s], r.when) for s in sorted(shared)]
        wins = sum(d > 0 for d in pairs)
        lines.append(
            f"| {r.source} ({r.when}) | {r.better} {high.text()} | {r.worse} {low.text()} | {found.mean:+.2f}, "
            f"{found.verdict} | {wins} of {len(pairs)} seeds |"
        )
    costs = []
    for name in dict.fromkeys(n for n, _ in done):
        runs = [o for (n, _), o in done.items() if n == name]
        final = stat(name, "final", {o.seed for o in runs})
        assert final is not None
        macs = statistics.fmean(o.macs_fraction for o in runs)
        training = statistics.fmean(o.train_macs_fraction for o in runs)
        costs.append(f"| {name} | {macs:.3f} | {training:.3f} | {final.text()} |")
    return "\n".join([*lines, "", "| method | MACs | training MACs | accuracy |", "|---|---|---|---|", *costs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD")
    parser.add_argument("--out", type=Path, default=Path("runs/relations.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    x, y = images()
    for seed in options.seeds:
        for name in needed(options.only):
            done = load(options.out)
            if (name, seed) in done:
                continue
            if name.startswith("final"):
                outcome = from_scratch(done["grown", seed], x, y, same_macs=name.endswith("macs"))
            else:
                outcome = run(name, METHODS[name], x, y, seed)
            with options.out.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            print(f"{name}, seed {seed}: {outcome.pruned} pruned, {outcome.final:.4f} final", flush=True)
    print(table(load(options.out), options.only))


if __name__ == "__main__":
    main()
