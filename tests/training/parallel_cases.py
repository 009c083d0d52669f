"""What the processes of test_parallel.py do. Each function is one process; it knows the others as under torchrun."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import apical
from apical.data import ImageLoader, RandomFlip, TokenStream, synthetic_images
from apical.errors import ApicalError
from apical.models import LSTMLanguageModel
from apical.recipes.tasks.language import LanguageModelling
from apical.training import (
    Interrupted,
    Loaders,
    OptimizerConfig,
    TrainingConfig,
    check_same_everywhere,
    make_progress,
    processes,
    train,
)
from apical.training._processes import process_group

EPOCHS, BATCH, SIZE, CLASSES = 6, 8, 8, 4


class Net(nn.Module):
    """A small residual network with batch norm, and dropout if asked for."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.inner = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.outer = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(self.drop(x.mean((2, 3))))


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(3)
    return Net(dropout).double()


STRUCTURE = apical.trace(network(), torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64))


def as_double(images: Tensor) -> Tensor:
    return images.double() / 255 - 0.5


def loader(learn: bool, augment: bool = False, poison: tuple[int, int] | None = None) -> ImageLoader:
    """This process' share of 40 training or 13 test images."""
    team = processes()
    images = synthetic_images(num_images=40 if learn else 13, num_classes=CLASSES, size=SIZE, seed=0 if learn else 1)

    def normalize(batch: Tensor) -> Tensor:
        calls.append(1)
        poisoned = poison is not None and (team.rank, len(calls)) == tuple(poison)
        return as_double(batch) * (math.nan if poisoned else 1.0)

    calls: list[int] = []
    return ImageLoader(
        images, team.share(BATCH), shuffle=learn, drop_last=learn, augment=(RandomFlip(),) if augment else (),
        normalize=normalize, seed=5, rank=team.rank, world_size=team.count,
    )  # fmt: skip


def grower(model: nn.Module, optimizer: Any, copies: Any = (), epochs: int = EPOCHS, **options: Any) -> apical.Grower:
    example = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)
    settings = {"structure": STRUCTURE, **options}
    return apical.Grower(
        model, optimizer, example, **{"budget": "60% macs", "epochs": epochs, "copies": copies, **settings}
    )


def other_labels(loaders: Loaders) -> Loaders:
    arrays = loaders.train.arrays
    arrays.labels.copy_(arrays.labels.flip(0))
    return loaders


def fewer(loaders: Loaders) -> Loaders:
    train = loaders.train
    train.arrays = train.arrays.select(torch.arange(32))
    return loaders


# What one process is given otherwise than the others.
ODD: dict[str, Callable[[Any, Any, bool], tuple[Any, Any, bool]]] = {
    "labels": lambda config, loaders, resume: (config, other_labels(loaders), resume),
    "size": lambda config, loaders, resume: (config, fewer(loaders), resume),
    "eval_every": lambda config, loaders, resume: (replace(config, eval_every=2), loaders, resume),
    "ema": lambda config, loaders, resume: (replace(config, ema_decay=0.9), loaders, resume),
    "resume": lambda config, loaders, resume: (config, loaders, True),
}


def run(folder: str, resume: bool = False, options: dict[str, Any] | None = None) -> int:
    """A whole run; what each process ends with lies in ``folder/state-RANK.pt``."""
    given = options or {}
    config = TrainingConfig(
        epochs=EPOCHS, batch_size=BATCH, optimizer=OptimizerConfig(lr=0.05), device="cpu", seed=2,
        sync_batchnorm=given.get("sync", True), ema_decay=given.get("ema"), clip_grad_norm=1.0,
        **given.get("training", {}),
    )  # fmt: skip
    growth = dict(given.get("growth", {}))
    if given.get("torn_apart"):
        growth["seed"] = processes().rank
    loaders = Loaders(loader(True, given.get("augment", False), given.get("poison")), loader(False))
    if given.get("odd") and processes().rank == 1:
        config, loaders, resume = ODD[given["odd"]](config, loaders, resume)
    if given.get("unshared"):
        loaders.train.world_size = 1
    try:
        result = train(
            network(given.get("dropout", 0.0)),
            lambda model, optimizer, copies: grower(model, optimizer, copies, **growth),
            loaders, config, Path(folder) / "run", resume=resume, progress=make_progress("quiet"),
        )  # fmt: skip
    except Interrupted as stopped:
        print(stopped)
        return stopped.exit_code
    except ApicalError as error:
        print(f"{type(error).__name__}: {error}")
        return 2
    content = {"model": result.model.state_dict(), "history": result.history, "summary": result.summary,
               "kinds": [type(m).__name__ for m in result.model.modules()]}  # fmt: skip
    torch.save(content, Path(folder) / f"state-{processes().rank}.pt")
    return 0


def text(folder: str) -> int:
    """A recurrent language model that grows between steps, on streams that the processes share."""
    tokens = torch.randint(7, (12 * 31,), generator=torch.Generator().manual_seed(5))
    tokens = (tokens + tokens.roll(1)) % 7  # each depends on the one before
    team = processes()

    def streams(count: int, learn: bool) -> TokenStream:
        return TokenStream(tokens, count, 5, drop_last=learn, rank=team.rank, world_size=team.count)

    torch.manual_seed(0)
    model = LSTMLanguageModel(vocab_size=7, embedding_size=6, hidden_sizes=(10, 8)).double()
    config = TrainingConfig(epochs=4, batch_size=12, optimizer=OptimizerConfig(lr=1.0), device="cpu", seed=2)

    def method(network: nn.Module, optimizer: Any, copies: Any) -> apical.Grower:
        return apical.Grower(network, optimizer, torch.zeros(5, 1, dtype=torch.long), "60% params", 4, copies=copies,
                             steps_per_epoch=6, interval=3, interval_unit="steps")  # fmt: skip

    result = train(model, method, Loaders(streams(12, True), streams(3, False)), config, Path(folder) / "run",
                   task=LanguageModelling(), progress=make_progress("quiet"))  # fmt: skip
    content = {"model": result.model.state_dict(), "history": result.history, "summary": result.summary}
    torch.save(content, Path(folder) / f"state-{team.rank}.pt")
    return 0


