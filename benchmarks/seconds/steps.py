"""One bare training step, and the networks through which a run grows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import apical
from apical.baselines import Comparator, Final
from apical.errors import ConfigError
from apical.recipes import RunConfig, apply_settings, get_recipe
from apical.recipes._task_kind import task_kind
from apical.runs import read_config
from apical.runs._plan import data_facts
from apical.runs._stored import require_trusted
from apical.structure import Structure
from apical.timing._clock import synchronise
from apical.training import TrainingConfig
from apical.training._amp import assumed_amp
from apical.training._learner import autocast, in_memory_format, put_in_safe_order_
from apical.training._optimizer import build_optimizer
from benchmarks.seconds.spread import along_epochs


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure.

    Attributes:
        device: where.
        quick: smallest settings, to see that everything runs.
        runs: folders of finished runs whose growth is timed besides.
        float32: no autocast to bfloat16, for processors without it.
        only_runs: leave out the recipes where runs can be timed.
    """

    device: torch.device
    quick: bool = False
    runs: tuple[Path, ...] = ()
    float32: bool = False
    only_runs: bool = False

    @property
    def fast(self) -> tuple[str, ...]:
        """How training is timed where time is to follow MACs: settings of any recipe."""
        return f"amp={'none' if self.float32 else 'bfloat16'}", "channels_last=true"

    @property
    def numbers(self) -> str:
        """The same in words."""
        return f"{'float32' if self.float32 else 'bfloat16 autocast'}, channels last where torch is safe in it"

    def seconds(self, limit: float) -> float:
        """A time limit: nothing beyond the least number of rounds in a quick run."""
        return 0.0 if self.quick else limit

    def rounds(self, least: int) -> int:
        """The least number of rounds."""
        return 1 if self.quick else least


def training_step(
    model: nn.Module, training: TrainingConfig, shape: Sequence[int], classes: int, device: torch.device,
    optimizer: torch.optim.Optimizer | None = None, labelled: Sequence[int] = (),
) -> Callable[[], None]:  # fmt: skip
    """One step of plain PyTorch on a random batch, as a function.

    Args:
        model: moved to the device, and put in the memory format and the mode of training.
        training: batch size, autocast, memory format and optimizer are read from it.
        shape: of an image.
        classes: of the labels.
        device: where.
        optimizer: of the model; a new one if None.
        labelled: the positions of an image that have a label each; none: the image has one.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(training.batch_size, *shape, generator=generator).to(device)
    labels = torch.randint(classes, (training.batch_size, *labelled), generator=generator).to(device)
    model.to(device).train()
    inputs = in_memory_format(inputs, put_in_safe_order_(model, training))
    stepped = optimizer or build_optimizer(model, training.optimizer)

    def step() -> None:
        stepped.zero_grad(set_to_none=True)
        with autocast(assumed_amp(training, device), device):
            outputs = model(inputs)
        heads = outputs.values() if isinstance(outputs, Mapping) else (outputs,)
        torch.stack([F.cross_entropy(head.float(), labels) for head in heads]).sum().backward()
        stepped.step()
        synchronise(device)

    return step


@dataclass(frozen=True)
class Growth:
    """A run's growth.

    Attributes:
        name: of the recipe or the run.
        config: of the run.
        facts: what the model must know about the data.
        structure: of the full model.
        records: of each epoch: `widths`, `skipped`, `macs`, `restructure_seconds`; of a run also `steps`, `batch_size`.
        steps: of an epoch, where its record does not say.
        source: where the records come from, in words.
    """

    name: str
    config: RunConfig
    facts: Mapping[str, Any]
    structure: Structure
    records: tuple[Mapping[str, Any], ...]
    steps: int
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an image."""
        return tuple(self.facts["image_shape"])

    @property
    def classes(self) -> int:
        """How many."""
        return len(self.facts["classes"])

    def dense(self) -> nn.Module:
        """The full model, freshly initialised."""
        torch.manual_seed(0)
        return task_kind(self.config.task).template(self.config.model, self.facts)

    def network(self, widths: Mapping[str, int], skipped: Sequence[str] = ()) -> nn.Module:
        """A plain network of these widths."""
        model = self.dense()
        rule, example = Final(widths, tuple(skipped)), torch.zeros(1, *self.shape)
        Comparator(rule, model, None, example, self.config.budget, 1, structure=self.structure)
        return model

    def at(self, epoch: int) -> nn.Module:
        """The network that an epoch (from 0) trained."""
        record = self.records[epoch]
        return self.network(record["widths"], record.get("skipped") or ())

    def step(self, model: nn.Module, device: torch.device, batch: int | None = None) -> Callable[[], None]:
        """A training step of one of these networks, of the config's batch size or another one."""
        training = self.config.training if batch is None else replace(self.config.training, batch_size=batch)
        labelled = self.shape[1:] if self.config.task == "segmentation" else ()
        return training_step(model, training, self.shape, self.classes, device, labelled=labelled)

    def batch(self, epoch: int) -> int:
        """Examples of a step of an epoch (from 0)."""
        return int(self.records[epoch].get("batch_size") or self.config.training.batch_size)

    def examples(self, epoch: int) -> int:
        """Examples that an epoch trained on."""
        return self.batch(epoch) * int(self.records[epoch].get("steps") or self.steps)

    @property
    def restructuring(self) -> float:
        """Seconds of all changes of the network, as they were recorded."""
        return sum(record.get("restructure_seconds") or 0.0 for record in self.records)

    def seconds(self, step_ms: Mapping[int, float]) -> float:
        """Seconds of all steps of the run, from milliseconds per step of some of its epochs.

        An example's time is interpolated between those epochs, so that batches may differ.
        """
        epochs = range(len(self.records))
        known = {epoch: ms / self.batch(epoch) for epoch, ms in step_ms.items()}
        per_example = along_epochs(len(epochs), known)
        return sum(per_example[epoch] * self.examples(epoch) for epoch in epochs) / 1000


