"""A whole run: epochs, restructuring between them, evaluation, checkpoints, the run folder. The steps: `_loop.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apical.errors import CheckpointError, ConfigError
from apical.training._amp import first_batch, settle_amp
from apical.training._checkpoint import CURRENT, Checkpoint, has_checkpoint, load_checkpoint, save_checkpoint
from apical.training._config import TrainingConfig, resolve_device
from apical.training._identity import check_same_run, run_identity
from apical.training._interrupt import Interrupted, InterruptGuard, what_is_kept
from apical.training._learner import Learner, autocast, prepare_learner
from apical.training._loop import evaluate, train_steps
from apical.training._optimizer import doubts
from apical.training._own_state import (
    can_be_kept,
    deterministic_algorithms,
    hand_on_,
    own_of,
    own_states,
    random_state,
    seed_everything,
    set_random_state,
    stream_of,
)
from apical.training._parallel import process_seed, refuse_unshared
from apical.training._parts import Parts, PartsIO
from apical.training._processes import first_before_others, process_group, watched
from apical.training._progress import PacedProgress, Progress, SilentProgress, make_progress
from apical.training._protocols import Loader, MethodFactory
from apical.training._restore import history_of, partial_of
from apical.training._results import Loaders, TrainingResult, history_record, peak_memory_mib, run_summary, versions
from apical.training._run_folder import RunFolder, refuse_lost
from apical.training._tally import EvalStats, Partial, Tally
from apical.training._task import Classification, Task, task_facts

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
    parts: PartsIO | None = None,
) -> TrainingResult:
    """Train a model while `method` restructures it, and leave a run folder.

    After every epoch: evaluate, `method.end_epoch()`, checkpoint, history. A run that is killed at any moment and
    resumed repeats the running epoch from its beginning and ends, on a CPU, bit for bit as if it had not been killed.
    A run that is stopped by SIGTERM or SIGINT writes a checkpoint first, after the running step if the training loader
    `resumes_within_epoch`, and goes on there, bit for bit on a CPU as well if the number of processes is the same.

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
        overwrite: remove an earlier run from the folder when the new one starts.
        progress: what people see; `make_progress()` if None.
        on_finish: called with the result before summary.json is written, to add files such as the final weights.
        parts: with ``config.shard``, how a model that the method divides among the processes is saved and loaded.

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
    if config.shard != (parts is not None):
        raise ConfigError(
            f"training.shard={config.shard}, but parts={parts!r:.40}: a model that is divided among processes needs "
            "both, another one neither"
        )
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
            if not (resume or overwrite):
                run_folder.refuse_run()
        progress = (progress or make_progress()) if team.first else SilentProgress()
        config, chosen = settle_amp(config, model, task, loaders.train, (run_folder.path,) if resume else ())
        if chosen:
            progress.message(chosen)
        content = _content(config, run_config, task)
        seed_everything(config.seed)
        learner = prepare_learner(model, method, config, task)
        if learner.config.channels_last != config.channels_last:
            progress.message(
                "channels_last=true is left out: torch's backward pass of narrow 1x1 convolutions with a stride "
                "damages memory in that order on this processor"
            )
        kept = None if parts is None else Parts(run_folder.path, team, parts)
        run = _Run(learner, loaders, run_folder, run_identity(content, loaders.contents()), guard, progress, kept)
        run.begin(content, resume)
        progress.start(config.epochs, str(run_folder.path), task.metrics[0])
        try:
            while len(run.history) < config.epochs:
                run.one_epoch()
            return run.finish(content, on_finish if team.first else None)
        finally:
            progress.stop()


def _content(config: TrainingConfig, run_config: Mapping[str, Any] | None, task: Task) -> dict[str, Any]:
    """All that config.json says, but for versions."""
    return {"training": config.to_mapping(), **(run_config or {}), "metrics": task_facts(task)["metrics"]}