def lost(folder: str, number: int) -> int:
    """Process 1 stops or dies in its seventh batch; it is killed for good later on, for this test's own sake."""

    def normalize(batch: Tensor) -> Tensor:
        seen.append(1)
        if processes().rank == 1 and len(seen) == 7:
            subprocess.Popen(["sh", "-c", f"sleep 45; kill -KILL {os.getpid()}"])
            os.kill(os.getpid(), number)
        return as_double(batch)

    seen: list[int] = []
    loaders = Loaders(loader(True), loader(False))
    loaders.train.normalize = normalize
    config = TrainingConfig(epochs=EPOCHS, batch_size=BATCH, device="cpu", seed=2, process_timeout_s=15.0)
    try:
        train(network(), grower, loaders, config, Path(folder) / "run", progress=make_progress("quiet"))
    except ApicalError as error:
        print(f"{type(error).__name__}: {error}")
        return 2
    return 0


def own_loop(folder: str) -> int:
    """A user's loop, with the three lines of docs/guides/data-parallel.md."""
    with process_group(torch.device("cpu")) as team:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        growth = grower(model, optimizer)
        parallel: Any = DistributedDataParallel(model)
        batches = loader(True)
        for _ in range(EPOCHS):
            for images, labels in batches:
                loss = F.cross_entropy(parallel(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            growth.end_epoch()
            check_same_everywhere(model, "after an epoch")
            parallel = DistributedDataParallel(model)
        growth.finish()
        torch.save(
            {"model": dict(model.named_parameters()), "history": growth.history},
            Path(folder) / f"state-{team.rank}.pt",
        )
    return 0


def measured(folder: str) -> int:
    """A Grower with all that is measured; each process has a clock of its own."""
    from apical.timing import _divisor, _latency_table

    with process_group(torch.device("cpu")) as team:
        calls: list[int] = []

        def clock(*_: Any, **__: Any) -> float:
            calls.append(1)
            return 1.0 + (7 * len(calls) + 3 * team.rank) % 5

        _divisor.time_step_ms = _latency_table.time_ms = clock
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        example = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64)
        growth = apical.Grower(
            model, optimizer, example, "90% latency, 70% macs", 4, structure=STRUCTURE, divisor="auto"
        )
        assert growth.latency is not None
        content = {"calls": len(calls), "divisor": growth.config.divisor, "table": growth.latency.to_dict(),
                   "keep": growth.keep}  # fmt: skip
        torch.save(content, Path(folder) / f"state-{team.rank}.pt")
    return 0


def first_cannot_measure(_folder: str) -> int:
    """The first process fails to measure; the others are told."""
    from apical.timing._latency_table import from_first

    def measure() -> int:
        raise ApicalError("no timer")

    with process_group(torch.device("cpu")):
        try:
            from_first(measure)
        except ApicalError as error:
            print(error)
            return 2
    return 0


def batch_norms(folder: str) -> int:
    """Outputs, gradients and statistics of a synchronised norm on this process' share of one batch."""
    from apical.training._parallel import separate_norms_, synchronise_norms_

    with process_group(torch.device("cpu")) as team:
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)).double()
        x = torch.randn(6, 3, 5, 5, dtype=torch.float64)[team.rank :: team.count].requires_grad_(True)
        paths = synchronise_norms_(model, torch.device("cpu"))
        y = model(x)
        (y.square() * torch.arange(1.0, 5.0, dtype=torch.float64).view(1, 4, 1, 1)).sum().backward()
        separate_norms_(model)
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        torch.save(
            {"paths": paths, "y": y.detach(), "x": x.grad, "grads": grads, "state": model.state_dict(),
             "kinds": [type(m).__name__ for m in model]},
            Path(folder) / f"state-{team.rank}.pt",
        )  # fmt: skip
    return 0


def first_fails(_folder: str) -> int:
    """The first process raises in its turn; the others are told."""
    from apical.training._processes import first_before_others

    with process_group(torch.device("cpu")) as team:
        try:
            with first_before_others(team):
                if team.first:
                    raise ApicalError("no space")
        except ApicalError as error:
            print(error, file=sys.stderr)
            return 2
    return 0


def stopped(folder: str, epoch: int, step: int) -> int:
    """A run whose last process gets SIGTERM in a step."""
    import os
    import signal

    from apical.training import _run as loop

    loop.STEPS_PER_QUESTION = 4
    team, seen = processes(), []

    class Signalled(ImageLoader):
        def __iter__(self) -> Any:
            if not self.shuffle:
                yield from super().__iter__()
                return
            seen.append(0)
            for batch in super().__iter__():
                seen[-1] += 1
                if team.rank == team.count - 1 and (len(seen), seen[-1]) == (epoch, step):
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    original = globals()["ImageLoader"]
    globals()["ImageLoader"] = Signalled
    try:
        return run(folder)
    finally:
        globals()["ImageLoader"] = original
