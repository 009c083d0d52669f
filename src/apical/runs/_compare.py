"""Several methods and seeds of one recipe, one run after the other, and what came out side by side."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apical._checks import flattened
from apical.errors import CheckpointError, ConfigError
from apical.growth._options import changed
from apical.recipes import Prepared, RunConfig
from apical.recipes._settings import as_free_text, reproducing_command
from apical.recipes._task_kind import task_kind
from apical.reporting import Comparison, Latency, Run, read_run, write_comparison
from apical.runs._divisor import settle_divisor, to_be_measured, with_divisor
from apical.runs._methods import method_named
from apical.runs._run import run
from apical.runs._stored import load_run, read_config
from apical.timing._clock import network_samples_ms
from apical.training import Progress, seed_everything
from apical.training._amp import settle_amp
from apical.training._config import resolve_device
from apical.training._results import describe_device, versions

FINAL = ("final-same-epochs", "final-same-macs")
Options = Mapping[str, Mapping[str, Any]]
GROWN = ("grown", "scs", "random")  # whose final architecture those two repeat, the first that is compared


@dataclass(frozen=True)
class Planned:
    """A run of a comparison."""

    method: str  # its method
    seed: int  # of training and growth
    folder: Path  # its run folder
    config: RunConfig  # of the run, not yet resolved


def plan(
    config: RunConfig, methods: Sequence[str], seeds: Sequence[int], out: str | Path, options: Options | None = None
) -> list[Planned]:
    """The runs of a comparison in the order in which they are done: seed by seed, and methods that repeat another's
    final architecture after it.

    The arguments are those of `compare`; the options of a method may be settings of growth that it reads, too.

    Example:
        >>> from apical.recipes import get_recipe
        >>> runs = plan(get_recipe("digits"), ["final-same-macs", "grown"], [0], "out")
        >>> [(planned.method, str(planned.folder)) for planned in runs]
        [('grown', 'out/grown-seed0'), ('final-same-macs', 'out/final-same-macs-seed0')]
    """
    for name, values in (("methods", methods), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"{name}: got {', '.join(map(str, values)) or 'none'}; expected each once, at least one")
    for method in methods:
        method_named(method)
    options = options or {}
    lost = [name for name in options if name not in methods]
    if lost or config.method_options:
        raise ConfigError(
            f"options of methods: got some for {', '.join(lost) or 'no method in particular'}; expected METHOD.OPTION "
            f"of one that is compared ({', '.join(methods)}), for example --set {methods[0]}.seed=1"
        )
    source = next((name for name in GROWN if name in methods), None)
    repeats = [name for name in methods if name in FINAL]
    if source is None and any("run" not in options.get(name, {}) for name in repeats):
        raise ConfigError(
            f"methods: {repeats[0]} repeats the final architecture of another method; add one of {', '.join(GROWN)}"
        )
    ordered = [name for name in methods if name not in FINAL] + repeats
    found = [
        _planned(config, method, seed, Path(out), source, options.get(method, {}))
        for seed in seeds
        for method in ordered
    ]
    for planned in found:  # what cannot be is said before hours of training
        method_named(planned.method).check(planned.config)
    return found


def _planned(
    config: RunConfig, method: str, seed: int, out: Path, source: str | None, options: Mapping[str, Any]
) -> Planned:
    repeated = {"run": str(out / f"{source}-seed{seed}")} if method in FINAL else {}
    reads = set(method_named(method).reads) - {"seed"}
    of_growth = {name: value for name, value in options.items() if name in reads}
    rest = {name: value for name, value in options.items() if name not in of_growth}
    own = replace(config, method=method, growth=changed(config.growth, of_growth), method_options={**repeated, **rest})
    return Planned(method, seed, out / f"{method}-seed{seed}", own.with_seed(seed))


def compare(
    config: RunConfig,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: str | Path,
    *,
    options: Options | None = None,
    overwrite: bool = False,
    progress: Callable[[], Progress] | None = None,
    message: Callable[[str], None] | None = None,
    latency: bool = True,
    program: str = "apical compare",
) -> Comparison:
    """Do all runs, go on with those that were stopped, leave finished ones alone, and write one table and one page.

    Args:
        config: what all runs share; its method and seed are not used.
        methods: names of methods; the first is what the others are compared with.
        seeds: of training and growth.
        out: folder of the comparison; receives METHOD-seedN, compare.json, compare.md and compare.html.
        options: of single methods, by name: ``{"slimming": {"penalty": 1e-3}}``.
        overwrite: do runs again that were done with other settings; else they are refused.
        progress: makes what people see of a run.
        message: called with a line about each run.
        latency: whether to measure the final networks.
        program: what to call to do it again, for the command that the table shows.

    Returns:
        What was compared.

    Raises:
        ConfigError, DataError, BudgetError, CheckpointError, TrainingError, Interrupted: as `run`; the same call goes
            on where it stopped.
    """
    planned = plan(config, methods, seeds, out, options)
    if config.training.amp == "auto":
        training = _settled_once(config, [item.folder for item in planned], message, _amp).training
        planned = [
            replace(item, config=replace(item.config, training=replace(item.config.training, amp=training.amp)))
            for item in planned
        ]
        config = replace(config, training=training)
    if waiting := [item for item in planned if to_be_measured(item.config)]:
        settled = _settled_once(waiting[0].config, [item.folder for item in waiting], message, settle_divisor)
        divisor = settled.growth.step
        planned = [replace(i, config=with_divisor(i.config, divisor)) if i in waiting else i for i in planned]
        config = with_divisor(config, divisor) if config.growth.divisor == "auto" else config
    for number, item in enumerate(planned, 1):
        where = f"{item.method}, seed {item.seed} ({number} of {len(planned)})"
        done = _do(item, overwrite, progress)
        if message is not None:
            message(f"{where}: {done}")
    command = _command(program, config, methods, seeds, Path(out), options or {})
    return _summed_up(config, planned, Path(out), methods[0], latency, command)


Settle = Callable[[RunConfig, Prepared, nn.Module, Sequence[Path]], tuple[RunConfig, str]]
"""Measures what a config leaves to a measurement, or reads it from run folders; says in words what came out."""


def _settled_once(
    config: RunConfig, folders: Sequence[Path], message: Callable[[str], None] | None, settle: Settle
) -> RunConfig:
    """The config with what holds for all runs: measured once, or read from one begun before."""
    kind = task_kind(config.task)
    data = kind.prepare(config.data, config.training)
    seed_everything(config.training.seed)
    settled, chosen = settle(config, data, kind.template(config.model, data.facts), folders)
    if message is not None:
        message(chosen)
    return settled


def _amp(config: RunConfig, data: Prepared, model: nn.Module, folders: Sequence[Path]) -> tuple[RunConfig, str]:
    training, chosen = settle_amp(config.training, model, data.task, data.loaders.train, folders)
    return replace(config, training=training), chosen


def _do(item: Planned, overwrite: bool, progress: Callable[[], Progress] | None) -> str:
    """Do a run unless it is done; returns what was done in words."""
    config, folder = method_named(item.method).resolve(item.config), item.folder
    started = (folder / "config.json").exists()
    if started and _changes(config, folder):
        if not overwrite:
            raise CheckpointError(
                f"{folder} holds a run with other settings: {'; '.join(_changes(config, folder))}. Choose another "
                "folder with --out, or do it again with --overwrite."
            )
        started = False
    if started and (folder / "summary.json").exists():
        return "done before"
    run(
        config,
        folder,
        resume=started,
        overwrite=overwrite and not started,
        progress=progress and progress(),
        trust_code=True,  # the config is the caller's own
    )
    return "resumed and done" if started else "done"


def _changes(config: RunConfig, folder: Path) -> list[str]:
    """What differs from the run in a folder; where the data lie, the device, and growth settings that its method does
    not read do not count.
    """
    own, other = (_comparable(c) for c in (config, read_config(folder)))
    return [f"{k} was {other.get(k)!r} and is {own.get(k)!r}" for k in {**own, **other} if own.get(k) != other.get(k)]


def _comparable(config: RunConfig) -> dict[str, Any]:
    content = config.to_mapping()
    content["training"].pop("device")
    content["data"].pop("path", None)
    content["method_options"].pop("run", None)
    content["growth"] = {name: content["growth"][name] for name in method_named(config.method).reads}
    found = {k: list(v) if isinstance(v, tuple) else v for k, v in flattened(content)}
    return {k: v for k, v in found.items() if v != {}}


def _summed_up(
    config: RunConfig, planned: Sequence[Planned], out: Path, reference: str, latency: bool, command: str
) -> Comparison:
    device = resolve_device(config.training.device)
    records = {(item.method, item.seed): read_run(item.folder) for item in planned}
    measured: dict[tuple[str, int], dict[int, Latency]] = {key: {} for key in records}
    dense: dict[int, Latency] = {}
    if latency:
        loaded = {(item.method, item.seed): load_run(item.folder, trust_code=True) for item in planned}
        networks = {key: model for key, (model, _, _) in loaded.items()}
        _, full_model, example = next(iter(loaded.values()))
        whole = ("", -1)  # the full model, whose weights do not matter here
        samples = network_samples_ms({whole: full_model, **networks}, example, device)
        measured = {key: {b: Latency.of(ms) for b, ms in found.items()} for key, found in samples.items()}
        dense = measured.pop(whole)
    comparison = Comparison(
        title=f"{config.recipe} · {config.budget}",
        epochs=config.training.epochs,
        reference=reference,
        metric=next(iter(records.values())).metric,
        runs=[Run(method, seed, record, measured[method, seed]) for (method, seed), record in records.items()],
        dense_latency=dense,
        facts={
            "device": describe_device(device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "command": command,
        },
    )
    write_comparison(comparison, out)
    return comparison


def _command(
    program: str, config: RunConfig, methods: Sequence[str], seeds: Sequence[int], out: Path, options: Options
) -> str:
    shared = replace(config, method="grown").with_seed(0)
    own = [
        f"--set {shlex.quote(f'{m}.{k}={as_free_text(v)}')}" for m, values in options.items() for k, v in values.items()
    ]
    command = reproducing_command(shared, out).replace("apical train", program, 1)
    return " ".join([command, *own, "--methods", ",".join(methods), "--seeds", ",".join(map(str, seeds))])
