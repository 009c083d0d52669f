"""A language model on WikiText-2, grown to half of its size, against what else those steps could buy.

    APICAL_DATA=... python benchmarks/language.py --method grown --seed 0      # one run: a JSON file in --out
    APICAL_DATA=... python benchmarks/language.py --model gpt --method grown --seed 0 --steps 1550 --out DIR
    APICAL_DATA=... python benchmarks/language.py --method final-same-macs --seed 0     # needs the grown run
    python benchmarks/language.py --table                                      # all runs in --out
    python benchmarks/language.py --time --seed 0                              # seconds of every visited network

Models: lstm (two layers, half of its parameters; SGD) and gpt (six blocks of width 192, half of its MACs; AdamW).
Methods: dense (the whole network), grown (apical.Grower), uniform (one ratio for all widths), iss (group lasso, Wen et
al. 2018), final-same-steps and
final-same-macs (the grown run's final sizes from scratch, for as many steps or for the same training MACs; each with
its own full learning-rate schedule). A run that has its file is not repeated, so a queue can be stopped at any time.
Training reads the first tokens of the training text once; perplexity is that of the first 100,000 tokens of the
validation and of the test text. Settings were chosen on the validation text of seed 0.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import apical
from apical.baselines import ISS, Comparator, network_record, uniform_keep
from apical.data import Corpus, TokenStream, read_corpus
from apical.models import GPT, LSTMLanguageModel, StreamGPT
from apical.recipes import LanguageModelling
from apical.training import ScheduleConfig, TrainingConfig, evaluate
from apical.training._optimizer import lr_factor, set_lr_

METHODS = ("dense", "grown", "uniform", "final-same-steps", "final-same-macs", "iss")
BATCH, EPOCHS = 20, 10  # streams; an epoch is a tenth of the run
EVALUATED = 100_000  # tokens


@dataclass(frozen=True)
class Setting:
    """What all runs of a table share."""

    steps: int
    width: int
    words: int
    init_range: float
    budget: str
    model: str = "lstm"


@dataclass(frozen=True)
class Training:
    """How a model is trained; the rate is that of the mean loss."""

    window: int
    learning_rate: float
    clip: float
    schedule: ScheduleConfig

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW for a GPT, else SGD; at the highest learning rate."""
        if isinstance(model, GPT):
            return torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=0.1)
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)


TRAININGS = {
    "lstm": Training(35, 20.0, 0.25, ScheduleConfig("decay", constant_epochs=6.0, gamma=0.5)),
    "gpt": Training(64, 1e-3, 1.0, ScheduleConfig("cosine", warmup_epochs=0.5)),
}


class Still:
    """A network that does not change, with the interface of a method."""

    def __init__(self, structure: apical.Structure, keep: dict[str, list[int]], skipped: tuple[str, ...] = ()) -> None:
        self.structure = structure
        self.keep = keep
        self.skipped = skipped

    def end_step(self, state: Any = None) -> Any:
        return state

    def end_epoch(self) -> dict[str, Any]:
        return network_record(self.structure, self.keep, self.skipped)

    def finish(self) -> None: ...


def build(setting: Setting, seed: int) -> tuple[nn.Module, apical.Structure]:
    torch.manual_seed(seed)
    window = TRAININGS[setting.model].window
    model: nn.Module
    if setting.model == "gpt":
        model = StreamGPT(setting.words, window, setting.width)
    else:
        sizes = (setting.width, setting.width)
        model = LSTMLanguageModel(setting.words, setting.width, sizes, init_range=setting.init_range)
    tokens = torch.arange(window).unsqueeze(1) % setting.words  # a window of one stream
    return model, apical.trace(model, tokens)


