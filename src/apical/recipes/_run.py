"""A recipe's run: model, data, optimizer, method and loop together, and the run folder that they leave."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apical.errors import ConfigError
from apical.export import load, save
from apical.recipes._config import RunConfig
from apical.recipes._data import PreparedData, prepare_data
from apical.recipes._methods import method_factory
from apical.recipes._model import build_model, check_outputs
from apical.recipes._settings import reproducing_command
from apical.reporting import write_report
from apical.structure import Structure
from apical.training import Progress, TrainingResult, resolve_device, seed_everything, train


def run(
    config: RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Do a run and leave its folder: config.json, history.jsonl, checkpoint.pt, architecture.json, model.safetensors,
    summary.json, report.html.

    Args:
        config: what to do.
        out: the run folder.
        resume: go on from the folder's checkpoint; the config must be that of the folder (data folder and device may
            differ).
        overwrite: remove an earlier run from the folder first.
        progress: what people see; a table on a terminal, plain lines elsewhere, if None.

    Returns:
        The final model, the history and the summary.

    Raises:
        ConfigError: model and data do not fit, or an option cannot work.
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
    device = resolve_device(config.training.device)
    data = prepare_data(config.data, config.training)
    seed_everything(config.training.seed)
    model = template(config, data.classes, data.image_shape)
    example = data.example(device)
    content = {name: value for name, value in config.to_mapping().items() if name != "training"}

    def write_files(result: TrainingResult) -> None:
        save(result.model, result.folder)
        result.summary.update(_facts(config, data, result))

    result = train(
        model,
        method_factory(config, example),
        data.loaders,
        config.training,
        out,
        run_config={**content, "input": _input_facts(data)},
        resume=resume,
        overwrite=overwrite,
        progress=progress,
        on_finish=write_files,
    )
    write_report(result.folder)
    return result


def template(config: RunConfig, classes: tuple[str, ...], image_shape: tuple[int, int, int]) -> nn.Module:
    """The full-size model of a config, from torch's global random state, checked against the data.

    Raises:
        ConfigError: it cannot be built, or does not fit the data.
    """
    model = build_model(config.model, len(classes), image_shape[0])
    check_outputs(model, torch.zeros(1, *image_shape), len(classes), config.model.name)
    return model


def read_config(folder: str | Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        ConfigError: it has no config.json, or one that cannot be read.
    """
    content = _read_json(Path(folder) / "config.json", "a run folder that `apical train` wrote")
    names = {field.name for field in dataclasses.fields(RunConfig)}
    return RunConfig.from_mapping({name: value for name, value in content.items() if name in names})


def load_run(folder: str | Path) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    """A finished run's final model in eval mode on the CPU, its full-size template, and an example image.

    Neither the data nor a pickle is read. The example has the shape (1, channels, height, width).

    Raises:
        ConfigError: the folder is not that of a run.
        LoadError: the run has not finished, or its files are damaged.
    """
    path = Path(folder)
    config = read_config(path)
    facts = _read_json(path / "config.json", "a run folder").get("input")
    if not isinstance(facts, dict) or not {"classes", "image_shape"} <= set(facts):
        raise ConfigError(
            f"{path / 'config.json'} does not say what the model's input is; expected classes, image_shape"
        )
    channels, height, width = (int(side) for side in facts["image_shape"])
    classes = tuple(facts["classes"])
    model, full_model = (template(config, classes, (channels, height, width)) for _ in range(2))
    return load(model, path).eval(), full_model, torch.zeros(1, channels, height, width)


def _read_json(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no object; expected {expected}")
    return content


def _input_facts(data: PreparedData) -> dict[str, Any]:
    return {"classes": list(data.classes), "image_shape": list(data.image_shape)}


def _facts(config: RunConfig, data: PreparedData, result: TrainingResult) -> dict[str, Any]:
    """What the summary says beyond the loop's own numbers."""
    facts: dict[str, Any] = {"budget": config.budget, "data": config.data.path, "data_in_memory": data.in_memory}
    facts["command"] = reproducing_command(config, result.folder)
    last = result.history[-1]
    facts |= {name: last[name] for name in ("widths", "blocks", "skipped") if name in last}
    structure = getattr(result.method, "structure", None)
    return facts | _template_facts(structure) if isinstance(structure, Structure) else facts


def _template_facts(structure: Structure) -> dict[str, Any]:
    return {
        "template": {
            "macs": structure.macs(),
            "num_params": structure.num_params(),
            "widths": {group.name: group.size for group in structure.groups},
            "roles": {group.name: group.role for group in structure.groups},
            "blocks": [block.name for block in structure.blocks],
            "frozen": [dataclasses.asdict(item) for item in structure.frozen],
        }
    }
