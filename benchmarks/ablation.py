"""The ablation of growth: one factor at a time around the library's defaults, on CIFAR-10 at half resolution.

    APICAL_DATA=... python benchmarks/ablation.py --seeds 0 1 2 --epochs 12 --out runs/ablation
    APICAL_DATA=... python benchmarks/ablation.py --seeds 0 --epochs 12 --out runs/ablation --variants default no-depth
    python benchmarks/ablation.py --out runs/ablation --epochs 12 --seeds

Trains ResNet-20 with the loop of `trial.py` (20,000 training images at 16x16, accuracy on 5,000 held out of the
training set; the test set is not read) once for each variant and seed. Every finished run is a file
``VARIANT-seedN.json`` with its whole configuration, and is left alone from then on; other processes may share the
folder with other seeds. The table of all runs in the folder is printed and written to ``ablation.json`` and
``ablation.md``; without seeds, only that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from _variants import ADDITIONS, Extended
from torch import Tensor, nn
from trial import BATCH, HELD_OUT, TRAIN, Images, load, run

import apical
from apical import GrowthConfig
from apical.growth import ScsConfig
from apical.reporting import MeanStd, mean_std

TABLES = ("ablation.json", "ablation.md")
MEASURES = ("train_macs", "macs", "macs_fraction", "num_params", "params_fraction", "blocks", "churn", "seconds")


@dataclass(frozen=True)
class Variant:
    """What differs from the default.

    Attributes:
        factor: what the row is about.
        changes: options of growth other than the default.
        addition: name of an entry of `ADDITIONS`, or nothing.
        paper: start from `ScsConfig` instead of the default.
    """

    factor: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    addition: str = ""
    paper: bool = False

    def config(self, seed: int) -> GrowthConfig | ScsConfig:
        kind = ScsConfig if self.paper else GrowthConfig
        return kind(**self.changes, seed=seed)


VARIANTS = {
    "default": Variant("the library's default"),
    "utility-random": Variant("utilities: drawn, not measured", {"utility": "random"}),
    "damping-0": Variant("allocation: widths keep their proportions", {"damping": 0.0}),
    "damping-0.2": Variant("allocation: slower", {"damping": 0.2}),
    "damping-0.5": Variant("allocation: the whole way at once", {"damping": 0.5}),
    "shrinkage-0": Variant("allocation: what was measured alone", {"shrinkage": 0.0}),
    "shrinkage-1": Variant("allocation: the template's proportions alone", {"shrinkage": 1.0}),
    "max-change-1.25": Variant("allocation: at most a factor of 1.25 at once", {"max_change": 1.25}),
    "max-change-2": Variant("allocation: at most a factor of 2 at once", {"max_change": 2.0}),
    "no-depth": Variant("depth: all blocks stay", {"grow_depth": False}),
    "growth-0.25": Variant("schedule: growth ends at 0.25", {"growth_end": 0.25}),
    "growth-0.75": Variant("schedule: growth ends at 0.75", {"growth_end": 0.75}),
    "seed-thin": Variant("seed: whole streams, narrow inner widths", {"seed_style": "thin"}),
    "from-full": Variant("start: the full network; only pruned", {"seed_fraction": 2.0}),
    "birth-random": Variant("birth: random outgoing weights", {"birth": "random"}),
    "newborn-rate": Variant("newborns: twice the learning rate for two epochs", addition="newborn rate"),
    "newborn-momentum": Variant("newborns: mean momentum of older units", addition="newborn momentum"),
    "divisor-8": Variant("widths: multiples of 8", {"divisor": 8}),
    "divisor-16": Variant("widths: multiples of 16", {"divisor": 16}),
    "scs": Variant("the paper's version (ScsConfig)", paper=True),
}


# ---- runs ------------------------------------------------------------------------------------------------------------


def settings(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that determines a run, but versions and hardware, as JSON gives it back."""
    variant = VARIANTS[name]
    found = {
        "variant": name,
        "seed": seed,
        "epochs": options.epochs,
        "budget": options.budget,
        "model": f"CifarResNet(depth={options.depth})",
        "data": "cifar10, averaged to 16x16, random crops and flips",
        "train_images": [TRAIN.start, TRAIN.stop],
        "held_out_images": [HELD_OUT.start, HELD_OUT.stop],
        "batch_size": BATCH,
        "optimizer": "SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True), one epoch of warm-up, cosine",
        "autocast": "bfloat16",
        "growth": asdict(variant.config(seed)),
        "addition": variant.addition,
    }
    return dict(json.loads(json.dumps(found)))