@dataclass
class _Run:
    """A run: what learns, from which data, where it is kept, and what has been done."""

    learner: Learner
    loaders: Loaders
    folder: RunFolder
    identity: Mapping[str, Any]
    guard: InterruptGuard
    progress: Progress
    parts: Parts | None  # where a divided model is kept; None if each process holds it whole
    history: list[dict[str, Any]] = field(default_factory=list)  # a record of each epoch that is done
    begun: Partial | None = None  # of the running epoch, what was done before this process took it up
    own: Mapping[str, Any] | None = None  # what this process alone had then; None if it is not known
    tally: Tally | None = None  # of the running epoch, what is done by now

    def begin(self, content: Mapping[str, Any], resume: bool) -> None:
        """Take up the folder's checkpoint, or write the first one; all processes do so together."""
        learner, progress = self.learner, self.progress
        with first_before_others(learner.replica.team):  # it may set a torn checkpoint aside
            found = self.find() if resume else None
            if not resume:
                self.folder.clear()  # nothing can be refused any more, so an earlier run may go
        if found is not None:
            self.take_up(found)
            if not self.folder.has_config():  # it was lost, and these settings are those of the checkpoint
                self._write_config(content)
        else:
            for doubt in doubts(learner.config, len(self.loaders.train)):
                progress.message(doubt)
            self._write_config(content)
            self.save()
        learner.replica.refresh("at the start")

    def _write_config(self, content: Mapping[str, Any]) -> None:
        self.folder.write_json("config.json", {**content, "versions": versions()})

    def one_epoch(self) -> None:
        """Train, evaluate, restructure and save."""
        learner, loader, config = self.learner, self.loaders.train, self.learner.config
        epoch, steps = len(self.history) + 1, len(loader)
        tally, stream = self._begin_epoch(epoch)
        batches = loader if tally.steps < steps else ()  # of an epoch of which only evaluation was left
        for step in train_steps(learner, batches, tally, epoch, stream):
            with tally.restructuring():
                learner.end_step(f"in epoch {epoch}")
            self.progress.step(epoch, step, steps)
            if step < steps and self.guard.came(learner.replica.team, step % STEPS_PER_QUESTION == 0):
                if getattr(loader, "resumes_within_epoch", False) and can_be_kept(learner.task):
                    self._save_within_epoch(stream_of(learner.task))
                self._leave(f"in epoch {epoch}, after step {step} of {steps}")
        stats = tally.stats(learner.task)
        learner.replica.share_statistics_(learner.average)
        due = epoch % config.eval_every == 0 or epoch == config.epochs
        evaluation = self._evaluate(learner.judged, self.loaders.evaluation, f"epoch {epoch}") if due else None
        started = time.perf_counter()
        network = learner.end_epoch(f"after epoch {epoch}")
        seconds = time.perf_counter() - started + stats.restructure_seconds
        record = history_record(epoch, network, stats, evaluation, learner.optimizer, seconds)
        if config.compile:
            record |= {"compilations": stats.compilations, "compile_seconds": stats.compile_seconds}
        record["peak_memory_mib"] = peak_memory_mib(learner.device)
        self.history.append(record)
        self.save()
        self.progress.epoch(record)
        if self.guard.came(learner.replica.team):
            self._leave(f"after epoch {epoch}")

    def _begin_epoch(self, epoch: int) -> tuple[Tally, Any]:
        """Seed the epoch, or what is left of it, and begin its tally; with it what the first batch goes on with."""
        config, team = self.learner.config, self.learner.replica.team
        self.learner.compile_if_final()
        seed, own = process_seed(config.seed, epoch, team), self.own
        if own is None and seed is not None:
            seed_everything(seed if self.begun is None else seed + self.begun.steps)
        if isinstance(self.progress, PacedProgress):
            self.progress.pace(config.batch_size, getattr(self.learner.task, "unit", "samples"))
        self.tally = Tally(self.learner.device, f"in epoch {epoch}", self.begun)
        self.begun = self.own = None
        return self.tally, None if own is None else own["stream"]

    def _evaluate(self, model: nn.Module, loader: Loader, when: str) -> EvalStats:
        """Judge a model. One process alone may be stopped after each batch; several may have more or fewer."""
        learner = self.learner
        batches = self._until_signal(loader, when) if learner.replica.team.count == 1 else loader
        config = learner.config
        divided = config.shard and len(self.history) < config.epochs  # afterwards it is whole
        return evaluate(model, batches, config, learner.device, task=learner.task, divided=divided)

    def _until_signal(self, loader: Loader, when: str) -> Iterator[tuple[Tensor, Tensor]]:
        before = random_state()  # a loader may draw from it, and does so again if the run is resumed here
        for batch in loader:
            yield batch
            if self.guard.came(self.learner.replica.team):
                if len(self.history) < self.learner.config.epochs:
                    set_random_state(before)
                    self._save_within_epoch(None)
                self._leave(f"while evaluating {when}")

    def _save_within_epoch(self, stream: Any) -> None:
        assert self.tally is not None
        self.begun = self.tally.partial()
        self.save(own_states(stream))

    def _leave(self, where: str) -> None:
        name = self.guard.requested or "a signal to another process"
        epochs, within = self.learner.config.epochs, self.begun is not None
        rest = what_is_kept(self.folder.path / CURRENT, len(self.history), epochs, within)
        raise Interrupted(f"stopped by {name} {where}. {rest}", name)

    def save(self, own: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Write the checkpoint, with what each process has within an epoch, then the history that belongs to it."""
        learner, parts = self.learner, self.parts
        name = None if parts is None else parts.save(learner.method, learner.optimizer)
        state = {
            **(learner.state_dict() if name is None else {"parts": name}),
            "loader": self.loaders.train.state_dict(),
            "random": random_state(),
            "history": self.history,
            "begun": None if self.begun is None else vars(self.begun),
            "own": own,
        }
        if self.learner.replica.team.first:
            save_checkpoint(self.folder.path, Checkpoint(len(self.history), self.identity, state))
        if parts is not None and name is not None:
            parts.keep(name)
        self.folder.write_history(self.history)

    def find(self) -> Checkpoint | None:
        """The checkpoint to go on from. None if the run was killed before it wrote its first one."""
        path = self.folder.path
        if not has_checkpoint(path):
            refuse_lost(path)
            self.progress.message("the run was stopped before its first checkpoint; it starts from the beginning")
            return None
        if self.parts is None or not self.learner.replica.team.first:  # which looked, and the others take what it takes
            return load_checkpoint(path, self.identity, self.progress.message)
        return load_checkpoint(path, self.identity, self.progress.message, self.parts.damage)

    def take_up(self, found: Checkpoint) -> None:
        """Go back to a checkpoint; all processes do so together."""
        path, epochs = self.folder.path, self.learner.config.epochs
        try:
            self._load(found.state, found.epoch)
        except Exception as error:  # a checkpoint's inner parts can be wrong in as many ways as there are methods
            raise CheckpointError(
                f"the checkpoint in {path} does not fit this run: {type(error).__name__}: {error}. It was changed, or "
                "written by other versions (config.json names them). Start the run anew."
            ) from error
        self.folder.write_history(self.history)
        if len(self.history) == epochs and (path / "summary.json").exists():
            self.progress.message(
                f"this run had finished, all {epochs} epochs are done: nothing is left to train, its final network is "
                "tested and written anew. For a longer training start a new run."
            )
        else:
            done = len(self.history)
            where = f"after epoch {done} of {epochs}"
            if self.begun is not None:
                where = f"within epoch {done + 1} of {epochs}, after step {self.begun.steps}"
            self.progress.message(f"resumed {where}")
            if self.begun is not None and self.own is None:
                self.progress.message(
                    "the rest of this epoch draws random numbers anew, and a text goes on without what was read "
                    "before: what each process had is not known, since they were others in number"
                )

    def _load(self, state: Mapping[str, Any], epochs: int) -> None:
        learner = self.learner
        if self.parts is None:
            learner.load_state_dict(state)
        else:
            self.parts.load(state["parts"], learner.method, learner.optimizer)
        self.loaders.train.load_state_dict(state["loader"])
        self.history = history_of(state["history"], epochs)
        self.begun = partial_of(state["begun"], len(self.loaders.train))
        self.own = own_of(state["own"], learner.replica.team)
        if self.own is not None and self.own["stream"] is not None:
            self._try(self.own["stream"])
        set_random_state(state["random"] if self.own is None else self.own["random"])

    @torch.no_grad()
    def _try(self, stream: Any) -> None:
        """Run the next batch behind a state, so that one which does not fit is refused here and not in a step."""
        learner = self.learner
        hand_on_(learner.task, stream, learner.device)
        batch = first_batch(self.loaders.train, learner.config, learner.device)
        with autocast(learner.config, learner.device):
            learner.task.batch(learner.model.eval(), *batch, training=False)

    def finish(self, content: Mapping[str, Any], on_finish: Callable[[TrainingResult], None] | None) -> TrainingResult:
        """Make the model final, test it, and write the summary."""
        learner, loaders = self.learner, self.loaders
        learner.finish()
        test = self._evaluate(learner.model, loaders.test or loaders.evaluation, "the final model")
        known, num_params = self.history[-1].get("num_params"), sum(p.numel() for p in learner.model.parameters())
        if known not in (None, num_params):
            self.progress.message(
                f"the final model has {num_params} parameters, the one of the last epoch had {known}: "
                "end_epoch() or finish() changed it after the last step, so the MACs reported are not quite its own"
            )
        summary = run_summary(self.history, test, loaders.test is not None, num_params, content, learner.device)
        result = TrainingResult(learner.model, learner.method, self.history, summary, self.folder.path)
        if on_finish is not None:
            on_finish(result)
        self.folder.write_json("summary.json", result.summary)
        self.progress.summary(result.summary)
        return result
