"""(a) A step of a model that a Grower trains over one of a plain module of the same shapes."""

from __future__ import annotations

import copy

import torch

import apical
from apical.recipes import apply_settings, get_recipe
from apical.recipes._task_kind import task_kind
from apical.runs._plan import data_facts
from apical.training._optimizer import build_optimizer
from benchmarks.seconds.findings import Findings
from benchmarks.seconds.spread import of, ratio, spread, take_turns
from benchmarks.seconds.steps import Options, training_step

MAX_OVERHEAD = 1.02
MAX_RESTRUCTURING = 0.01  # of the run's training time


def overhead(options: Options, found: Findings) -> None:
    """ResNet-20 as its recipe trains it; every network of a short growth, in turns with two plain copies.

    The second copy over the first says how exact the measurement is.
    """
    epochs = 4 if options.quick else 8
    settings = ["batch_size=8" if options.quick else "batch_size=128", f"epochs={epochs}"]
    config = apply_settings(get_recipe("cifar10-resnet20"), settings)
    images, facts = data_facts(config)
    steps, shape, classes = images // 128, facts["image_shape"], len(facts["classes"])
    torch.manual_seed(0)
    model = task_kind(config.task).template(config.model, facts).to(options.device)
    optimizer = build_optimizer(model, config.training.optimizer)
    example = (torch.zeros(1, *shape, device=options.device),)
    grower = apical.Grower(model, optimizer, example, config.budget, epochs, config=config.growth)
    rows, overheads, floors, seconds, restructuring = [], [], [], 0.0, 0.0
    for epoch in range(epochs // 2 + 1):  # the network stays as it is in the second half
        step = training_step(model, config.training, shape, classes, options.device, optimizer)

        def grown() -> None:
            step()  # noqa: B023 - called in this turn of the loop only
            grower.end_step()

        plain = [training_step(copy.deepcopy(model), config.training, shape, classes, options.device) for _ in "ab"]
        calls = {"grown": grown, "plain": plain[0], "again": plain[1]}
        rounds = take_turns(calls, options.seconds(8), least=options.rounds(7), most=options.rounds(25), warm_up=2)
        over, floor = ratio(rounds, "grown", "plain"), ratio(rounds, "again", "plain")
        overheads += [sample["grown"] / sample["plain"] for sample in rounds]
        floors += [sample["again"] / sample["plain"] for sample in rounds]
        record = grower.end_epoch()
        weight = 1 if epoch < epochs // 2 else epochs - epochs // 2  # epochs of this network
        seconds += weight * steps * of(rounds, "grown").median / 1000
        restructuring += record["restructure_seconds"]
        rows.append((epoch, 100 * record["macs_fraction"], of(rounds, "grown"), of(rounds, "plain"), over, floor,
                     1000 * record["restructure_seconds"]))  # fmt: skip
    columns = [("epoch", "d"), ("MACs %", ".1f"), ("grown ms", ".1f"), ("plain ms", ".1f"), ("grown / plain", ".3f"),
               ("plain / plain", ".3f"), ("restructuring ms", ".0f")]  # fmt: skip
    found.table("ResNet-20, 32x32, one step by epoch", columns, rows,
                "`plain / plain` is what two equal networks differ by: the noise of the measurement.")  # fmt: skip
    found.table("All rounds together", [("ratio", ""), ("median", ".4f")],
                [("grown / plain", spread(overheads)), ("plain / plain", spread(floors))])  # fmt: skip
    found.target("step with apical / plain step, ResNet-20", spread(overheads), MAX_OVERHEAD)
    share = restructuring / (seconds + restructuring)
    found.target(f"restructuring / training seconds, ResNet-20, {epochs} epochs", share, MAX_RESTRUCTURING)
