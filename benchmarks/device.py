"""What a device can show in so many minutes: tests, timings, and whole trainings, several at once.

    APICAL_DATA=... python -m benchmarks.device --minutes 10 --out DIR
    APICAL_DATA=... python -m benchmarks.device --minutes 10 --out DIR      # again: goes on where it ended
    python -m benchmarks.device --minutes 2 --out DIR --jobs digits:grown:0:12 digits:dense:0:12

In the order of worth:

1. the tests that need the device (``pytest -m gpu``),
2. a step's overhead, tracing and resizing by size (``python -m benchmarks.seconds``),
3. the speed of a training step, one process and several at once: it says how many workers there will be, and how many
   of the 160 epochs fit into the time,
4. trainings on CIFAR-10: ResNet-20, then VGG-16 and the wide ResNet, a process of ``apical train`` each.

Small networks leave a large device idle, so several are trained at once; the images lie on the device and are augmented
there. When the time is over, runs are stopped as by a signal. A finished run is a line of DIR/results.jsonl; one that
was stopped leaves its checkpoint, as far as that is small, and the next call goes on with it. No weights are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apical.models import CifarResNet, vgg16, wrn28_10

EPOCHS = (160, 120, 80, 40, 20, 10, 5)  # lengths that a run may have, the longest that fits
STEPS = 351  # of an epoch: 45,000 images in batches of 128
MARGIN = 25.0  # seconds before the end at which runs are stopped, so that their checkpoints are written
KEPT = 16 * 2**20  # bytes: the largest checkpoint that is kept for the next call
TIMED = 6.0  # seconds that a step's speed is measured for
MODELS: dict[str, Callable[[], nn.Module]] = {
    "cifar10-resnet20": lambda: CifarResNet(depth=20),
    "cifar10-vgg16": vgg16,
    "cifar10-wrn28-10": wrn28_10,
}


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        recipe: of ``apical train``.
        method: that it names.
        seed: of training and growth.
        epochs: of it; 0: as many of 160 as fit into the time.
    """

    recipe: str
    method: str
    seed: int
    epochs: int = 0

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.method}-seed{self.seed}"

    @property
    def needs(self) -> str | None:
        """The name of the run whose architecture this one repeats."""
        return Job(self.recipe, "grown", self.seed).name if self.method.startswith("final") else None

    @staticmethod
    def parse(text: str) -> Job:
        """RECIPE:METHOD:SEED:EPOCHS"""
        try:
            recipe, method, seed, epochs = text.split(":")
            return Job(recipe, method, int(seed), int(epochs))
        except ValueError:
            raise SystemExit(f"--jobs: expected RECIPE:METHOD:SEED:EPOCHS, got {text!r}") from None


def jobs_by_worth() -> list[Job]:
    """What is to be known first stands first."""
    resnet = ("grown", "dense", "uniform", "final-same-macs", "scs")
    found = [Job("cifar10-resnet20", method, seed) for seed in range(3) for method in resnet]
    found += [Job("cifar10-vgg16", method, 0) for method in ("grown", "dense", "final-same-macs", "uniform")]
    return found + [Job("cifar10-wrn28-10", method, 0) for method in ("grown", "final-same-macs", "uniform")]


# ---- speed -----------------------------------------------------------------------------------------------------------


def steps_per_second(recipe: str, device: torch.device, seconds: float = TIMED) -> float:
    """Training steps of the whole network on 128 random images of 32x32 pixels."""
    model = MODELS[recipe]().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images = torch.randn(128, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (128,), device=device)

    def run(limit: float) -> tuple[int, float]:
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < limit:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done % 10 == 0:
                loss.item()  # the host may not run ahead
        loss.item()
        return done, time.perf_counter() - started

    run(seconds / 3)  # warm-up
    done, took = run(seconds)
    return done / took


def speeds_together(recipe: str, device: torch.device, workers: int) -> list[float]:
    """Steps a second of each of so many processes that train at the same time."""
    command = [sys.executable, "-m", "benchmarks.device", "--speed-of", recipe, "--device", str(device)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(workers)]
    return [float(process.communicate()[0]) for process in started]


