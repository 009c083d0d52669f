"""A real run, small: a Grower, dropout, augmentation, a moving average of the weights; and ways to die."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apical.errors import ApicalError
from apical.growth import ScsConfig
from apical.recipes import apply_settings, get_recipe
from apical.resizing._install import Installation
from apical.runs import read_config
from apical.runs import run as run_config
from apical.training import Interrupted, Loaders, OptimizerConfig, TrainingConfig, processes, train
from apical.training._progress import QuietProgress
from recipes.sharded_cases import TEXT as DIVIDED
from recipes.within_epoch_cases import CASES
from training.parallel_cases import Net, grower, loader

EPOCHS = 24


class Single(Net):
    """In single precision, whatever the images are in: bits need it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def build(bits: bool) -> nn.Module:
    torch.manual_seed(3)
    return Single(dropout=0.2) if bits else Net(dropout=0.2).double()


LIVELY = {"growth_end": 0.9, "damping": 1.0, "utility": "random"}
# Options of growth and of training that a run can have.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "moving average": (LIVELY, {"ema_decay": 0.5}),
    "learned": ({"growth_end": 0.6}, {}),
    "paper's version": ({"config": ScsConfig(growth_end=0.9)}, {"ema_decay": 0.5}),
    "bits": ({"budget": "60% macs, 20% size", "growth_end": 0.4}, {}),
    "compiled": ({**LIVELY, "growth_end": 0.3}, {"ema_decay": 0.5, "compile": True}),
}


def config(**options: Any) -> TrainingConfig:
    return TrainingConfig(
        epochs=EPOCHS, batch_size=8, optimizer=OptimizerConfig(lr=0.05), device="cpu", seed=2, **options
    )


def go_on(folder: Path, training: Any = None, kind: str = "moving average") -> Any:
    """Starts the run, or resumes what is there."""
    growth, options = KINDS[kind]
    if options.get("compile"):  # the graphs run as they are: what is tested is when they are made and made anew
        torch.compile = partial(torch.compile, backend="eager")
    return train(
        build(kind == "bits"),
        lambda model, optimizer, copies: grower(model, optimizer, copies, epochs=EPOCHS, **growth),
        Loaders(training or loader(True, augment=True), loader(False)),
        config(**options), folder, resume=(folder / "config.json").exists(), progress=QuietProgress(sys.stdout),
    )  # fmt: skip


def run(folder: str, keep: str | None = None, kind: str = "moving average") -> int:
    """The run until it ends or is ended; what it ends with lies in the file `keep`."""
    try:
        result = go_on(Path(folder), kind=kind)
    except Interrupted as stopped:
        print(stopped)
        return stopped.exit_code
    except ApicalError as error:
        print(f"{type(error).__name__}: {error}")
        return 2
    if keep is not None:
        content = {"model": result.model.state_dict(), "history": result.history, "summary": result.summary}
        torch.save(content, keep)
    return 0


# Of recipes and of several processes: the recipe, its settings, what it reads, and in how many processes.
RECIPES: dict[str, tuple[str, tuple[str, ...], str, int]] = {
    "images": (*CASES["folder"][:2], "folder", 1),
    "read by workers": (*CASES["parquet"][:2], "parquet", 1),
    "segmentation": (*CASES["masks"][:2], "masks", 1),
    "text": (*CASES["text"][:2], "text", 1),
    "images in two processes": (*CASES["folder"][:2], "folder", 2),
    "text in two processes": (*CASES["text"][:2], "text", 2),
    "divided by two processes": ("gpt-wikitext2", (*DIVIDED, "training.shard=true"), "text", 2),
}


