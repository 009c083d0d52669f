"""(g) What the training loop costs beside forward, backward and optimizer, as a share of a CIFAR epoch."""

from __future__ import annotations

import copy
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import apical
from apical.data import ImageArrays, ImageLoader, Normalize, RandomCrop, RandomFlip
from apical.recipes import apply_settings, get_recipe
from apical.recipes._task_kind import task_kind
from apical.timing._clock import synchronise
from apical.training import Loaders, Metric, Progress, TrainingConfig, make_progress, train
from benchmarks.seconds.findings import Findings
from benchmarks.seconds.spread import Spread, of, spread, take_turns
from benchmarks.seconds.steps import Options, training_step

MAX_SHARE = 0.05  # of an epoch without evaluation
CIFAR_STEPS, CIFAR_TEST_IMAGES = 390, 10_000
SHAPE, CLASSES, BATCH = (3, 32, 32), 10, 128

Method = Callable[[nn.Module, Optimizer, Sequence[nn.Module]], Any]


def loop(options: Options, found: Findings) -> None:
    """The real loop on random images of CIFAR's shape: ResNet-20 dense, and grown, whose first steps are short."""
    steps, epochs = (3, 4) if options.quick else (8, 10)
    config = apply_settings(get_recipe("cifar10-resnet20"), [f"epochs={epochs}"])
    training = replace(config.training, device=str(options.device))
    example = (torch.zeros(1, *SHAPE, device=options.device),)

    def grown(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> apical.Grower:
        return apical.Grower(model, optimizer, example, config.budget, epochs, copies=copies, config=config.growth)

    facts = {"classes": [str(i) for i in range(CLASSES)], "image_shape": list(SHAPE)}
    rows = []
    for name, method in (("dense", None), ("grown", grown)):
        with found.part(name):
            torch.manual_seed(0)
            model = task_kind(config.task).template(config.model, facts)
            costs = measure(model, method, training, steps, options)
            share = spread([own_share(cost) for cost in costs])
            parts = {key: spread([1000 * cost[key] for cost in costs]) for key in costs[0]}
            names = ("bare", "turn", "data", "fixed", "changes", "evaluation")
            rows.append((f"ResNet-20, {name}", *(parts[part] for part in names), _times(share, 100)))
            found.target(f"the loop's own costs / epoch without evaluation, ResNet-20, {name}", share, MAX_SHARE)
    headings = [("run", ""), ("bare step ms", ".2f"), ("the loop's step ms", ".2f"), ("data in it ms", ".2f"),
                ("once an epoch ms", ".1f"), ("restructuring in it ms", ".1f"), ("evaluation ms / image", ".3f"),
                ("own share %", ".2f")]  # fmt: skip
    note = (
        f"`apical.training.train` on random images, epochs of {steps} steps of {BATCH}; after each epoch the same "
        "number of bare steps on a copy of its network. The loop's step has data, augmentation and tallies in it; once "
        "an epoch come restructuring, checkpoint, history, display, and what a first step takes longer. The share is "
        f"that of an epoch of {CIFAR_STEPS} steps: all seconds but the bare steps' and the evaluation's, which comes "
        f"on top for {CIFAR_TEST_IMAGES:,} images."
    )
    found.table("Parts of an epoch", headings, rows, note)
    with found.part("data and augmentation"):
        _data(options, found)


def own_share(cost: Mapping[str, float], steps: int = CIFAR_STEPS) -> float:
    """The share of an epoch of so many steps, evaluation left out, that is not the bare steps.

        1 - n bare / (n turn + fixed)

    Args:
        cost: seconds: `bare` and `turn` of one step, without and with all that the loop does for it, `fixed` of what it
            does once an epoch.
        steps: n, of the epoch.

    Example:
        >>> round(own_share({"bare": 0.1, "turn": 0.102, "fixed": 0.4}, 100), 4)
        0.0566
    """
    return 1 - steps * cost["bare"] / (steps * cost["turn"] + cost["fixed"])


def _times(value: Spread, factor: float) -> Spread:
    return Spread(factor * value.median, factor * value.low, factor * value.high, value.samples)


def measure(
    model: nn.Module, method: Method | None, training: TrainingConfig, steps: int, options: Options
) -> list[dict[str, float]]:
    """Seconds of every epoch but the first: `bare`, `turn`, `data` of a step, `fixed`, `changes` of the epoch,
    `evaluation` of an image."""
    batch = 8 if options.quick else BATCH
    training = replace(training, batch_size=batch)
    loaders = Loaders(
        _loader(steps * batch, batch, options.device), _loader(2 * batch, 2 * batch, options.device, False)
    )
    watch = _Watch(model, training, steps, options.device)
    with tempfile.TemporaryDirectory() as folder:
        train(model, method, loaders, training, folder, progress=watch)
    return watch.costs[1:]


def _loader(images: int, batch: int, device: torch.device, training: bool = True) -> ImageLoader:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(CLASSES, (images,), generator=generator)
    arrays = ImageArrays(pixels, labels, tuple(str(i) for i in range(CLASSES)))
    augment = (RandomCrop(4), RandomFlip()) if training else ()
    normalize = Normalize((0.5,) * 3, (0.25,) * 3)
    return ImageLoader(arrays, batch, shuffle=training, augment=augment, normalize=normalize, device=device)


class _Watch:
    """Shows a run as the command line does, notes where each epoch's seconds went, and takes bare steps in between."""

    def __init__(self, model: nn.Module, training: TrainingConfig, steps: int, device: torch.device) -> None:
        self._inner: Progress = make_progress("plain", io.StringIO())
        self._model, self._training, self._steps, self._device = model, training, steps, device
        self._moments: list[float] = []  # the epoch's beginning, and the end of each of its steps
        self._trained: nn.Module | None = None
        self.costs: list[dict[str, float]] = []

    def start(self, epochs: int, run: str, metric: Metric) -> None:
        self._inner.start(epochs, run, metric)
        self._moments = [time.perf_counter()]

    def step(self, epoch: int, step: int, steps: int) -> None:
        self._inner.step(epoch, step, steps)
        synchronise(self._device)
        self._moments.append(time.perf_counter())
        if step == steps:  # copying what this epoch trained is not the loop's doing
            self._trained = copy.deepcopy(self._model)
            self._copying = time.perf_counter() - self._moments[-1]

    def epoch(self, record: Mapping[str, Any]) -> None:
        self._inner.epoch(record)
        whole = time.perf_counter() - self._moments[0] - self._copying - record["eval_seconds"]
        turns = [b - a for a, b in pairwise(self._moments[1:])]  # of the second step and those after it
        turn = statistics.median(turns)
        self.costs.append({
            "bare": self._bare(),
            "turn": turn,
            "data": (record["data_seconds"] - self._copying) / self._steps,
            "fixed": whole - sum(turns) - turn,
            "changes": record["restructure_seconds"],
            "evaluation": record["eval_seconds"] / (2 * self._training.batch_size),
        })  # fmt: skip
        self._trained = None
        self._moments = [time.perf_counter()]

    def _bare(self) -> float:
        """Median seconds of a bare step on the epoch's network."""
        assert self._trained is not None
        step = training_step(self._trained, self._training, SHAPE, CLASSES, self._device)
        step()
        samples = []
        for _ in range(self._steps - 1):
            started = time.perf_counter()
            step()
            samples.append(time.perf_counter() - started)
        return statistics.median(samples)

    def message(self, text: str) -> None:
        self._inner.message(text)

    def summary(self, summary: Mapping[str, Any]) -> None:
        self._inner.summary(summary)

    def stop(self) -> None:
        self._inner.stop()


def _data(options: Options, found: Findings) -> None:
    """Batches alone, with one change after the other, in turns."""
    batch = 8 if options.quick else BATCH
    loaders = {}
    for name, augment in (
        ("gathered", ()),
        ("and cropped", (RandomCrop(4),)),
        ("and flipped", (RandomCrop(4), RandomFlip())),
    ):
        loaders[name] = _loader(4 * batch, batch, options.device)
        loaders[name].augment, loaders[name].normalize = augment, None
    loaders["and normalised"] = _loader(4 * batch, batch, options.device)
    calls = {name: (lambda loader=loader: [None for _ in loader]) for name, loader in loaders.items()}
    rounds = take_turns(calls, options.seconds(5), least=options.rounds(5), most=options.rounds(40), warm_up=2)
    rows = [(name, _times(of(rounds, name), 1 / 4)) for name in calls]
    found.table(f"A batch of {batch} images of 32x32", [("batch", ""), ("ms", ".3f")], rows)
