"""Where the numbers of a run go besides the terminal and the run folder, each a thin layer over its own client."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from apical._atomic import atomic_file
from apical._checks import flattened
from apical._optional import import_optional
from apical._reading import read_object, regular
from apical.errors import ConfigError
from apical.training._run_folder import has_epochs, plain

Pixels = npt.NDArray[np.uint8]
"""An image  # (height, width, 3), 0 to 255."""


class Logger(Protocol):
    """Receives a run's numbers; a tracker of one's own needs a class of five short methods.

    Epochs count from 1. The first process of a run calls it, no other.

    Example:
        >>> class Print:
        ...     def scalars(self, values, epoch):
        ...         print(epoch, dict(values))
        ...     def histogram(self, name, values, epoch): ...
        ...     def image(self, name, pixels, epoch): ...
        ...     def text(self, name, text): ...
        ...     def close(self): ...
        >>> Print().scalars({"train/loss": 0.5}, epoch=1)
        1 {'train/loss': 0.5}
    """

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Numbers by name (`train/loss`, `cost/macs_fraction`, `width/layer1.0.conv1`)."""

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        """How many numbers are distributed, such as the shares of the full widths."""

    def image(self, name: str, pixels: Pixels, epoch: int) -> None:
        """A picture, such as the growth so far."""

    def text(self, name: str, text: str) -> None:
        """Words, such as the settings at the start and the summary at the end."""

    def close(self) -> None:
        """Nothing more will come; called once, also when the run fails."""


class TensorBoardLogger(Logger):
    """Writes event files that `tensorboard --logdir FOLDER` shows.

    Args:
        folder: of the event files; made if need be.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._writer = require_tensorboard()(str(folder))

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        self._writer.add_histogram(name, np.asarray(values, dtype=np.float64), epoch)

    def image(self, name: str, pixels: Pixels, epoch: int) -> None:
        self._writer.add_image(name, torch.from_numpy(pixels), epoch, dataformats="HWC")

    def text(self, name: str, text: str) -> None:
        """As a code block, so that it is shown as it stands."""
        self._writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()))

    def close(self) -> None:
        self._writer.close()


def require_tensorboard() -> Any:
    """TensorBoard's writer class."""
    needed = (("PIL", "Pillow"), ("torch.utils.tensorboard", "tensorboard"))
    _, board = (import_optional(path, package, "live", "log: TensorBoard", ConfigError) for path, package in needed)
    return board.SummaryWriter


PROJECT = "apical"  # under which trackers list the runs, unless their own environment variables say another
RUNS = "trackers.json"  # in the run folder: the tracker's own name of this run, so that a resumed run goes on there


def require(package: str) -> Any:
    """A tracker's client."""
    return import_optional(package, package, package, f"log: {package}", ConfigError)


class CsvLogger(Logger):
    """Writes `metrics.csv`, a line per epoch, for spreadsheets and plotting tools; it needs no package.

    Histograms, pictures and texts are left out. The file is whole after every epoch; a resumed run goes on in it.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        del config
        self._path = folder / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        if goes_on(folder) and self._path.exists():
            with regular(self._path).open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    values = {name: value for name, value in row.items() if value and name != "epoch"}
                    self._rows[int(row["epoch"])] = values

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """A column per name; results of the test set stand in the line of the last epoch."""
        self._rows.setdefault(epoch, {}).update(values)
        names = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        with atomic_file(self._path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["epoch", *names])
            writer.writeheader()
            writer.writerows({"epoch": number, **self._rows[number]} for number in sorted(self._rows))


class _RunTracker:
    """What Weights & Biases and Trackio, which takes the same calls, have in common."""

    def __init__(self, client: Any, run: Any) -> None:
        self._client, self._run = client, run
        self._texts: dict[str, str] = {}

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self._run.log({**values, "epoch": epoch})

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        self._run.log({name: self._client.Histogram(np.asarray(values, dtype=np.float64)), "epoch": epoch})

    def image(self, name: str, pixels: Pixels, epoch: int) -> None:
        self._run.log({name: self._client.Image(pixels), "epoch": epoch})

    def close(self) -> None:
        self._run.finish()


class WandbLogger(_RunTracker):
    """Sends a run to Weights & Biases, or keeps it in the run folder (``WANDB_MODE=offline``, then ``wandb sync``).

    Project and account are those of its environment variables; the project is "apical" if none is given.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        client = require("wandb")
        project = client.setup().settings.project or PROJECT
        run = client.init(project=project, name=folder.name, dir=str(folder), config=plain(config), resume="allow",
                          id=kept_name(folder, "wandb"))  # fmt: skip
        keep_name(folder, "wandb", run.id)
        super().__init__(client, run)

    def text(self, name: str, text: str) -> None:
        """In the run's summary."""
        self._run.summary[name] = text


class TrackioLogger(_RunTracker):
    """Keeps a run in Trackio's local database (``trackio show``), or in a Space of one's own (``TRACKIO_SPACE_ID``)."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        client = require("trackio")
        run = client.init(project=PROJECT, name=folder.name, config=plain(config),
                          resume="allow" if goes_on(folder) else "never")  # fmt: skip
        super().__init__(client, run)

    def text(self, name: str, text: str) -> None:
        """As a text of the run."""
        self._run.log({name: text})


class MlflowLogger(Logger):
    """Sends a run to the MLflow server of ``MLFLOW_TRACKING_URI``, or keeps it where MLflow keeps its runs.

    The experiment is that of ``MLFLOW_EXPERIMENT_NAME``, "apical" if none is given. Histograms are left out: MLflow has
    none.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        require("mlflow")
        client = importlib.import_module("mlflow.tracking").MlflowClient()
        self._client = client
        self._run = kept_name(folder, "mlflow") or self._begin(folder)
        client.update_run(self._run, status="RUNNING")
        for name, value in flattened(plain(config)):
            client.set_tag(self._run, f"config.{name}", str(value))

    def _begin(self, folder: Path) -> str:
        import os

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        run: str = self._client.create_run(experiment, run_name=folder.name).info.run_id
        keep_name(folder, "mlflow", run)
        return run

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=epoch)

    def image(self, name: str, pixels: Pixels, epoch: int) -> None:
        """A picture per epoch, where Pillow is installed."""
        self._client.log_image(self._run, pixels, key=name.replace("/", "_"), step=epoch)

    def text(self, name: str, text: str) -> None:
        """A file of the run."""
        self._client.log_text(self._run, text, f"{name}.txt")

    def close(self) -> None:
        self._client.set_terminated(self._run)


def goes_on(folder: Path) -> bool:
    """Whether the run in this folder has epochs already, so that it is being resumed."""
    return has_epochs(folder)


def kept_name(folder: Path, tracker: str) -> str | None:
    """The name that a tracker gave a run that now goes on; None for a new one, of which nothing is kept yet."""
    name = _kept_names(folder).get(tracker)
    return name if isinstance(name, str) else None


def keep_name(folder: Path, tracker: str, name: str) -> None:
    """Note what a tracker calls this run."""
    with atomic_file(folder / RUNS) as aside:
        aside.write_text(json.dumps({**_kept_names(folder), tracker: name}) + "\n")


def _kept_names(folder: Path) -> dict[str, Any]:
    """By tracker; none where the file is missing or damaged."""
    try:
        return read_object(folder / RUNS, ConfigError)
    except ConfigError:
        return {}