def simulated(recipe: str, settings: Sequence[str], epochs: int) -> Growth:
    """Grows a recipe's model without training it, in fewer epochs: the schedule is the same, the steps are coarser.

    The scores stay at zero, so widths follow the schedule alone. Restructuring is real, with optimizer state, and timed
    on the CPU.
    """
    config = apply_settings(get_recipe(recipe), [*settings, f"epochs={epochs}"])
    images, facts = data_facts(config)
    torch.manual_seed(config.training.seed)
    model = task_kind(config.task).template(config.model, facts)
    optimizer = build_optimizer(model, config.training.optimizer)
    example = torch.zeros(1, *facts["image_shape"])
    grower = apical.Grower(model, optimizer, (example,), config.budget, epochs, config=config.growth)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    records = []
    for _ in range(epochs):
        optimizer.step()  # so that there is momentum to carry
        records.append(dict(grower.end_epoch()))
    steps = images // config.training.batch_size
    how = f"growth in {epochs} epochs, not trained"
    return Growth(recipe, config, facts, grower.structure, tuple(records), steps, how)


def recorded(folder: Path, settings: Sequence[str]) -> Growth:
    """The growth of a run that `apical train` did, timed with these settings."""
    config = apply_settings(read_config(folder), settings)
    require_trusted(config, False, str(folder / "config.json"))
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))["input"]
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    records = tuple(json.loads(line) for line in lines)
    if not records or not all(record.get("widths") and record.get("macs") for record in records):
        raise ConfigError(
            f"{folder / 'history.jsonl'} does not give the widths and MACs of each epoch; expected the folder of a run "
            "of `apical train` by a method that changes widths"
        )
    if len(records) != config.training.epochs:
        raise ConfigError(
            f"{folder} has {len(records)} of {config.training.epochs} epochs; expected a finished run, whose last "
            "network is the final one"
        )
    model = task_kind(config.task).template(config.model, facts)
    structure = apical.trace(model, (torch.zeros(1, *facts["image_shape"]),))
    name = f"{config.recipe}, {config.method}, seed {config.training.seed}"
    return Growth(name, config, facts, structure, records, records[0]["steps"], f"the run {folder.name}")


def distinct(records: Sequence[Mapping[str, Any]], most: int) -> list[int]:
    """The first epochs of networks or batches that differ, at most so many, evenly chosen, first and last among them.

    Example:
        >>> distinct([{"widths": {"a": n}} for n in (1, 2, 3, 4, 5, 5, 5)], 3)
        [0, 2, 4]
    """
    found = [
        epoch for epoch, record in enumerate(records) if epoch == 0 or _shape(record) != _shape(records[epoch - 1])
    ]
    if len(found) <= most:
        return found
    return [found[round(i * (len(found) - 1) / (most - 1))] for i in range(most)]


def _shape(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["widths"], sorted(record.get("skipped") or ()), record.get("batch_size")
