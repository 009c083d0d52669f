"""What loggers are told while a run goes on, beside what people see."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apical._checks import nearest
from apical._reading import read_text
from apical.errors import ConfigError
from apical.recipes._model import import_callable
from apical.reporting._growth_picture import growth_pixels
from apical.runs._template import template_facts
from apical.training import GrowthMethod, Logger, Metric, PacedProgress, Progress, TensorBoardLogger
from apical.training._loggers import CsvLogger, MlflowLogger, TrackioLogger, WandbLogger, require, require_tensorboard
from apical.training._run_folder import plain, write_text

LoggerFactory = Callable[[Path, Mapping[str, Any]], Logger]
"""Makes a logger from the run folder and the run's configuration, when the run starts."""

LOGGERS: dict[str, tuple[Callable[[], object], LoggerFactory]] = {
    "tensorboard": (require_tensorboard, lambda folder, _config: TensorBoardLogger(folder / "tensorboard")),
    "csv": (lambda: None, CsvLogger),
    "wandb": (lambda: require("wandb"), WandbLogger),
    "mlflow": (lambda: require("mlflow"), MlflowLogger),
    "trackio": (lambda: require("trackio"), TrackioLogger),
}
"""By name: what refuses at once if its package is missing, and the factory."""

_SECTIONS = {
    "train": "train",
    "eval": "eval",
    "macs": "cost",
    "params": "cost",
    "num": "cost",
    "peak": "cost",
    "blocks": "cost",
    "lr": "train",
}
_PIXELS = 8  # a unit of the growth picture


def logger_factory(name: str) -> LoggerFactory:
    """What ``--log NAME`` means: one of `LOGGERS`, or ``package.module:callable`` for a factory of one's own.

    Raises:
        ConfigError: there is no such logger, or what it needs is not installed.
    """
    if name in LOGGERS:
        check, known = LOGGERS[name]
        check()
        return known
    if ":" not in name:
        raise ConfigError(
            f"log: there is no logger {name!r}{nearest(name, LOGGERS, '.')} Give {', '.join(LOGGERS)}, or "
            "package.module:callable for one of your own; it is called with the run folder and the configuration."
        )
    factory: LoggerFactory = import_callable(name)
    return factory


