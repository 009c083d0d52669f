"""A whole run: epochs, restructuring between them, evaluation, checkpoints, the run folder."""

from __future__ import annotations

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
from apical.training._accounting import training_costs
from apical.training._amp import settle_amp
from apical.training._batch import BatchGrowth, lr_scale
from apical.training._checkpoint import CURRENT, Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from apical.training._config import TrainingConfig, resolve_device
from apical.training._describe import describe_device, versions
from apical.training._doubts import doubts
from apical.training._epoch import EpochStats, EvalStats, Partial, apply_memory_format_, evaluate, train_one_epoch
from apical.training._identity import check_same_run, run_identity
from apical.training._interrupt import Interrupted, InterruptGuard, what_is_kept
from apical.training._memory import peak_memory_mib
from apical.training._optimizer import build_optimizer, lr_factor, set_lr_
from apical.training._parallel import Replica, process_seed, refuse_unshared
from apical.training._processes import Processes, any_of_all, first_before_others, process_group
from apical.training._progress import PacedProgress, Progress, SilentProgress, make_progress
from apical.training._protocols import FreezingMethod, GrowthMethod, Loader, MethodFactory, PlainMethod, StepwiseMethod
from apical.training._random import deterministic_algorithms, random_state, seed_everything, set_random_state
from apical.training._restore import history_of, load_optimizer_, load_weights_, partial_of
from apical.training._results import Loaders, TrainingResult, epoch_record
from apical.training._run_folder import RunFolder, plain
from apical.training._task import Classification, StreamTask, Task, prefixed, task_facts
from apical.training._watch import watched

__all__ = ["train"]

