"""A trained network taken down to a budget: apical against Torch-Pruning and other pruners, on held-out images.

    pip install '.[bench]'
    APICAL_DATA=... python benchmarks/pretrained.py --setting resnet20-16 --seeds 10 11 12 --out RESULTS.jsonl

The whole network is trained for ``--dense-epochs`` (its weights stay in ``--weights``); then each method has
``--epochs`` more, with a schedule of its own, to reach the budget from these weights. One JSON line for each run; runs
that the file has are not repeated. Methods:

    dense           the whole network, as it is when the others start
    dense-on        the whole network, trained for the further epochs as well
    grown           `apical.Grower` with ``seed_style="pretrained"``; options of growth by --set
    torch-pruning   its GroupNormPruner (`torch_pruning_peer.py`): group sparsity while it trains, then pruning
    taylor          `apical.baselines.Taylor`: a few units after each epoch, by their first-order effect
    l1              `apical.baselines.L1`: once, the filters with the smallest norms
    nothing         `apical.Grower` with its defaults from random weights, for ``--dense-epochs``

Images and settings are those of `learning.py`; the test images are not read. Training MACs do not count the dense
training that all but ``nothing`` start from.

Every network is kept as a file in ``--weights``. With ``--time`` nothing is trained: the kept networks of the file's
runs are timed in turns (but ``dense-on``, which is the size of ``dense``), and each run gets a line with its seconds as
a share of the whole network's; called again, it measures and adds lines again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from learning import SETTINGS, Setting, add, images, read
from torch import Tensor, nn
from trial import BATCH, Fixed, Images, Make, run

import apical
from apical.baselines import L1, Comparator, Taylor

METHODS = ("dense", "dense-on", "grown", "torch-pruning", "taylor", "l1", "nothing")
RULES = {"taylor": Taylor(), "l1": L1()}
# names a run; lines from before there was a "dtype" have none
KEY = ("setting", "method", "budget", "seed", "options", "dense_epochs", "tuned_epochs", "lr", "dtype")
SHOWN = ("macs_fraction", "widths", "skipped", "loss")


class Peer:
    """Torch-Pruning's pruner, with the record that the other methods give."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor, budget: str, epochs: int,
                 options: dict[str, Any]) -> None:  # fmt: skip
        from torch_pruning_peer import TorchPruning, TorchPruningConfig

        config = TorchPruningConfig(**options)
        self._method = TorchPruning(model, optimizer, (example,), budget, epochs, config)

    def end_epoch(self) -> dict[str, Any]:
        return {"blocks": 0, **self._method.end_epoch()}

    def finish(self) -> None:
        self._method.finish()