class LoggedProgress:
    """A display that also tells loggers.

    A logger that fails (its server is down, say) is reported once and told nothing more: a long training does not end
    for it.
    """

    def __init__(self, display: Progress, factories: Sequence[LoggerFactory], config: Mapping[str, Any]) -> None:
        self._display = display
        self._factories = factories
        self._config = config
        self._loggers: list[Logger] = []
        self._method: GrowthMethod | None = None
        self._model: nn.Module | None = None
        self._widths: list[Mapping[str, int]] = []

    def watch(self, model: nn.Module, method: GrowthMethod) -> None:
        self._model = model
        self._method = method

    def start(self, epochs: int, run: str, metric: Metric) -> None:
        """Make the loggers and tell them the settings; keep what is known of the full model for the report."""
        folder, facts = Path(run), template_facts(self._method)
        if facts:
            write_text(folder / "template.json", json.dumps(facts) + "\n")
        if self._factories:
            self._widths = _earlier_widths(folder)
        for factory in self._factories:
            self._attempt(lambda make=factory: self._loggers.append(make(folder, self._config)))  # type: ignore[misc]
        self._tell(lambda logger: logger.text("settings", json.dumps(plain(self._config), indent=2)))
        self._display.start(epochs, run, metric)

    def pace(self, samples: int, unit: str) -> None:
        if isinstance(self._display, PacedProgress):
            self._display.pace(samples, unit)

    def step(self, epoch: int, step: int, steps: int) -> None:
        self._display.step(epoch, step, steps)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Curves, histograms of shares and utilities, and the growth so far as a picture."""
        self._display.epoch(record)
        if self._loggers:
            number = int(record["epoch"])
            widths = self._present(record)
            values, shares = scalars({**record, "widths": widths}), self._shares(widths)
            picture = self._picture(widths)
            utilities = self._utilities()
            self._tell(lambda logger: logger.scalars(values, number))
            if shares:
                self._tell(lambda logger: logger.histogram("growth/share_of_full_width", shares, number))
                self._tell(lambda logger: logger.image("growth/widths", picture, number))
            if utilities:
                self._tell(lambda logger: logger.histogram("growth/utilities", utilities, number))
            for name, weights in self._weights().items():
                self._tell(lambda logger, n=name, w=weights: logger.histogram(n, w, number))  # type: ignore[misc]

    def message(self, text: str) -> None:
        self._display.message(text)

    def summary(self, summary: Mapping[str, Any]) -> None:
        """The summary as text, and its test results as numbers."""
        self._display.summary(summary)
        short = {name: value for name, value in summary.items() if name not in ("template", "widths")}
        numbers = {
            f"test/{name[5:]}": float(value)
            for name, value in summary.items()
            if name.startswith("test_") and isinstance(value, (int, float))
        }
        epoch = int(summary.get("epochs") or 0)
        self._tell(lambda logger: logger.scalars(numbers, epoch))
        self._tell(lambda logger: logger.text("summary", json.dumps(plain(short), indent=2)))

    def stop(self) -> None:
        self._tell(lambda logger: logger.close())
        self._loggers = []
        self._display.stop()

    def _tell(self, call: Callable[[Logger], None]) -> None:
        for logger in list(self._loggers):
            if not self._attempt(lambda told=logger: call(told)):  # type: ignore[misc]
                self._loggers.remove(logger)

    def _attempt(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - trackers fail in as many ways as there are trackers
            self._display.message(f"a logger failed and is told nothing more: {type(error).__name__}: {error}")
            return False
        return True

    def _full(self) -> dict[str, int]:
        widths: dict[str, int] = template_facts(self._method).get("widths", {})
        return widths

    def _present(self, record: Mapping[str, Any]) -> dict[str, int]:
        """Widths by group; 0 for a group that is absent with its block."""
        return {**dict.fromkeys(self._full(), 0), **(record.get("widths") or {})}

    def _shares(self, widths: Mapping[str, int]) -> list[float]:
        full = self._full()
        return [width / (full.get(name) or max(width, 1)) for name, width in widths.items()]

    def _picture(self, widths: Mapping[str, int]) -> Any:
        self._widths.append(widths)
        rows = growth_pixels({name: [seen.get(name, 0) for seen in self._widths] for name in widths}, self._full())
        if not rows:
            return None
        small = np.asarray(rows, dtype=np.uint8)  # (groups, epochs, 3)
        return small.repeat(_PIXELS, axis=0).repeat(_PIXELS, axis=1)

    def _utilities(self) -> list[float]:
        """Of all units and blocks; their scores, where the method is the paper's."""
        values = getattr(getattr(self._method, "components", None), "values", None)
        return values.tolist() if isinstance(values, Tensor) else []

    def _weights(self) -> dict[str, list[float]]:
        """A thinned view of each matrix, so that histograms stay cheap."""
        if self._model is None:
            return {}
        with torch.no_grad():
            return {
                f"weights/{name}": p.detach().flatten()[:: max(1, p.numel() // 1000)].float().cpu().tolist()
                for name, p in self._model.named_parameters()
                if p.ndim >= 2
            }


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an epoch's record by the names that trackers sort into sections.

    Example:
        >>> scalars({"epoch": 3, "train_loss": 0.5, "macs_fraction": 0.2, "widths": {"conv1": 8}, "step_seconds": 1.5})
        {'train/loss': 0.5, 'cost/macs_fraction': 0.2, 'width/conv1': 8.0, 'seconds/step': 1.5}
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        if name == "widths":
            found |= {f"width/{group}": float(width) for group, width in (value or {}).items()}
        elif name != "epoch" and isinstance(value, (int, float)) and not isinstance(value, bool):
            found[_sectioned(name)] = float(value)
    return found


def _sectioned(name: str) -> str:
    if name.endswith("_seconds"):
        return f"seconds/{name.removesuffix('_seconds')}"
    section = "cost" if name == "train_macs" else _SECTIONS.get(name.split("_")[0], "growth")
    return f"{section}/{name.removeprefix(f'{section}_')}"


def _earlier_widths(folder: Path) -> list[Mapping[str, int]]:
    """What a resumed run wrote before."""
    try:
        lines = read_text(folder / "history.jsonl").splitlines()
        return [json.loads(line).get("widths") or {} for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError, AttributeError, TypeError):  # the run itself reads its checkpoint
        return []
