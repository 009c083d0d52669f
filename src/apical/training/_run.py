"""A whole run: epochs, restructuring between them, evaluation, checkpoints, the run folder."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from apical.errors import CheckpointError
from apical.training._accounting import epoch_train_macs, training_costs
from apical.training._checkpoint import Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from apical.training._config import TrainingConfig, resolve_device
from apical.training._epoch import EpochStats, EvalStats, apply_memory_format_, evaluate, train_one_epoch
from apical.training._interrupt import Interrupted, InterruptGuard
from apical.training._memory import peak_memory_mib
from apical.training._optimizer import build_optimizer, lr_factor, set_lr_
from apical.training._progress import Progress, QuietProgress, make_progress
from apical.training._protocols import GrowthMethod, Loader, MethodFactory, PlainMethod, StepwiseMethod
from apical.training._random import deterministic_algorithms, random_state, seed_everything, set_random_state
from apical.training._run_folder import RunFolder, plain
from apical.training._task import Classification, StreamTask, Task, prefixed, task_facts

__all__ = ["Loaders", "QuietProgress", "TrainingResult", "train"]

# Where and how verbosely a run goes on does not make it another run.
NOT_IDENTITY = frozenset({"device", "data", "out", "progress", "resume", "versions"})


@dataclass(frozen=True)
class Loaders:
    """The data of a run.

    Attributes:
        train: batches of (inputs, targets) to learn from.
        evaluation: batches to evaluate on after each epoch: a split of the training set when decisions hang on it.
        test: batches that are read once, at the end; None reads `evaluation` again.
    """

    train: Loader
    evaluation: Loader
    test: Loader | None = None


@dataclass(frozen=True)
class TrainingResult:
    """What a finished run leaves.

    Attributes:
        model: the final, compact model (with the averaged weights, if the run averaged them).
        method: the growth method after `finish()`.
        history: a record per epoch, as in history.jsonl.
        summary: as in summary.json.
        folder: the run folder.
    """

    model: nn.Module
    method: GrowthMethod
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    folder: Path


def train(
    model: nn.Module,
    method: MethodFactory | None,
    loaders: Loaders,
    config: TrainingConfig,
    folder: str | Path,
    *,
    task: Task | None = None,
    run_config: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    on_finish: Callable[[TrainingResult], None] | None = None,
) -> TrainingResult:
    """Trains a model while `method` restructures it, and leaves a run folder.

    After every epoch: evaluate, `method.end_epoch()`, checkpoint, history. A run that is killed at any moment and
    resumed repeats the running epoch from its beginning and ends, on a CPU, bit for bit as if it had not been killed.

    Args:
        model: the full-size model, freshly built; it is moved to the device and restructured in place.
        method: builds the growth method from (model, optimizer, copies); None trains the model as it is.
        loaders: the data.
        config: how to train.
        folder: the run folder; receives config.json, history.jsonl, checkpoint.pt and summary.json.
        task: loss and metrics; classification if None.
        run_config: the rest of the run's configuration (`recipe`, `method`, ...), kept in config.json and compared on
            resume, except the keys of `NOT_IDENTITY`.
        resume: go on from the folder's checkpoint.
        overwrite: remove an earlier run from the folder first.
        progress: what people see; `make_progress()` if None.
        on_finish: called with the result before summary.json is written, to add files such as the final weights.

    Returns:
        The result; `model` in it is the object that was passed.

    Raises:
        TrainingError: a loss is not finite. The checkpoint of the epoch's beginning is kept.
        CheckpointError: the folder holds another run, cannot be written, or has no usable checkpoint to resume from.
        Interrupted: SIGINT or SIGTERM; resume later. The process should exit with `Interrupted.exit_code`.
    """
    run_folder = RunFolder(Path(folder))
    task = task or Classification(config.label_smoothing)
    content = {"training": config.to_mapping(), **(run_config or {}), "metrics": task_facts(task)["metrics"]}
    _claim(run_folder, resume, overwrite)
    progress = progress or make_progress()
    with deterministic_algorithms(config.deterministic), InterruptGuard() as guard:
        seed_everything(config.seed)
        run = _start(model, method, loaders, config, task, run_folder, _identity(content), guard, progress)
        if not (resume and run.restore()):
            run_folder.write_json("config.json", {**content, "versions": versions()})
            run.save()
        progress.start(config.epochs, str(run_folder.path), task.metrics[0])
        try:
            while len(run.history) < config.epochs:
                run.one_epoch()
            result = run.finish(content)
            if on_finish is not None:
                on_finish(result)
            run_folder.write_json("summary.json", result.summary)
            progress.summary(result.summary)
        finally:
            progress.stop()
    return result


@dataclass
class _Run:
    """The objects of a run between two epochs; holds state, decides nothing."""

    model: nn.Module
    optimizer: Optimizer
    method: GrowthMethod
    average: AveragedModel | None
    scaler: torch.amp.GradScaler
    loaders: Loaders
    config: TrainingConfig
    task: Task
    device: torch.device
    folder: RunFolder
    identity: Mapping[str, Any]
    guard: InterruptGuard
    progress: Progress
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated: the averaged one, if there is one."""
        return self.model if self.average is None else self.average.module

    def one_epoch(self) -> None:
        """Trains, evaluates, restructures and saves."""
        epoch = len(self.history) + 1
        stats = self._train(epoch)
        due = epoch % self.config.eval_every == 0 or epoch == self.config.epochs
        evaluation = self._evaluate(self.judged, self.loaders.evaluation, f"epoch {epoch}") if due else None
        started = time.perf_counter()
        record = dict(self.method.end_epoch())
        apply_memory_format_(self.model, self.config)
        seconds = time.perf_counter() - started + stats.restructure_seconds
        record = _epoch_record(epoch, record, stats, evaluation, self.optimizer, seconds)
        record["peak_memory_mib"] = peak_memory_mib(self.device)
        self.history.append(record)
        self.save()
        self.progress.epoch(record)
        self._stop_if_asked(f"after epoch {epoch}")

    def _train(self, epoch: int) -> EpochStats:
        steps, epochs = len(self.loaders.train), self.config.epochs

        def before_step(step: int) -> None:
            set_lr_(self.optimizer, lr_factor(epoch - 1 + step / steps, epochs, self.config.schedule))

        def end_step() -> None:
            assert isinstance(self.method, StepwiseMethod)
            if isinstance(self.task, StreamTask):
                self.task.state = self.method.end_step(self.task.state)
            else:
                self.method.end_step()
            apply_memory_format_(self.model, self.config)

        def after_step(step: int) -> None:
            self.progress.step(epoch, step, steps)
            self._stop_if_asked(f"in epoch {epoch}, after step {step} of {steps}")

        return train_one_epoch(
            self.model,
            self.loaders.train,
            self.optimizer,
            self.config,
            self.device,
            task=self.task,
            scaler=self.scaler,
            average=self.average,
            before_step=before_step,
            end_step=end_step if isinstance(self.method, StepwiseMethod) else None,
            after_step=after_step,
            where=f"in epoch {epoch}",
        )

    def _evaluate(self, model: nn.Module, loader: Loader, when: str) -> EvalStats:
        def after_batch() -> None:
            self._stop_if_asked(f"while evaluating {when}")

        return evaluate(model, loader, self.config, self.device, task=self.task, after_batch=after_batch)

    def _stop_if_asked(self, where: str) -> None:
        if self.guard.requested:
            done = len(self.history)
            raise Interrupted(
                f"stopped by {self.guard.requested} {where}. {self.folder.path / 'checkpoint.pt'} holds the run after "
                f"{done} of {self.config.epochs} epochs; resumed, it goes on with the beginning of epoch {done + 1}"
                if done < self.config.epochs
                else f"stopped by {self.guard.requested} {where}. All epochs are done; resume to write the final files",
                self.guard.requested,
            )

    def save(self) -> None:
        """Writes the checkpoint, then the history that belongs to it."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.loaders.train.state_dict(),
            "random": random_state(),
            "history": self.history,
        }
        save_checkpoint(self.folder.path, Checkpoint(len(self.history), self.identity, state))
        self.folder.write_history(self.history)

    def restore(self) -> bool:
        """Goes back to the checkpoint. False if the run was killed before it wrote its first one."""
        if not has_checkpoint(self.folder.path):
            if not (self.folder.path / "config.json").exists():
                raise CheckpointError(
                    f"nothing to resume in {self.folder.path}: it has neither checkpoint.pt nor config.json. Give the "
                    "folder of an earlier run, or start a new one."
                )
            self.progress.message("the run was stopped before its first checkpoint; it starts from the beginning")
            return False
        state = load_checkpoint(self.folder.path, self.identity, self.progress.message).state
        self.method.load_state_dict(state["method"])  # restructures, so that everything below fits
        apply_memory_format_(self.model, self.config)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state["scaler"])
        self.loaders.train.load_state_dict(state["loader"])
        self.history = [dict(record) for record in state["history"]]
        self.folder.write_history(self.history)
        self.progress.message(f"resumed after epoch {len(self.history)} of {self.config.epochs}")
        set_random_state(state["random"])
        return True

    def finish(self, content: Mapping[str, Any]) -> TrainingResult:
        """Makes the model final and tests it."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.method.finish()
        test = self._evaluate(self.model, self.loaders.test or self.loaders.evaluation, "the final model")
        last = self.history[-1]
        num_params = sum(p.numel() for p in self.model.parameters())
        if last.get("num_params") not in (None, num_params):
            self.progress.message(
                f"the final model has {num_params} parameters, the one of the last epoch had {last['num_params']}: "
                "end_epoch() or finish() changed it after the last step, so the MACs reported are not quite its own"
            )
        held_out = {} if self.loaders.test is None else {name: last.get(f"eval_{name}") for name in test.metrics}
        summary = {
            **prefixed("test", test.metrics),
            **prefixed("valid", held_out),
            "test_loss": test.loss,
            "test_samples": test.samples,
            "macs": last.get("macs"),
            "macs_fraction": last.get("macs_fraction"),
            "num_params": num_params,
            "params_fraction": last.get("params_fraction"),
            **training_costs(self.history),
            "epochs": len(self.history),
            "seed": self.config.seed,
            "method": content.get("method"),
            "recipe": content.get("recipe"),
            "device": describe_device(self.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        return TrainingResult(self.model, self.method, self.history, plain(summary), self.folder.path)


def _claim(folder: RunFolder, resume: bool, overwrite: bool) -> None:
    if resume or not folder.holds_run():
        return
    if not overwrite:
        raise CheckpointError(
            f"{folder.path} already holds a run. Resume it (resume=True), choose another folder, or remove it "
            "(overwrite=True)."
        )
    folder.clear()


def _identity(content: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in plain(content).items() if key not in NOT_IDENTITY}
    kept["training"] = {key: value for key, value in kept["training"].items() if key not in NOT_IDENTITY}
    return kept


def _start(
    model: nn.Module,
    factory: MethodFactory | None,
    loaders: Loaders,
    config: TrainingConfig,
    task: Task,
    folder: RunFolder,
    identity: Mapping[str, Any],
    guard: InterruptGuard,
    progress: Progress,
) -> _Run:
    device = resolve_device(config.device)
    model.to(device)
    apply_memory_format_(model, config)
    optimizer = build_optimizer(model, config.optimizer)
    average = None
    if config.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    copies = [] if average is None else [average]
    method = PlainMethod(model) if factory is None else factory(model, optimizer, copies)
    apply_memory_format_(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
    return _Run(
        model, optimizer, method, average, scaler, loaders, config, task, device, folder, identity, guard, progress
    )


def _epoch_record(
    epoch: int,
    network: Mapping[str, Any],
    stats: EpochStats,
    evaluation: EvalStats | None,
    optimizer: Optimizer,
    restructure_seconds: float,
) -> dict[str, Any]:
    """A line of the history: the loop's own numbers, then those of the method, which may not replace them."""
    own = {
        "epoch": epoch,
        "lr": optimizer.param_groups[0]["lr"],
        "train_loss": stats.loss,
        **prefixed("train", stats.metrics),
        "samples": stats.samples,
        "steps": stats.steps,
        "step_seconds": stats.step_seconds,
        "data_seconds": stats.data_seconds,
        "eval_loss": None if evaluation is None else evaluation.loss,
        **(dict.fromkeys(f"eval_{name}" for name in stats.metrics) if evaluation is None else {}),
        **prefixed("eval", {} if evaluation is None else evaluation.metrics),
        "eval_seconds": 0.0 if evaluation is None else evaluation.seconds,
        "restructure_seconds": restructure_seconds,
        "train_macs": epoch_train_macs(network.get("mean_macs") or network.get("macs"), stats.samples),
    }
    record: dict[str, Any] = plain({**own, **{key: value for key, value in network.items() if key not in own}})
    return record


def describe_device(device: torch.device) -> str:
    """The device in words, for tables."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} ({device})"
    return f"{device.type} ({platform.processor() or platform.machine()})"


def versions() -> dict[str, str]:
    """Versions that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        apical = version("apical")
    except PackageNotFoundError:
        apical = "unknown"
    return {"apical": apical, "torch": torch.__version__, "python": platform.python_version()}