def maker(method: str, setting: Setting, budget: str, epochs: int, seed: int, options: dict[str, Any]) -> Make:
    """What makes the method for a model."""

    def make(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor) -> Any:
        if method in ("grown", "nothing"):
            if any(
                target.kind == "latency" for target in apical.Budget.of(budget).targets
            ):  # of a batch, as --time takes it
                example = example.repeat(BATCH, 1, 1, 1)
            trained = {"seed_style": "pretrained"} if method == "grown" else {}
            return apical.Grower(model, optimizer, (example,), budget, epochs, seed=seed,
                                 steps_per_epoch=setting.train // BATCH, **(trained | options))  # fmt: skip
        if method == "torch-pruning":
            return Peer(model, optimizer, example, budget, epochs, options)
        if method in RULES:
            return Comparator(RULES[method], model, optimizer, (example,), budget, epochs)
        structure = apical.trace(model, (example,))
        return Fixed(structure, {group.name: list(range(group.size)) for group in structure.groups}, ())

    return make


def network_file(folder: Path, key: dict[str, Any]) -> Path:
    """Where the final network of a run is kept; its name says all that the run's key does."""
    options = [f"{name}={value}" for name, value in key["options"].items()]
    plain = (key.get(name) for name in KEY if name != "options")
    text = "-".join([*(str(part) for part in plain if part is not None), *options])
    return folder / f"{text.replace(' ', '').replace('%', '')}.network"


def trained(key: dict[str, Any], setting: Setting, given: argparse.Namespace, data: Images) -> dict[str, Any]:
    """The record of one run."""
    method, budget, seed, options = (key[name] for name in ("method", "budget", "seed", "options"))
    precise = "-float32" if given.float32 else ""
    weights = given.weights / f"{given.setting}-{given.dense_epochs}-{seed}{precise}.pt"
    if method != "dense" and method != "nothing" and not weights.exists():
        raise SystemExit(f"{method} needs the dense run of the same seed first: {weights} does not exist")
    weights.parent.mkdir(parents=True, exist_ok=True)
    epochs = given.dense_epochs if method in ("dense", "nothing") else given.epochs
    make, models = maker(method, setting, budget, epochs, seed, options), []

    def kept(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor) -> Any:
        models.append(model)
        return make(model, optimizer, example)

    outcome = run(
        data, seed, epochs, kept, augment=True, build=setting.build,
        train=slice(setting.train), held_out=slice(-setting.held_out, None), amp=setting.amp, adam=setting.adam,
        peak=None if method in ("dense", "nothing") else given.lr,
        weights=None if method in ("dense", "nothing") else weights,
        save=weights if method == "dense" else None,
    )  # fmt: skip
    torch.save(models[0], network_file(given.weights, key))
    record = asdict(outcome)
    history = record.pop("history")
    trajectory = [{name: epoch[name] for name in SHOWN if name in epoch} for epoch in history]
    return record | {"epochs": epochs, "last": {"skipped": [], "widths": {}} | trajectory[-1], "trajectory": trajectory,
                     "versions": {"torch": torch.__version__, "apical": apical.__version__}}  # fmt: skip


def time_in_turns(given: argparse.Namespace, data: Images, rounds: int = 20) -> None:
    """Add a line for each run whose network was kept: its seconds for a batch, as a share of the whole network's.

    Networks take turns, so that a machine which slows down slows all of them; the share is the median over rounds.
    """
    batch = data[0][:BATCH].contiguous()
    for seed in given.seeds:
        own = [line for line in finished(given.out) if (line["setting"], line["seed"]) == (given.setting, seed)]
        found = [(key, network_file(given.weights, key)) for key in own if key["method"] != "dense-on"]
        found.sort(key=lambda run: run[0]["method"] != "dense")
        # in one order of memory, which training may leave different
        networks = [
            (key, torch.load(path, weights_only=False).to(memory_format=torch.contiguous_format).eval())
            for key, path in found
            if path.exists()
        ]
        if not networks or networks[0][0]["method"] != "dense":
            raise SystemExit(f"seed {seed}: no kept networks in {given.weights}, or not that of the dense run")
        seconds: list[list[float]] = [[] for _ in networks]
        with torch.inference_mode():
            for _ in range(rounds + 2):
                for times, (_, network) in zip(seconds, networks, strict=True):
                    start = time.perf_counter()
                    network(batch)
                    times.append(time.perf_counter() - start)
        whole = seconds[0][2:]  # the first two turns warm up
        for times, (key, _) in zip(seconds, networks, strict=True):
            share = statistics.median(own / dense for own, dense in zip(times[2:], whole, strict=True))
            measured = {"share_of_dense": share, "batch": BATCH, "threads": torch.get_num_threads(),
                        "processor": platform.machine()}  # fmt: skip
            with given.out.open("a") as file:
                file.write(json.dumps({"kind": "seconds", **{name: key.get(name) for name in KEY}, **measured}) + "\n")
            print(key["method"], key["budget"], seed, key["options"], f"{share:.2f} of the seconds", flush=True)


def finished(path: Path) -> list[dict[str, Any]]:
    """The trainings that a file has."""
    return [line for line in read(path) if line.get("kind") != "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--setting", choices=SETTINGS, default="resnet20-16")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", default=["50% macs", "25% macs"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--dense-epochs", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=8, help="from the trained weights to the final network")
    parser.add_argument("--lr", type=float, default=0.05, help="highest learning rate after the dense training")
    parser.add_argument("--weights", type=Path, default=Path("runs/pretrained"), help="folder of weights and networks")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of the method; names it")
    parser.add_argument("--float32", action="store_true", help="no autocast to bfloat16, for processors without it")
    parser.add_argument("--time", action="store_true", help="time the kept networks of the file's runs in turns")
    given = parser.parse_args()
    setting, data = SETTINGS[given.setting], None
    if given.float32:
        setting = replace(setting, amp=False)
    options = {name: json.loads(value) for name, _, value in (text.partition("=") for text in given.set)}
    if given.time:
        time_in_turns(given, images(setting))
        return
    for seed in given.seeds:
        for method in given.methods:
            for budget in given.budgets if not method.startswith("dense") else ["100% macs"]:
                key = {"setting": given.setting, "method": method, "budget": budget, "seed": seed, "options": options,
                       "dense_epochs": given.dense_epochs, "tuned_epochs": given.epochs, "lr": given.lr,
                       "dtype": "float32" if given.float32 else None}  # fmt: skip
                if any(all(line.get(k) == v for k, v in key.items()) for line in finished(given.out)):
                    continue
                data = images(setting) if data is None else data
                add(given.out, key | trained(key, setting, given, data))


if __name__ == "__main__":
    main()
