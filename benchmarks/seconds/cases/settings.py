"""(g) Grown runs of one task with different settings against each other: training seconds, latency, accuracy."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apical.errors import ConfigError
from apical.reporting import mean_std
from benchmarks.seconds.cases.latency import BATCHES, WAYS
from benchmarks.seconds.findings import Findings, NotAvailableError
from benchmarks.seconds.spread import spread, take_turns
from benchmarks.seconds.steps import Growth, Options, distinct, recorded

NETWORKS = 5  # of each run that are timed
LIMIT_S = 60.0  # for all training steps of one seed
COLUMNS = [("setting", ""), ("seeds", "d"), ("test accuracy %", ".2f"), ("± std", ".2f"), ("MACs %", ".1f"),
           ("training MACs %", ".1f"), ("training seconds of first", ".3f")]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run: its setting (the name of its folder without the seed), its growth and its summary."""

    setting: str
    seed: int
    growth: Growth
    summary: dict[str, Any]

    def calls(self, options: Options) -> dict[tuple[str, int], Callable[[], None]]:
        """A training step of some of its epochs, each with its network, its batch size, and compiled if it was."""
        growth, found = self.growth, {}
        chosen = distinct(growth.records, 2 if options.quick else NETWORKS)
        for epoch in chosen:
            network = growth.at(epoch)
            if growth.config.training.compile and epoch == chosen[-1]:
                network = torch.compile(network, dynamic=False)  # type: ignore[assignment]
            found[self.setting, epoch] = growth.step(network, options.device, growth.batch(epoch))
        return found

    def seconds(self, sample: Mapping[tuple[str, int], float]) -> float:
        """Training seconds by one round's milliseconds per step, with what restructuring and compiling took."""
        steps = self.growth.seconds({epoch: ms for (name, epoch), ms in sample.items() if name == self.setting})
        return steps + self.growth.restructuring + float(self.summary.get("compile_seconds", 0.0))


def settings(options: Options, found: Findings) -> None:
    """The given runs; those of one seed are timed in turns, and related to the setting that was given first."""
    if not options.runs:
        raise NotAvailableError("it compares finished runs; give two or more with --run")
    runs = [_read(folder, options) for folder in options.runs]
    names = list(dict.fromkeys(run.setting for run in runs))
    by_seed = {seed: [run for run in runs if run.seed == seed] for seed in sorted({run.seed for run in runs})}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    latency: dict[tuple[str, str, int], list[float]] = {}
    for seed, alike in by_seed.items():
        with found.part(f"seed {seed}"):
            if len({run.setting for run in alike}) < len(alike):
                raise ConfigError(f"seed {seed} was given twice for one of {names}; name folders SETTING-seedN")
            if alike[0].setting != names[0]:
                raise NotAvailableError(f"there is no run of {names[0]} with this seed to compare with")
            for name, ratios in _training(alike, options).items():
                seconds[name] += ratios
            for way in ("eager", "onnx"):
                with found.part(f"seed {seed}, {way}"):
                    for key, ratios in _latency(alike, way, options).items():
                        latency.setdefault(key, []).extend(ratios)
    rows = [_row(name, [run for run in runs if run.setting == name], seconds[name]) for name in names]
    note = (
        "Seconds of all training steps of a run, restructuring and compiling included, over those of the first setting "
        "with the same seed: a step of each of some networks is timed at its own batch size, in turns with those of "
        "the other runs. Quartiles are over rounds and seeds, the standard deviation over seeds."
    )
    found.table("Settings", COLUMNS, rows, note)
    headings = [("setting", ""), ("run by", ""), ("batch", "d"), ("latency of first", ".3f")]
    found.table("Final networks, float32", headings, [(*key, spread(ratios)) for key, ratios in latency.items()])


def _read(folder: Path, options: Options) -> Run:
    growth = recorded(folder, ["amp=none"] if options.float32 else [])
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    setting = folder.name.removesuffix(f"-seed{growth.config.training.seed}")
    return Run(setting, growth.config.training.seed, growth, summary)


def _training(runs: Sequence[Run], options: Options) -> dict[str, list[float]]:
    """Training seconds of each run over those of the first, one ratio a round."""
    torch.compiler.reset()
    calls = {key: call for run in runs for key, call in run.calls(options).items()}
    found: dict[str, list[float]] = {run.setting: [] for run in runs}
    for sample in take_turns(calls, options.seconds(LIMIT_S), least=options.rounds(3)):
        whole = {run.setting: run.seconds(sample) for run in runs}
        for name, value in whole.items():
            found[name].append(value / whole[runs[0].setting])
    return found


def _latency(runs: Sequence[Run], way: str, options: Options) -> dict[tuple[str, str, int], list[float]]:
    """Latency of each run's final network over that of the first, one ratio a round."""
    found: dict[tuple[str, str, int], list[float]] = {}
    for batch in (1, 4) if options.quick else BATCHES:
        inputs = torch.randn(batch, *runs[0].growth.shape, generator=torch.Generator().manual_seed(0))
        calls = {}
        for run in runs:
            network = run.growth.at(len(run.growth.records) - 1).to(options.device).eval()
            calls[run.setting] = WAYS[way](network, inputs.to(options.device))
        for sample in take_turns(calls, options.seconds(6), least=options.rounds(3), most=options.rounds(60)):
            for name, ms in sample.items():
                found.setdefault((name, way, batch), []).append(ms / sample[runs[0].setting])
    return found


def _row(name: str, runs: Sequence[Run], ratios: Sequence[float]) -> tuple[Any, ...]:
    accuracy = mean_std([100 * run.summary["test_accuracy"] for run in runs])
    assert accuracy is not None, "a setting has at least one run"
    return (
        name,
        len(runs),
        accuracy.mean,
        accuracy.std,
        100 * statistics.mean(run.summary["macs_fraction"] for run in runs),
        100 * statistics.mean(run.summary["train_macs_fraction"] for run in runs),
        spread(ratios) if ratios else None,
    )