def go(folder: str, keep: str | None, name: str, data: str, point: str | None = None, number: int = 0) -> int:
    """Any of the runs, started or resumed; its first process dies at the given call of a function."""
    if point is not None and processes().first:
        on_call(*POINTS[point][:2], number, POINTS[point][2])
    if name in KINDS:
        return run(folder, keep and f"{keep}-0", name)
    recipe, options, layout, _ = RECIPES[name]
    if name.startswith("divided"):
        torch.set_default_dtype(torch.float64)
    out, resume = Path(folder), (Path(folder) / "config.json").exists()
    begun = read_config(out) if resume else apply_settings(
        get_recipe(recipe), ["device=cpu", "epochs=3", *options, f"data.path={Path(data) / layout}"]
    )  # fmt: skip
    try:
        result = run_config(begun, out, resume=resume, progress=QuietProgress(sys.stdout))
    except ApicalError as error:
        print(f"{type(error).__name__}: {error}")
        return 2
    if keep is not None:
        content = {"model": result.model.state_dict(), "history": result.history, "summary": result.summary}
        torch.save(content, f"{keep}-{processes().rank}")
    return 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(owner: Any, name: str, number: int, act: Callable[..., None]) -> None:
    """Lets ``owner.name`` do something else at its call of this number, before it does what it does."""
    original, calls = getattr(owner, name), []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            act(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, called)


def half_written(_content: object, stream: Any) -> None:
    stream.write(b"PK\x03\x04 half a checkpoint")
    stream.flush()
    die()


POINTS: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "in the middle of writing a checkpoint": (torch, "save", half_written),
    "between two steps of a restructuring": (Installation, "tensor", lambda *_: die()),
    "before a file is moved": (Path, "replace", lambda *_: die()),
    "while flushing": (os, "fsync", lambda *_: die()),
}


def killed_at(folder: str, point: str, number: int) -> int:
    """A run that dies at the given call of a function."""
    owner, name, act = POINTS[point]
    on_call(owner, name, number, act)
    return run(folder)


def signalled(folder: str, number: int, where: str) -> int:
    """A run that gets SIGTERM in a training step or while it evaluates."""
    from apical.training import Classification

    def act(_task: object, _model: object, _inputs: object, _targets: object, training: bool) -> None:
        if training == (where == "step"):
            seen.append(1)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGTERM)

    seen: list[int] = []
    original = Classification.batch

    def batch(self: Any, model: Any, inputs: Any, targets: Any, training: bool) -> Any:
        act(self, model, inputs, targets, training)
        return original(self, model, inputs, targets, training)

    Classification.batch = batch  # type: ignore[method-assign]
    return run(folder)


def full_disk(folder: str, checkpoint: int) -> int:
    """A run whose disk is full when it writes this checkpoint: what it writes aside leads to /dev/full."""

    def full(path: Path) -> Path:
        aside = path.with_name(f".{path.name}.full.tmp")
        aside.symlink_to("/dev/full")
        return aside

    def fill(*_: object) -> None:
        _atomic.new_aside = full

    import apical.training._run as loop
    from apical import _atomic

    on_call(loop, "save_checkpoint", checkpoint, fill)
    return run(folder)


def file_limit(folder: str, kilobytes: int) -> int:
    """A run that may write no file larger than this."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * kilobytes, 1024 * kilobytes))
    return run(folder)


def read_only(folder: str, epochs: int) -> int:
    """A run whose folder becomes read-only; root, for whom nothing is, becomes somebody else first."""
    if os.geteuid() == 0:
        for path in (Path(folder).parent, Path(folder)):
            path.mkdir(exist_ok=True)
            os.chown(path, 65534, 65534)
            for file in path.iterdir():
                os.chown(file, 65534, 65534)
        os.setuid(65534)
    import apical.training._run as loop

    on_call(loop, "save_checkpoint", epochs, lambda *_: Path(folder).chmod(0o500))
    return run(folder)


def held(folder: str, seconds: float) -> int:
    """Holds the folder's lock."""
    import time

    from apical.training._run_folder import RunFolder

    with RunFolder(Path(folder)):
        time.sleep(seconds)
    return 0


NO_SPACE = os.strerror(errno.ENOSPC)