def planned(jobs: Sequence[Job], speeds: Mapping[str, float], seconds: float) -> list[Job]:
    """The jobs with the longest training that ends in time, if nothing else is waited for.

    Example:
        >>> [job.epochs for job in planned([Job("r", "grown", 0), Job("r", "dense", 0, 7)], {"r": 35.1}, 900.0)]
        [80, 7]
    """
    lengths = {r: next((e for e in EPOCHS if e * STEPS / speed <= seconds), EPOCHS[-1]) for r, speed in speeds.items()}
    return [job if job.epochs else Job(job.recipe, job.method, job.seed, lengths[job.recipe]) for job in jobs]


# ---- runs ------------------------------------------------------------------------------------------------------------


def command_of(job: Job, work: Path, device: torch.device) -> list[str]:
    """How a job is started, or gone on with."""
    command = [sys.executable, "-m", "apical", "train", job.recipe, "--method", job.method, "--seed", str(job.seed),
               "--epochs", str(job.epochs), "--device", str(device), "--out", str(work / job.name), "--auto-resume",
               "--quiet"]  # fmt: skip
    return command if job.needs is None else [*command, "--set", f"method.run={work / job.needs}"]


def result_of(job: Job, folder: Path) -> dict[str, Any]:
    """What a finished run says, and its curve."""
    summary = json.loads((folder / "summary.json").read_text())
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    curve = ("macs_fraction", "loss", "eval_accuracy")
    shown = [{name: record[name] for name in curve if name in record} for record in history]
    return {"job": job.name, "epochs": job.epochs, **summary, "curve": shown}


