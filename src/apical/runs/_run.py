"""A recipe's run: model, data, optimizer, method and loop together, and the run folder that they leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from apical.errors import ConfigError
from apical.export import save
from apical.recipes import Prepared, RunConfig
from apical.recipes._settings import reproducing_command
from apical.recipes._task_kind import task_kind
from apical.reporting import write_report
from apical.runs._divisor import settle_divisor
from apical.runs._live import LoggedProgress, LoggerFactory
from apical.runs._methods import method_named, sharding_methods
from apical.runs._sharding import PARTS, refuse_unshardable
from apical.runs._stored import require_trusted
from apical.runs._template import layer_facts, template_facts
from apical.runs._weights import load_initial_weights_
from apical.structure import Structure
from apical.training import GrowthMethod, Progress, TrainingResult, make_progress, processes, seed_everything, train
from apical.training._amp import settle_amp
from apical.training._checkpoint import has_checkpoint
from apical.training._config import resolve_device
from apical.training._identity import check_same_run, run_identity
from apical.training._processes import process_group
from apical.training._run_folder import refuse_lost, write_text, writing


def run(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    loggers: Sequence[LoggerFactory] = (),
    trust_code: bool = False,
) -> TrainingResult:
    """Do a run and leave its folder: config.json, history.jsonl, checkpoint.pt, architecture.json, model.safetensors,
    summary.json, report.html.

    Started by torchrun, all processes do the run together.

    Args:
        config: what to do.
        out: the run folder.
        resume: go on from the folder's checkpoint; the config must be that of the folder (data folder and device may
            differ).
        overwrite: remove an earlier run from the folder when the new one starts.
        progress: what people see; a table on a terminal, plain lines elsewhere, if None.
        loggers: where the numbers go besides; see `logger_factory`.
        trust_code: with `resume`, whether the callable that builds the model may be called if it is neither apical's,
            torchvision's nor timm's: a config that was read from the folder decides what it is.

    Returns:
        The final model, the history and the summary.

    Raises:
        ConfigError: model and data do not fit, an option cannot work, or a resumed run names code that is not trusted.
        DataError: the data is missing or damaged.
        BudgetError: no network that can be grown meets the budget; raised before training.
        CheckpointError: the folder holds another run, or nothing to resume.
        TrainingError: the loss is no longer finite; the last good checkpoint is kept.
        Interrupted: a signal came; resume later.

    Example:
        >>> import tempfile
        >>> from apical.recipes import apply_settings, get_recipe
        >>> from apical.training import make_progress
        >>> tiny = ["data.path=synthetic", "limit=32", "batch_size=16", "epochs=1", "model.depth=8", "method=dense"]
        >>> config = apply_settings(get_recipe("digits"), tiny)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run(config, folder, progress=make_progress("quiet"))
        >>> result.summary["macs_fraction"]
        1.0
    """
    if resume:
        require_trusted(config, trust_code, str(Path(out) / "config.json"))
    config = method_named(config.method).resolve(config)
    if config.training.shard:
        refuse_unshardable(config.method, sharding_methods(), processes())
    with process_group(resolve_device(config.training.device), config.training.process_timeout_s) as team:
        check_same_run(run_identity(config.to_mapping()))  # the data follow, when they are read
        result = _run(config, out, resume, overwrite, progress, loggers if team.first else ())
        if team.first:
            write_report(result.folder)
    return result


def _run(
    config: RunConfig,
    out: str | Path,
    resume: bool,
    overwrite: bool,
    progress: Progress | None,
    loggers: Sequence[LoggerFactory],
) -> TrainingResult:
    if resume:
        refuse_lost(Path(out))
    device = resolve_device(config.training.device)
    kind = task_kind(config.task)
    # data, then the seed, then the model, so that its weights do not depend on what reading the data drew
    data = kind.prepare(config.data, config.training)
    seed_everything(config.training.seed)
    model = kind.template(config.model, data.facts)
    progress = progress or make_progress()
    for remark in data.remarks if processes().first else ():
        progress.message(remark)
    if config.model.initial_weights is not None and not (resume and has_checkpoint(Path(out))):  # which holds them all
        classes = len(data.facts["classes"]) if "classes" in data.facts else None
        with _needed_again(out, resume):
            notes = load_initial_weights_(model, config.model.initial_weights, classes)
        for note in notes if processes().first else ():
            progress.message(note)
    # what is left to a measurement on this machine, or what the resumed run measured
    earlier = (Path(out),) if resume else ()
    training, faster = settle_amp(config.training, model, data.task, data.loaders.train, earlier)
    config, divisor = settle_divisor(dataclasses.replace(config, training=training), data, model, earlier)
    for chosen in (faster, divisor):
        if chosen and processes().first:
            progress.message(chosen)
    content = {name: value for name, value in config.to_mapping().items() if name != "training"}

    # the method is made by the loop, which knows the optimizer; loggers look at the same objects
    live = LoggedProgress(progress, loggers, content)
    build = method_named(config.method).assemble(config, kind.example(data.facts, device), len(data.loaders.train))

    def watched(model: nn.Module, optimizer: Optimizer, copies: Sequence[nn.Module]) -> GrowthMethod:
        method = build(model, optimizer, copies)
        live.watch(model, method)
        latency = getattr(method, "latency", None)
        if latency is not None and not resume and processes().first:  # a resumed run goes by what it measured before
            progress.message(f"the full model takes {latency.predict_ms():.3g} ms: {latency.measurement}")
        return method

    def write_files(result: TrainingResult) -> None:
        quantized = getattr(result.method, "quantized", None)
        save(result.model, result.folder, quantized=quantized)
        if quantized:
            result.summary["weights_bytes"] = (result.folder / "model.safetensors").stat().st_size
        for name, text in data.files.items():
            write_text(result.folder / name, text)
        if data.illustrate is not None:
            with writing(result.folder):
                data.illustrate(result.model, result.folder)
        result.summary.update(_facts(config, data, result))

    return train(
        model,
        watched,
        data.loaders,
        config.training,
        out,
        task=data.task,
        run_config={**content, "input": dict(data.facts)},
        resume=resume,
        overwrite=overwrite,
        progress=live,
        on_finish=write_files,
        parts=PARTS if config.training.shard else None,
    )


@contextmanager
def _needed_again(out: str | Path, resume: bool) -> Iterator[None]:
    """Weights that cannot be loaded are said to be needed because a resumed run begins with them again."""
    try:
        yield
    except ConfigError as error:
        if not resume:
            raise
        raise ConfigError(
            f"{error}. The run in {out} was stopped before its first checkpoint, so it begins with these weights "
            "again: put them back, or start a new run."
        ) from error


def _facts(config: RunConfig, data: Prepared, result: TrainingResult) -> dict[str, Any]:
    """What the summary says beyond the loop's own numbers."""
    facts: dict[str, Any] = {"budget": config.budget, "task": config.task, "data": config.data.path, **data.notes}
    facts["divisor"] = config.growth.divisor
    facts["command"] = reproducing_command(config, result.folder)
    last = result.history[-1]
    facts |= {name: last[name] for name in ("widths", "blocks", "skipped") if name in last}
    structure, template = getattr(result.method, "structure", None), template_facts(result.method)
    if isinstance(structure, Structure):
        layers = layer_facts(structure, result.model, last.get("widths") or {}, last.get("skipped") or ())
        facts["template"] = {**template, "layers": layers}
    return facts
