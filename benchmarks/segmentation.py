"""Growing DeepLabV3 to half of its MACs on CamVid, against dense, uniform, and the grown architecture from scratch.

    APICAL_DATA=... python benchmarks/segmentation.py grown --seed 0 --out results/segmentation
    APICAL_DATA=... python benchmarks/segmentation.py final-same-macs --seed 0 --out results/segmentation
    python benchmarks/segmentation.py table --out results/segmentation
    APICAL_DATA=... python benchmarks/segmentation.py time --seed 0 --out results/segmentation

A call trains one network and leaves METHOD-sSEED.json; one that was stopped goes on, one that is done is not repeated.
Both ``final-…`` methods need the grown run of the same seed. ``time`` measures one training step of every architecture
of a grown run, alternating within one process: run it alone on the machine. With ``--held-out`` the test images are
not read and all figures are of the validation list: settings are chosen so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.baselines import network_record
from apical.recipes import Prepared, RunConfig, apply_settings, get_recipe
from apical.recipes._task_kind import task_kind
from apical.resizing import resize_, trace
from apical.runs import register_method, run
from apical.structure import Structure
from apical.training import GrowthMethod, MethodFactory, make_progress

METHODS = ("grown", "dense", "uniform", "final-same-epochs", "final-same-macs")
RECIPE = "camvid-deeplabv3-small"


class Fixed:
    """An architecture from the first step on: the first channels of every group, without the blocks left out."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module], example: tuple[Tensor, ...],
                 widths: dict[str, int], skipped: Sequence[str]) -> None:  # fmt: skip
        self.structure = trace(model, example)
        self.widths, self.skipped = widths, tuple(skipped)
        keep = {name: list(range(width)) for name, width in widths.items()}
        resize_(model, self.structure, keep, self.skipped, optimizer, copies=copies)

    def end_epoch(self) -> dict[str, Any]:
        return network_record(self.structure, self.widths, self.skipped)

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def register_final(method: str, grown: dict[str, Any]) -> None:
    """Let a run's method mean the final architecture of a grown run."""

    @register_method(method)
    def assemble(_config: RunConfig, example: tuple[Tensor, ...]) -> MethodFactory:
        def make(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
            return Fixed(model, optimizer, copies, example, grown["widths"], grown["skipped"])

        return make


def train_one(method: str, seed: int, out: Path, settings: Sequence[str], held_out: bool) -> dict[str, Any]:
    """Train a network, or go on; the result is also written to METHOD-sSEED.json."""
    path = out / f"{method}-s{seed}.json"
    if path.exists():
        return read(path)
    config = apply_settings(get_recipe(RECIPE), [*settings, f"seed={seed}", f"method={method}", "device=cpu"])
    if method.startswith("final"):
        grown = read(out / f"grown-s{seed}.json")
        register_final(method, grown)
        if method == "final-same-macs":
            config = config.with_epochs(max(2, round(grown["epochs"] * grown["train_macs_vs_final"])))
    folder = out / f"{method}-s{seed}"
    progress = make_progress("plain")
    with _without_test() if held_out else nullcontext():
        result = run(config, folder, resume=(folder / "config.json").exists(), progress=progress)
    summary, last = result.summary, result.history[-1]
    keys = ("test_miou", "test_pixel_accuracy", "macs", "macs_fraction", "num_params", "params_fraction", "train_macs",
            "train_macs_fraction", "train_macs_vs_final", "train_seconds", "step_seconds", "restructure_seconds",
            "epochs", "seed", "widths", "skipped", "device", "threads", "versions", "command")  # fmt: skip
    content = {"method": method, **{key: summary.get(key) for key in keys}}
    content |= {"val_miou": last["eval_miou"], "val_pixel_accuracy": last["eval_pixel_accuracy"], "settings": settings}
    content["judged_on"] = "val" if held_out else summary["test_split"]
    content["sequence"] = [[record["widths"], record["skipped"]] for record in result.history]
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


class _without_test:  # noqa: N801 - used as a with-statement
    """The task's data without its test list, so that tuning cannot see it."""

    def __enter__(self) -> None:
        kind = task_kind("segmentation")
        self._prepare = kind.prepare

        def prepare(*arguments: Any) -> Prepared:
            data = self._prepare(*arguments)
            object.__setattr__(data.loaders, "test", None)
            return data

        object.__setattr__(kind, "prepare", prepare)

    def __exit__(self, *_: object) -> None:
        object.__setattr__(task_kind("segmentation"), "prepare", self._prepare)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def table(out: Path) -> str:
    """Mean and standard deviation over the seeds that are there, a line a method, as Markdown."""
    grown = results(out, "grown")
    dense_macs = grown[0]["train_macs"] / grown[0]["train_macs_fraction"] if grown else None  # for the same epochs
    lines = [
        "| method | seeds | test mIoU % | test pixel acc % | val mIoU % | MACs % | params % | epochs "
        "| training MACs, % of dense | training seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        found = results(out, method)
        if found:
            shares = [100 * r["train_macs"] / dense_macs for r in found] if dense_macs else []
            cells = [
                method,
                ", ".join(str(r["seed"]) for r in found),
                *(spread([100 * r[key] for r in found]) for key in ("test_miou", "test_pixel_accuracy", "val_miou")),
                *(spread([100 * r[key] for r in found]) for key in ("macs_fraction", "params_fraction")),
                ", ".join(sorted({str(r["epochs"]) for r in found})),
                spread(shares),
                spread([r["train_seconds"] for r in found], 0),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def results(out: Path, method: str) -> list[dict[str, Any]]:
    return [read(path) for path in sorted(out.glob(f"{method}-s*.json"))]


def spread(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def time_steps(out: Path, seed: int, turns: int) -> dict[str, Any]:
    """Median seconds of one training step of each architecture of a grown run, of dense and of uniform, in turns."""
    grown = read(out / f"grown-s{seed}.json")
    config = apply_settings(get_recipe(RECIPE), [*grown["settings"], "device=cpu"])
    kind = task_kind("segmentation")
    data = kind.prepare(config.data, config.training)
    example = kind.example(data.facts, torch.device("cpu"))
    structure = trace(kind.template(config.model, data.facts), example)
    sequence = [(json.dumps(widths, sort_keys=True), tuple(skipped)) for widths, skipped in grown["sequence"]]
    wanted = list(dict.fromkeys(sequence))
    full = json.dumps({group.name: group.size for group in structure.groups}, sort_keys=True)
    named = {"dense": (full, ())}
    if (out / f"uniform-s{seed}.json").exists():
        named["uniform"] = (json.dumps(read(out / f"uniform-s{seed}.json")["widths"], sort_keys=True), ())
    inputs, targets = next(iter(data.loaders.train))
    steps = {
        key: step_of(kind.template(config.model, data.facts), structure, *key, config, data, inputs, targets)
        for key in dict.fromkeys([*named.values(), *wanted])
    }
    seconds: dict[Any, list[float]] = {key: [] for key in steps}
    for turn in range(turns + 2):
        for key in steps if turn % 2 else reversed(steps):
            start = time.perf_counter()
            steps[key]()
            if turn >= 2:
                seconds[key].append(time.perf_counter() - start)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    run_seconds = sum(median[key] for key in sequence) / len(sequence)
    dense, final = median[named["dense"]], median[sequence[-1]]
    report = {
        "seed": seed,
        "turns": turns,
        "threads": torch.get_num_threads(),
        "step_seconds": {name: median[key] for name, key in named.items()}
        | {"final": final, "grown_mean": run_seconds},
        "grown_over_dense_seconds": run_seconds / dense,
        "grown_over_dense_macs": grown["train_macs_fraction"],
        "grown_over_final_seconds": run_seconds / final,
        "grown_over_final_macs": grown["train_macs_vs_final"],
        "final_over_dense_seconds": final / dense,
        "final_over_dense_macs": grown["macs_fraction"],
        "each": [
            {"epoch": sequence.index(key) + 1, "seconds": median[key],
             "macs": structure.macs(json.loads(key[0]), key[1])}
            for key in wanted
        ],
    }  # fmt: skip
    (out / f"time-s{seed}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def step_of(model: nn.Module, structure: Structure, widths: str, skipped: Sequence[str], config: RunConfig,
            data: Prepared, inputs: Tensor, targets: Tensor) -> Callable[[], None]:  # fmt: skip
    """One ordinary training step of one architecture, as a plain module, as a function."""
    resize_(model, structure, {name: list(range(width)) for name, width in json.loads(widths).items()}, skipped)
    model.train()
    if config.training.channels_last:
        model.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.training.amp == "bfloat16"):
            loss = data.task.batch(model, inputs, targets, training=True).loss
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=[*METHODS, "table", "time"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("results/segmentation"))
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--held-out", action="store_true", help="never read the test images")
    parser.add_argument("--turns", type=int, default=15, help="measured steps of each architecture")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "table":
        print(table(options.out))
    elif options.what == "time":
        print(json.dumps(time_steps(options.out, options.seed, options.turns), indent=1))
    else:
        result = train_one(options.what, options.seed, options.out, options.settings, options.held_out)
        print(f"{options.what}, seed {options.seed}: mIoU {result['test_miou']:.4f} ({result['judged_on']})")


if __name__ == "__main__":
    main()