STEPS_PER_QUESTION = 10  # several processes ask each other so often whether a signal came


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
    A run that is stopped by SIGTERM or SIGINT writes a checkpoint first, after the running step if the training loader
    `resumes_within_epoch`.

    Started by torchrun, all processes train together: the model is wrapped for the training step and wrapped again
    after each restructuring, the first process writes, and the folder must be one that all of them see.

    Args:
        model: the full-size model, freshly built; it is moved to the device and restructured in place.
        method: builds the growth method from (model, optimizer, copies); None trains the model as it is.
        loaders: the data.
        config: how to train.
        folder: the run folder; receives config.json, history.jsonl, checkpoint.pt and summary.json.
        task: loss and metrics; classification if None.
        run_config: the rest of the run's configuration (`recipe`, `method`, ...), kept in config.json and compared on
            resume, except for where and how verbosely it runs; see `run_identity`.
        resume: go on from the folder's checkpoint.
        overwrite: remove an earlier run from the folder first.
        progress: what people see; `make_progress()` if None.
        on_finish: called with the result before summary.json is written, to add files such as the final weights.

    Returns:
        The result; `model` in it is the object that was passed.

    Raises:
        TrainingError: a loss is not finite, and the checkpoint of the epoch's beginning is kept; or processes that
            train together were given other settings or data.
        ProcessLostError: another process no longer answers.
        CheckpointError: the folder holds another run, cannot be written, or has no usable checkpoint to resume from.
        Interrupted: SIGINT or SIGTERM; resume later. The process should exit with `Interrupted.exit_code`.
    """
    task = task or Classification(config.label_smoothing)
    with (
        process_group(resolve_device(config.device), config.process_timeout_s) as team,
        watched(team),
        RunFolder(Path(folder), team.first) as run_folder,
        deterministic_algorithms(config.deterministic),
        InterruptGuard() as guard,
    ):
        refuse_unshared({"training": loaders.train}, team)
        asked = run_identity(_content(config, run_config, task), loaders.contents())
        check_same_run({**asked, "resume": resume, "overwrite": overwrite})
        with first_before_others(team):
            _claim(run_folder, resume, overwrite, team)
        progress = (progress or make_progress()) if team.first else SilentProgress()
        config, chosen = settle_amp(config, model, task, loaders.train, (run_folder.path,) if resume else ())
        if chosen:
            progress.message(chosen)
        content = _content(config, run_config, task)
        identity = run_identity(content, loaders.contents())
        seed_everything(config.seed)
        run = _start(model, method, loaders, config, task, run_folder, identity, guard, progress)
        with first_before_others(team):  # it may set a torn checkpoint aside
            resumed = resume and run.restore()
        if not resumed:
            for doubt in doubts(config, len(loaders.train)):
                progress.message(doubt)
            run_folder.write_json("config.json", {**content, "versions": versions()})
            run.save()
        run.replica.refresh("at the start")
        progress.start(config.epochs, str(run_folder.path), task.metrics[0])
        try:
            while len(run.history) < config.epochs:
                run.one_epoch()
            result = run.finish(content)
            if on_finish is not None and team.first:
                on_finish(result)
            run_folder.write_json("summary.json", result.summary)
            progress.summary(result.summary)
        finally:
            progress.stop()
    return result


def _content(config: TrainingConfig, run_config: Mapping[str, Any] | None, task: Task) -> dict[str, Any]:
    """All that config.json says, but for versions."""
    return {"training": config.to_mapping(), **(run_config or {}), "metrics": task_facts(task)["metrics"]}


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
    replica: Replica
    batch: BatchGrowth
    history: list[dict[str, Any]] = field(default_factory=list)
    begun: Partial | None = None  # of the running epoch, if the checkpoint lies within it
    _partial: Callable[[], Partial] | None = None

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated: the averaged one, if there is one."""
        return self.model if self.average is None else self.average.module

    def one_epoch(self) -> None:
        """Trains, evaluates, restructures and saves."""
        epoch = len(self.history) + 1
        if self.begun is None:
            self.batch.begin_epoch()
        stats = self._train(epoch)
        self.replica.share_statistics_(self.average)
        due = epoch % self.config.eval_every == 0 or epoch == self.config.epochs
        evaluation = self._evaluate(self.judged, self.loaders.evaluation, f"epoch {epoch}") if due else None
        started = time.perf_counter()
        record = dict(self.method.end_epoch())
        apply_memory_format_(self.model, self.config)
        self.replica.refresh(f"after epoch {epoch}")
        seconds = time.perf_counter() - started + stats.restructure_seconds
        record = epoch_record(epoch, record, stats, evaluation, self.optimizer, seconds)
        if self.config.batch_growth > 1:
            record["batch_size"] = self.batch.factor * self.config.batch_size
        if self.config.compile:
            record |= {"compilations": stats.compilations, "compile_seconds": stats.compile_seconds}
        record["peak_memory_mib"] = peak_memory_mib(self.device)
        self.history.append(record)
        self.save()
        self.progress.epoch(record)
        if self._asked():
            self._stop(f"after epoch {epoch}")

    def _train(self, epoch: int) -> EpochStats:
        steps, epochs = len(self.loaders.train), self.config.epochs
        larger = lr_scale(self.batch.factor, self.config.batch_growth_lr)
        self._compile_if_due()
        seed = process_seed(self.config.seed, epoch, self.replica.team)
        if seed is not None:
            seed_everything(seed if self.begun is None else seed + self.begun.steps)
        if isinstance(self.progress, PacedProgress):
            self.progress.pace(self.batch.factor * self.config.batch_size, getattr(self.task, "unit", "samples"))
        begun, self.begun = self.begun, None
        self._partial = None if begun is None else lambda: begun  # until a step is done
        loader = self.loaders.train if begun is None or begun.steps < steps else ()  # only evaluation was left
        held = list(self.model.parameters())  # all in the memory format that is asked for

        def before_step(step: int) -> None:
            set_lr_(self.optimizer, larger * lr_factor(epoch - 1 + step / steps, epochs, self.config.schedule))

        def end_step() -> None:
            assert isinstance(self.method, StepwiseMethod)
            if isinstance(self.task, StreamTask):
                self.task.state = self.method.end_step(self.task.state)
            else:
                self.method.end_step()
            now = list(self.model.parameters())
            if len(now) != len(held) or any(a is not b for a, b in zip(now, held, strict=True)):
                apply_memory_format_(self.model, self.config)
                held[:] = self.model.parameters()
            self.replica.refresh(f"in epoch {epoch}", if_changed=True)
            self._compile_if_due()

        def after_step(step: int) -> None:
            self.progress.step(epoch, step, steps)

        def stop_after(step: int, partial: Callable[[], Partial]) -> None:
            self._partial = partial
            if step == steps or not self._asked(step % STEPS_PER_QUESTION == 0):
                return  # after the last step, evaluation asks
            if getattr(self.loaders.train, "resumes_within_epoch", False):
                self._save_within()
            self._stop(f"in epoch {epoch}, after step {step} of {steps}")

        return train_one_epoch(
            self.model,
            loader,
            self.optimizer,
            self.config,
            self.device,
            task=self.task,
            scaler=self.scaler,
            average=self.average,
            replica=self.replica,
            begun=begun,
            before_step=before_step,
            end_step=end_step if isinstance(self.method, StepwiseMethod) else None,
            after_step=after_step,
            stop_after=stop_after,
            where=f"in epoch {epoch}",
        )

    def _compile_if_due(self) -> None:
        changing = isinstance(self.method, FreezingMethod) and not self.method.frozen
        self.replica.set_compiled(self.config.compile is True or (self.config.compile == "final" and not changing))

    def _evaluate(self, model: nn.Module, loader: Loader, when: str) -> EvalStats:
        before = random_state()  # a loader may draw from it, and does so again if the run is resumed here

        def after_batch() -> None:
            if self.replica.team.count == 1 and self._asked():  # several may have different numbers of batches
                if len(self.history) < self.config.epochs:
                    set_random_state(before)
                    self._save_within()
                self._stop(f"while evaluating {when}")

        return evaluate(model, loader, self.config, self.device, task=self.task, after_batch=after_batch)

    def _asked(self, due: bool = True) -> bool:
        """Whether a signal came. Several processes ask each other, together, when it is due."""
        came = self.guard.requested is not None
        return came if self.replica.team.count == 1 else due and bool(any_of_all(int(came)))

    def _save_within(self) -> None:
        """A checkpoint within an epoch."""
        assert self._partial is not None
        self.begun = self._partial()
        self.save()

    def _stop(self, where: str) -> None:
        name = self.guard.requested or "a signal to another process"
        rest = what_is_kept(self.folder.path / CURRENT, len(self.history), self.config.epochs, self.begun is not None)
        raise Interrupted(f"stopped by {name} {where}. {rest}", name)

    def save(self) -> None:
        """Writes the checkpoint, then the history that belongs to it."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
            "batch_factor": self.batch.factor,
            "loader": self.loaders.train.state_dict(),
            "random": random_state(),
            "history": self.history,
            "begun": None if self.begun is None else vars(self.begun),
        }
        if self.replica.team.first:
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
        found = load_checkpoint(self.folder.path, self.identity, self.progress.message)
        try:
            self._take_up(found.state, found.epoch)
        except Exception as error:  # a checkpoint's inner parts can be wrong in as many ways as there are methods
            raise CheckpointError(
                f"the checkpoint in {self.folder.path} does not fit this run: {type(error).__name__}: {error}. It was "
                "changed, or written by other versions (config.json names them). Start the run anew."
            ) from error
        if len(self.history) == self.config.epochs and (self.folder.path / "summary.json").exists():
            self.progress.message(
                f"this run had finished, all {self.config.epochs} epochs are done: nothing is left to train, its final "
                "network is tested and written anew. For a longer training start a new run."
            )
            return True
        done = f"epoch {len(self.history)} of {self.config.epochs}"
        within = "" if self.begun is None else f" and {self.begun.steps} steps"
        self.progress.message(f"resumed after {done}{within}")
        return True

    def _take_up(self, state: Mapping[str, Any], epochs: int) -> None:
        self.method.load_state_dict(state["method"])  # restructures, so that everything below fits
        apply_memory_format_(self.model, self.config)
        load_weights_(self.model, state["model"], "the model")
        load_optimizer_(self.optimizer, state["optimizer"])
        if self.average is not None:
            load_weights_(self.average, state["average"], "the moving average")
        self.scaler.load_state_dict(state["scaler"])
        self.batch.set(state["batch_factor"])  # of the running epoch; the loader counts in its batches
        self.loaders.train.load_state_dict(state["loader"])
        self.history = history_of(state["history"], epochs)
        self.begun = partial_of(state["begun"], len(self.loaders.train))
        self.folder.write_history(self.history)
        set_random_state(state["random"])

    def finish(self, content: Mapping[str, Any]) -> TrainingResult:
        """Makes the model final and tests it."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.method.finish()
        self.replica.finish()
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
            "processes": self.replica.team.count,
            "threads": torch.get_num_threads(),
            "versions": versions(),
        }
        return TrainingResult(self.model, self.method, self.history, plain(summary), self.folder.path)


def _claim(folder: RunFolder, resume: bool, overwrite: bool, team: Processes) -> None:
    if resume or not team.first or not folder.holds_run():
        return
    if not overwrite:
        raise CheckpointError(
            f"{folder.path} already holds a run. Resume it (resume=True), choose another folder, or remove it "
            "(overwrite=True)."
        )
    folder.clear()


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
    replica = Replica(model, device, config.sync_batchnorm, config.compile_mode)
    optimizer = build_optimizer(model, config.optimizer)
    average = None
    if config.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    copies = [] if average is None else [average]
    method = PlainMethod(model) if factory is None else factory(model, optimizer, copies)
    apply_memory_format_(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
    batch = BatchGrowth(method, loaders.train, config.batch_growth)
    return _Run(model, optimizer, method, average, scaler, loaders, config, task, device, folder, identity, guard,
                progress, replica, batch)  # fmt: skip