class Runs:
    """So many processes at once, until the time is over.

    Args:
        jobs: in the order in which they start, as soon as what they need is done.
        work: run folders.
        out: where results and checkpoints go.
        device: that they train on.
        workers: processes at once.
    """

    def __init__(self, jobs: Sequence[Job], work: Path, out: Path, device: torch.device, workers: int) -> None:
        self._waiting = list(jobs)
        self._work, self._out, self._device, self._workers = work, out, device, workers
        self._running: dict[Job, subprocess.Popen[bytes]] = {}

    def until(self, deadline: float) -> None:
        """Run jobs until there are none, or until this moment of `time.monotonic`."""
        while (self._waiting or self._running) and time.monotonic() < deadline:
            self._collect()
            self._start()
            time.sleep(0.2)
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)  # the run writes a checkpoint and ends
        for process in self._running.values():
            try:
                process.wait(max(1.0, deadline + MARGIN - 5 - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        unfinished = [*self._running]
        self._collect()
        for job in unfinished:
            keep_checkpoint(self._work / job.name, self._out / "unfinished" / job.name)

    def _start(self) -> None:
        for job in list(self._waiting):
            ready = job.needs is None or (self._work / job.needs / "summary.json").exists()
            if not ready and job.needs not in {other.name for other in [*self._waiting, *self._running]}:
                self._waiting.remove(job)
                print(f"{job.name} is left out: there is no finished {job.needs}", flush=True)
            elif ready and len(self._running) < self._workers:
                self._waiting.remove(job)
                log = (self._work / f"{job.name}.log").open("ab")
                command = command_of(job, self._work, self._device)
                self._running[job] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def _collect(self) -> None:
        for job, process in list(self._running.items()):
            if process.poll() is None:
                continue
            del self._running[job]
            folder = self._work / job.name
            if process.returncode == 0:
                add(self._out, result_of(job, folder))
                shutil.rmtree(self._out / "unfinished" / job.name, ignore_errors=True)
            elif process.returncode != 75:  # 75: stopped by the signal, to be resumed
                tail = (self._work / f"{job.name}.log").read_text(errors="replace")[-2000:]
                add(self._out, {"job": job.name, "failed": process.returncode, "says": tail})


def keep_checkpoint(folder: Path, kept: Path) -> None:
    """Copy what a stopped run needs to go on, unless it is too large."""
    files = [folder / name for name in ("config.json", "history.jsonl", "checkpoint.pt")]
    if all(file.exists() for file in files) and files[-1].stat().st_size <= KEPT:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        for file in files:
            shutil.copy2(file, kept / file.name)


def take_up(out: Path, work: Path, done: Mapping[str, Mapping[str, Any]]) -> None:
    """Lay down what an earlier call left: checkpoints, and the architectures that other runs repeat."""
    for kept in (out / "unfinished").glob("*"):
        if not (work / kept.name).exists():
            shutil.copytree(kept, work / kept.name)
    for name, result in done.items():
        if "failed" not in result:
            (work / name).mkdir(parents=True, exist_ok=True)
            (work / name / "summary.json").write_text(json.dumps(result))


def checks(out: Path) -> dict[str, list[str]]:
    """Commands that come before the trainings, by name."""
    return {
        "gpu-tests": ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"],
        "overhead": ["-m", "benchmarks.seconds", "--quick", "--only", "overhead,sizes", "--device", "cuda",
                     "--out", str(out / "seconds")],
    }  # fmt: skip


# ---- results ---------------------------------------------------------------------------------------------------------


def add(out: Path, result: Mapping[str, Any]) -> None:
    """A line of results.jsonl, and a line for the reader."""
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    shown = ("epochs", "seconds", "failed", "test_accuracy", "macs_fraction", "train_macs_fraction")
    print(result["job"], *(f"{name}={result[name]}" for name in shown if name in result), flush=True)


def read(out: Path) -> dict[str, dict[str, Any]]:
    """Results by job, the last of each."""
    path = out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {result["job"]: result for result in map(json.loads, lines)}


def called(name: str, command: Sequence[str], seconds: float) -> dict[str, Any]:
    """The outcome of a command that may take so long."""
    started = time.monotonic()
    try:
        ended = subprocess.run(command, timeout=seconds, capture_output=True, text=True, errors="replace")
        code, text = ended.returncode, ended.stdout + ended.stderr
    except subprocess.TimeoutExpired as error:
        code, text = -1, f"took more than {seconds:.0f} s\n{(error.stdout or b'').decode(errors='replace')}"
    outcome = {} if code == 0 else {"failed": code}
    return {"job": name, "seconds": round(time.monotonic() - started, 1), "says": text[-4000:], **outcome}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, default=Path("results-device"))
    parser.add_argument("--work", type=Path, default=Path("runs/device"), help="run folders, which may be large")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes at once; measured if it is not given")
    parser.add_argument("--jobs", nargs="+", metavar="RECIPE:METHOD:SEED:EPOCHS", help="instead of the list")
    parser.add_argument("--speed-of", choices=MODELS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    deadline, device = time.monotonic() + 60 * given.minutes - MARGIN, torch.device(given.device)
    if given.speed_of:
        print(steps_per_second(given.speed_of, device))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    given.work.mkdir(parents=True, exist_ok=True)
    done = read(given.out)
    if device.type == "cuda":
        for name, command in checks(given.out).items():
            if name not in done and time.monotonic() < deadline:
                add(given.out, called(name, [sys.executable, *command], min(100.0, deadline - time.monotonic())))
    jobs = [Job.parse(text) for text in given.jobs] if given.jobs else jobs_by_worth()
    jobs = [job for job in jobs if job.name not in done or "failed" in done[job.name]]
    workers = given.workers or (min(8, os.cpu_count() or 1) if device.type == "cuda" else 1)
    if any(not job.epochs for job in jobs):
        speeds = {r: statistics.mean(speeds_together(r, device, workers)) for r in {j.recipe for j in jobs} & {*MODELS}}
        jobs = planned(jobs, speeds, deadline - time.monotonic())
        print("steps a second of each of", workers, "processes:", {r: round(s, 1) for r, s in speeds.items()})
    print("in this order:", *(f"{job.name} ({job.epochs} epochs)" for job in jobs), sep="\n  ", flush=True)
    take_up(given.out, given.work, done)
    Runs(jobs, given.work, given.out, device, workers).until(deadline)


if __name__ == "__main__":
    main()