def train(data: Images, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run, with what it was made by."""
    variant = VARIANTS[name]

    def make(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor) -> Any:
        grower = apical.Grower(model, optimizer, (example,), options.budget, options.epochs, variant.config(seed))
        return Extended(grower, ADDITIONS[variant.addition](grower, optimizer)) if variant.addition else grower

    found = run(data, seed, options.epochs, make, options.depth, augment=True)
    return {
        "settings": settings(name, seed, options),
        "versions": {"apical": apical.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "hardware": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "outcome": asdict(found),
    }


def ablate(data: Images, names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Do the runs that are not done yet; returns what failed, in words."""
    for path in options.out.glob("*-seed*.json"):
        check(path, options)
    failed = []
    for seed in options.seeds:
        for name in names:
            path = options.out / f"{name}-seed{seed}.json"
            if path.exists():
                continue
            try:
                result = train(data, name, seed, options)
            except apical.errors.ApicalError as error:
                failed.append(f"{name}, seed {seed}: {error}")
                continue
            write(path, json.dumps(result, indent=1) + "\n")
            outcome = result["outcome"]
            print(
                f"{name}, seed {seed}: {100 * outcome['accuracy']:.2f} %, {outcome['train_macs']:.2f} dense epochs, "
                f"{outcome['seconds']:.0f} s",
                flush=True,
            )
    return failed


def check(path: Path, options: argparse.Namespace) -> None:
    """Refuse a finished run that was made with other settings, or by other defaults: it belongs to another table.

    Raises:
        SystemExit: saying what differs.
    """
    found = json.loads(path.read_text())["settings"]
    if found["variant"] not in VARIANTS:
        return  # of another version of this script
    wanted = settings(found["variant"], found["seed"], options)
    pairs = [(name, found.get(name), value) for name, value in wanted.items() if name != "growth"]
    had = found.get("growth", {})
    pairs += [(f"growth.{name}", had.get(name), value) for name, value in wanted["growth"].items()]
    differ = [f"{name} was {old!r} and is {new!r}" for name, old, new in pairs if old != new]
    if differ:
        raise SystemExit(
            f"{path} was made with other settings: {'; '.join(differ)}. Repeat them, or choose another folder (--out)."
        )


def write(path: Path, text: str) -> None:
    """Write whole or not at all, also where several processes share the folder."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


# ---- table -----------------------------------------------------------------------------------------------------------


def read(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """Outcomes of all runs in the folder, by variant and seed."""
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in VARIANTS}
    for path in sorted(folder.glob("*-seed*.json")):
        run = json.loads(path.read_text())
        found.setdefault(run["settings"]["variant"], {})[run["settings"]["seed"]] = run["outcome"]
    return {name: runs for name, runs in found.items() if runs}


def rows(runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each variant: means and sample standard deviations over its seeds; accuracies in percent.

    The difference to the default is taken seed by seed, over the seeds that both have.
    """
    default = runs.get("default", {})
    found = []
    for name, by_seed in runs.items():
        pairs = [100 * (by_seed[s]["accuracy"] - default[s]["accuracy"]) for s in sorted(by_seed) if s in default]
        found.append({
            "variant": name,
            "factor": VARIANTS[name].factor if name in VARIANTS else name,
            "seeds": sorted(by_seed),
            "accuracy": _spread([100 * run["accuracy"] for run in by_seed.values()]),
            "difference": _spread(pairs) if name != "default" else None,
            "wins": sum(d > 0 for d in pairs),
            "pairs": len(pairs),
            **{key: _spread([run[key] for run in by_seed.values()]) for key in MEASURES},
        })  # fmt: skip
    return found


def _spread(values: Iterable[float]) -> dict[str, Any] | None:
    found = mean_std(list(values))
    return None if found is None else asdict(found)


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""

    def show(cell: Mapping[str, Any] | None, pattern: str, scale: float = 1.0) -> str:
        return "–" if cell is None else MeanStd(**cell).text(pattern, scale)

    lines = [
        "| variant | what differs | seeds | held-out accuracy, % | to default, paired, points | better on | training "
        "MACs, dense epochs | final MACs, % | final params, k | blocks | churn | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        reference = row["difference"] is None
        cells = [
            row["variant"],
            row["factor"],
            ", ".join(map(str, row["seeds"])),
            show(row["accuracy"], "{:.2f}"),
            show(row["difference"], "{:+.2f}").replace("± +", "± "),
            "–" if reference else f"{row['wins']} of {row['pairs']}",
            show(row["train_macs"], "{:.2f}"),
            show(row["macs_fraction"], "{:.1f}", 100),
            show(row["num_params"], "{:.1f}", 0.001),
            show(row["blocks"], "{:.1f}"),
            show(row["churn"], "{:.0f}"),
            show(row["seconds"], "{:.0f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def report(folder: Path) -> str:
    """Write both tables of the runs in a folder, and return the one for people."""
    found = rows(read(folder))
    text = markdown(found)
    write(folder / TABLES[0], json.dumps(found, indent=1) + "\n")
    write(folder / TABLES[1], text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: only write the table")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), metavar="FOLDER")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT",
                        help=f"default: all of {', '.join(VARIANTS)}")  # fmt: skip
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--budget", default="50% macs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    failed = ablate(load("cifar10"), options.variants, options) if options.seeds else []
    print(report(options.out))
    if failed:
        sys.exit("these runs failed and are tried again next time:\n  " + "\n  ".join(failed))


if __name__ == "__main__":
    main()
