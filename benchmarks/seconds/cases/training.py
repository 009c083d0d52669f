"""(c) Training seconds of a grown run against dense, and against its final network for the same epochs."""

from __future__ import annotations

from benchmarks.seconds.findings import Findings
from benchmarks.seconds.spread import Spread, of, ratio, spread, take_turns
from benchmarks.seconds.steps import Growth, Options, distinct, recorded, simulated

RECIPES = {
    "cifar10-resnet20": ("50% macs", 20, 6, 30),
    "cifar10-vgg16": ("13.6% macs, 5% params", 20, 6, 30),
    "cifar10-wrn28-10": ("28.3% macs", 12, 4, 100),
}
"""Budget, epochs of the simulated growth, networks that are timed, seconds to spend."""
JUDGED = ("cifar10-vgg16", "cifar10-wrn28-10")  # those whose MACs are large enough to be worth the time
BATCH = 128  # of the recipes
LEAST_SHARE = 0.8  # of the saving in MACs that becomes a saving in seconds
MAX_RESTRUCTURING = 0.01

SUMMARY = [("run", ""), ("MACs of dense", ".3f"), ("seconds of dense", ".3f"), ("share of the saving", ".3f"),
           ("MACs of final", ".3f"), ("seconds of final", ".3f"), ("restructuring %", ".2f"), ("rounds", "d"),
           ("networks from", "")]  # fmt: skip


def saved_share(seconds_ratio: float, macs_ratio: float) -> float:
    """How much of the saving in MACs is a saving in seconds: (1 - seconds ratio) / (1 - MACs ratio).

    Example:
        >>> saved_share(0.6, 0.5)
        0.8
    """
    return (1 - seconds_ratio) / (1 - macs_ratio)


def training(options: Options, found: Findings) -> None:
    """The recipes of the paper's CIFAR-10 table, and the given runs."""
    summary: list[tuple[object, ...]] = []
    for recipe, (budget, epochs, networks, limit) in () if options.only_runs else RECIPES.items():
        with found.part(recipe):
            growth = simulated(recipe, _settings(options, recipe, budget), 4 if options.quick else epochs)
            summary.append(_time(growth, options, found, 2 if options.quick else networks, limit, recipe in JUDGED))
    for folder in options.runs:
        with found.part(folder.name):
            growth = recorded(folder, [*options.fast, *(["batch_size=4"] if options.quick else [])])
            judged = growth.config.recipe in JUDGED
            summary.append(_time(growth, options, found, 2 if options.quick else 8, 60, judged))
    note = (
        f"One step of every network, in turns, {options.numbers}, batch {BATCH} or the run's own; epochs between two "
        "timed networks are interpolated. Restructuring is counted. The share of the saving is (1 - seconds ratio) / "
        "(1 - MACs ratio); data, augmentation and evaluation are not counted, see the case `loop`."
    )
    found.table("Sums over the run", SUMMARY, summary, note)
    found.tables.insert(0, found.tables.pop())


def _settings(options: Options, recipe: str, budget: str) -> list[str]:
    quick = 2 if recipe == "cifar10-wrn28-10" else 4
    return [*options.fast, f"batch_size={quick if options.quick else BATCH}", f"budget={budget}"]


def _time(
    growth: Growth, options: Options, found: Findings, networks: int, limit: float, judged: bool
) -> tuple[object, ...]:
    chosen = distinct(growth.records, networks)
    calls: dict[int, object] = {
        epoch: growth.step(growth.at(epoch), options.device, growth.batch(epoch)) for epoch in chosen
    }
    dense = -1
    calls[dense] = growth.step(growth.dense(), options.device)
    rounds = take_turns(calls, options.seconds(limit), least=options.rounds(2))  # type: ignore[arg-type]
    full_macs, macs = growth.structure.macs(), [record["macs"] for record in growth.records]
    rows: list[tuple[object, ...]] = [
        (epoch, 100 * macs[epoch] / full_macs, of(rounds, epoch), ratio(rounds, epoch, dense)) for epoch in chosen
    ]
    rows.append(("dense", 100.0, of(rounds, dense), ratio(rounds, dense, dense)))
    columns = [("epoch", ""), ("MACs %", ".1f"), ("step ms", ".1f"), ("of dense", ".3f")]
    found.table(f"{growth.name}, {growth.config.budget}: steps", columns, [(str(a), *b) for a, *b in rows], detail=True)

    epochs, base = len(growth.records), growth.config.training.batch_size
    steps = sum(map(growth.examples, range(epochs))) / base  # of a run with the base batch
    restructuring, last = growth.restructuring, chosen[-1]
    macs_ratio = sum(macs) / (epochs * full_macs)
    against_dense, against_final, parts = [], [], []
    for sample in rounds:
        whole = growth.seconds({e: sample[e] for e in chosen}) + restructuring
        against_dense.append(whole / (steps * sample[dense] / 1000))
        against_final.append(whole / (steps * sample[last] * base / growth.batch(last) / 1000))
        parts.append(restructuring / whole)
    share: Spread = spread([saved_share(ratio_, macs_ratio) for ratio_ in against_dense])
    if judged:
        found.target(f"share of the MACs saving that is a saving in seconds, {growth.name}", share, LEAST_SHARE,
                     "at least")  # fmt: skip
    found.target(f"restructuring / training seconds, {growth.name}", spread(parts), MAX_RESTRUCTURING)
    return (growth.name, macs_ratio, spread(against_dense), share, sum(macs) / (epochs * macs[last]),
            spread(against_final), 100 * spread(parts).median, len(rounds), growth.source)  # fmt: skip