def windows(corpus: Corpus, steps: int, window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many windows of BATCH streams over as much text, read once."""
    needed = BATCH * (steps * window + 1)
    if needed > len(corpus.train):
        raise SystemExit(f"{steps} steps need {needed} tokens, the text has {len(corpus.train)}")
    return islice(iter(TokenStream(corpus.train[:needed], BATCH, window, drop_last=True)), steps)


def choose(
    method: str, setting: Setting, seed: int, folder: Path, options: dict[str, Any]
) -> tuple[Any, Any, Any, int]:
    """Model, optimizer, method and number of steps."""
    model, structure = build(setting, seed)
    training = TRAININGS[setting.model]
    optimizer = training.optimizer(model)
    arguments = (model, optimizer, (torch.zeros(training.window, 1, dtype=torch.long),), setting.budget, EPOCHS)
    steps = setting.steps
    if method == "grown":
        growth = {"interval": max(1, steps // 20), "interval_unit": "steps", "seed": seed} | options
        grower = apical.Grower(*arguments, steps_per_epoch=steps // EPOCHS, structure=structure, **growth)
        return model, optimizer, grower, steps
    if method == "iss":
        return model, optimizer, Comparator(ISS(**options), *arguments, structure=structure), steps
    keep = {group.name: list(range(group.size)) for group in structure.groups}
    skipped: tuple[str, ...] = ()
    if method != "dense":
        grown = read(folder, "grown", seed) if method.startswith("final") else None
        widths = uniform_keep(structure, setting.budget) if grown is None else grown["widths"]
        skipped = () if grown is None else tuple(grown.get("skipped", ()))
        keep = {name: list(range(width)) for name, width in widths.items()}
        apical.resize_(model, structure, keep, skipped, optimizer=optimizer)
        if grown is not None and method == "final-same-macs":
            steps = round(grown["train_macs"] / (3 * structure.macs(keep, skipped) * BATCH))
    return model, optimizer, Still(structure, keep, skipped), steps


def train(method: str, setting: Setting, seed: int, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One run: the user's own loop around a method."""
    corpus = read_corpus("wikitext-2", max_words=setting.words)
    model, optimizer, chosen, steps = choose(method, setting, seed, folder, options)
    structure, task, training = chosen.structure, LanguageModelling(), TRAININGS[setting.model]
    visited: list[list[Any]] = []  # [steps, widths, blocks that are left out] of each network in turn
    spent, losses = 0, []
    wall, processor = time.perf_counter(), time.process_time()
    model.train()
    task.begin(training=True)
    ends = {round((epoch + 1) * steps / EPOCHS) for epoch in range(EPOCHS)}
    for step, (inputs, targets) in enumerate(windows(corpus, steps, training.window), 1):
        network = [{name: len(kept) for name, kept in chosen.keep.items()}, list(getattr(chosen, "skipped", ()))]
        if not visited or visited[-1][1:] != network:
            visited.append([0, *network])
        visited[-1][0] += 1
        spent += structure.macs(*network)
        set_lr_(optimizer, lr_factor((step - 1) * EPOCHS / steps, EPOCHS, training.schedule))
        loss = task.batch(model, inputs, targets, training=True).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        losses.append(loss.item())
        task.state = step_end(chosen, task.state, step in ends)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    chosen.finish()
    widths, skipped = visited[-1][1:]
    return {
        "method": method, "seed": seed, **asdict(setting), "options": options, "trained_steps": steps,
        "widths": widths, "skipped": skipped,
        "params_fraction": structure.num_params(widths, skipped) / structure.num_params(),
        "macs_fraction": structure.macs(widths, skipped) / structure.macs(),
        "train_macs": 3 * BATCH * spent, "train_macs_fraction": spent / (setting.steps * structure.macs()),
        "wall_seconds": wall, "cpu_seconds": processor,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "train_loss": statistics.mean(losses[-len(losses) // 10 :]),
        "valid": perplexity(model, corpus.validation, training.window),
        "test": perplexity(model, corpus.test, training.window), "visited": visited,
        "params": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def step_end(method: Any, state: Any, epoch_ends: bool) -> Any:
    """Tells the method; the state is resized with the network."""
    if hasattr(method, "end_step"):
        state = method.end_step(state)
    if epoch_ends:
        before = method.keep
        method.end_epoch()
        if method.keep != before:
            state = apical.resize_state(state, method.structure, before, method.keep)
    return state


def perplexity(model: nn.Module, tokens: Tensor, window: int) -> float:
    stream = TokenStream(tokens[:EVALUATED], 10, window)
    stats = evaluate(model, stream, TrainingConfig(), torch.device("cpu"), task=LanguageModelling())
    return math.exp(stats.loss)


def read(folder: Path, method: str, seed: int) -> dict[str, Any]:
    path = folder / f"{method}-{seed}.json"
    if not path.exists():
        raise SystemExit(f"{path} does not exist: run --method {method} --seed {seed} first")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def table(folder: Path) -> None:
    """Mean and standard deviation over seeds of each method."""
    print("| method | params | MACs | training MACs | steps | valid ppl | test ppl | CPU seconds vs dense |")
    print("|---|---|---|---|---|---|---|---|")
    for method in METHODS:
        runs = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{method}-[0-9]*.json"))]
        if not runs:
            continue

        def cell(name: str, pattern: str, scale: float = 1.0, runs: list[dict[str, Any]] = runs) -> str:
            values = [scale * run[name] for run in runs]
            spread = f" ± {pattern.format(statistics.stdev(values))}" if len(values) > 1 else ""
            return pattern.format(statistics.mean(values)) + spread

        ratios = [run["cpu_seconds"] / read(folder, "dense", run["seed"])["cpu_seconds"] for run in runs]
        print(
            f"| {method} ({len(runs)} seeds) | {cell('params_fraction', '{:.1f}', 100)} % | "
            f"{cell('macs_fraction', '{:.1f}', 100)} % | {cell('train_macs_fraction', '{:.1f}', 100)} % | "
            f"{cell('trained_steps', '{:.0f}')} | {cell('valid', '{:.1f}')} | {cell('test', '{:.1f}')} | "
            f"{statistics.mean(ratios):.2f} |"
        )


def time_steps(folder: Path, seed: int, turns: int) -> None:
    """One training step of every network that the runs of a seed visited, in turns within one process."""
    runs = {method: read(folder, method, seed) for method in METHODS if (folder / f"{method}-{seed}.json").exists()}
    first = next(iter(runs.values()))
    setting = Setting(**{name: first[name] for name in Setting.__dataclass_fields__ if name in first})
    networks = {json.dumps(network): network for run in runs.values() for _, *network in run["visited"]}
    training = TRAININGS[setting.model]
    inputs, targets = torch.randint(setting.words, (2, training.window, BATCH))
    steps = {}
    for key, (widths, skipped) in networks.items():
        model, structure = build(setting, seed)
        optimizer = training.optimizer(model)
        keep = {name: list(range(width)) for name, width in widths.items()}
        apical.resize_(model, structure, keep, skipped, optimizer=optimizer)
        steps[key] = (model, optimizer)
    seconds: dict[str, list[float]] = {key: [] for key in networks}
    for turn in range(turns + 1):
        for key, (model, optimizer) in steps.items():
            started = time.perf_counter()
            loss = LanguageModelling().batch(model, inputs, targets, training=True).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            optimizer.step()
            if turn:  # the first one warms up
                seconds[key].append(time.perf_counter() - started)
    median = {key: statistics.median(values) for key, values in seconds.items()}
    total = {name: sum(n * median[json.dumps(network)] for n, *network in run["visited"]) for name, run in runs.items()}
    whole = total.get("dense") or max(total.values())
    for name, value in total.items():
        print(f"{name}: step seconds of the run {value / whole:.3f} of dense, training MACs "
              f"{runs[name]['train_macs_fraction']:.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", choices=TRAININGS, default="lstm")
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/language"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--width", type=int, help="of the embedding and the layers; 256 (lstm), 192 (gpt)")
    parser.add_argument("--words", type=int, default=5000)
    parser.add_argument("--init-range", type=float, default=0.1)
    parser.add_argument("--budget", help="50%% params (lstm), 50%% macs (gpt)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of the method")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--turns", type=int, default=7, help="of --time")
    given = parser.parse_args()
    if given.table or given.time:
        table(given.out) if given.table else time_steps(given.out, given.seed, given.turns)
        return
    target = given.out / f"{given.method}-{given.seed}.json"
    if target.exists():
        print(f"{target} is there already")
        return
    options = {}
    for text in given.set:
        name, _, value = text.partition("=")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    width, budget = (192, "50% macs") if given.model == "gpt" else (256, "50% params")
    setting = Setting(given.steps, given.width or width, given.words, given.init_range, given.budget or budget,
                      given.model)  # fmt: skip
    result = train(given.method, setting, given.seed, given.out, options)
    given.out.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    print({name: value for name, value in result.items() if name != "visited"})


if __name__ == "__main__":
    main()
