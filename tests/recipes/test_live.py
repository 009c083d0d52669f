"""Loggers: TensorBoard reads what was written, a tracker of one's own is told everything, and none ends a run."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apical.errors import ConfigError
from apical.recipes import apply_settings, get_recipe
from apical.runs import logger_factory, run
from apical.training import make_progress
from marks import slow

TINY = ["data.path=synthetic", "limit=64", "batch_size=32", "epochs=2", "model.depth=8", "model.width=4", "device=cpu"]


class Tracker:
    """Keeps what it is told; fails in one of its methods if asked to."""

    made: list[Tracker] = []  # noqa: RUF012

    def __init__(self, folder: Path, config: Mapping[str, Any], failing: str = "") -> None:
        self.folder, self.config, self.failing, self.told = folder, config, failing, []
        Tracker.made.append(self)

    def _note(self, kind: str, *content: Any) -> None:
        if kind == self.failing:
            raise ConnectionError("the server is down")
        self.told.append((kind, *content))

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        self._note("scalars", dict(values), epoch)

    def histogram(self, name: str, values: Sequence[float], epoch: int) -> None:
        self._note("histogram", name, list(values), epoch)

    def image(self, name: str, pixels: Any, epoch: int) -> None:
        self._note("image", name, pixels.shape, epoch)

    def text(self, name: str, text: str) -> None:
        self._note("text", name, text)

    def close(self) -> None:
        self._note("close")


def tiny_run(folder: Path, *loggers: Any, **options: Any) -> None:
    config = apply_settings(get_recipe("digits"), TINY)
    run(config, folder, progress=make_progress("quiet"), loggers=loggers, **options)


def test_a_tracker_is_told_everything(tmp_path: Path) -> None:
    Tracker.made.clear()
    tiny_run(tmp_path / "run", Tracker)
    (tracker,) = Tracker.made
    assert tracker.folder == tmp_path / "run"
    assert tracker.config["recipe"] == "digits"
    kinds = [told[0] for told in tracker.told]
    assert kinds[0] == "text"
    assert kinds[-1] == "close"
    assert kinds.count("close") == 1
    numbers = [told for told in tracker.told if told[0] == "scalars"]
    assert [told[2] for told in numbers] == [1, 2, 2]
    assert {"train/loss", "eval/accuracy", "cost/macs_fraction", "width/conv1", "seconds/step"} <= set(numbers[0][1])
    assert set(numbers[2][1]) == {"test/accuracy", "test/loss", "test/samples"}
    names = {told[1] for told in tracker.told if told[0] == "histogram"}
    assert {"growth/share_of_full_width", "growth/utilities", "weights/conv1.weight"} <= names
    shapes = [told[2] for told in tracker.told if told[0] == "image"]
    groups = sum(name.startswith("width/") for name in numbers[0][1])
    assert shapes == [(8 * groups, 8, 3), (8 * groups, 16, 3)]
    assert json.loads(tracker.told[-2][2])["epochs"] == 2


@pytest.mark.parametrize("failing", ["text", slow("scalars"), slow("image"), slow("close")])
def test_a_tracker_that_fails_is_left_alone_and_the_run_ends(
    failing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Tracker.made.clear()
    tiny_run(tmp_path / "run", lambda folder, config: Tracker(folder, config, failing), Tracker)
    bad, good = Tracker.made
    assert capsys.readouterr().err.count("a logger failed and is told nothing more: ConnectionError") == 1
    assert good.told[-1] == ("close",)
    assert failing == "close" or not [told for told in bad.told if told[0] in (failing, "close")]
    assert (tmp_path / "run" / "summary.json").exists()


def test_a_factory_that_fails_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run(tmp_path / "run", lambda folder: None)
    assert "a logger failed" in capsys.readouterr().err


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_run(tmp_path / "run", logger_factory("tensorboard"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("cost/macs_fraction")] == [1, 2]
    assert [event.step for event in events.Images("growth/widths")] == [1, 2]
    assert {"growth/utilities", "growth/share_of_full_width"} <= set(events.Tags()["histograms"])
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_the_report_knows_the_full_model_while_the_run_goes_on(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "template.json").read_text())
    assert facts["widths"]["conv1"] == 4
    assert facts["frozen"][0]["name"] == "fc"
    layers = json.loads((tmp_path / "run" / "summary.json").read_text())["template"]["layers"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert sum(layer["macs"][0] for layer in layers) == facts["macs"]
    assert sum(layer["macs"][1] for layer in layers) == summary["macs"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "did you mean 'tensorboard'?"),
        ("no_such_module_xyz:make", "no_such_module_xyz"),
        ("json:nothing", "nothing"),
    ],
)
def test_unknown_loggers_are_refused_before_training(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        logger_factory(name)


# ---- trackers, each against its own client offline -----------------------------------------------------------------


def config_of(**settings: Any) -> dict[str, Any]:
    return {"recipe": "digits", "training": settings}


def tell(logger: Any, epoch: int) -> None:
    logger.text("settings", "epochs: 2")
    logger.scalars({"train/loss": 1 / epoch, "width/layer1.0.conv1": float(epoch)}, epoch)
    logger.histogram("growth/utilities", [0.1, 0.2, 0.2], epoch)
    logger.image("growth/widths", np.zeros((8, 8, 3), np.uint8), epoch)
    logger.close()


def told_twice(name: str, folder: Path) -> None:
    """A run of one epoch, and the same run resumed for a second one."""
    folder.mkdir()
    for epoch in (1, 2):
        tell(logger_factory(name)(folder, config_of(epochs=2)), epoch)
        (folder / "history.jsonl").write_text('{"epoch": 1}\n')  # as the loop writes it


def test_csv_has_a_line_per_epoch_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    told_twice("csv", tmp_path / "run")
    logger_factory("csv")(tmp_path / "run", {}).scalars({"test/accuracy": 0.5}, 2)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert [(row["epoch"], row["train/loss"], row["test/accuracy"]) for row in rows] == [
        ("1", "1.0", ""),
        ("2", "0.5", "0.5"),
    ]
    (tmp_path / "run" / "history.jsonl").unlink()  # a new run in the folder
    logger_factory("csv")(tmp_path / "run", {}).scalars({"train/loss": 2.0}, 1)
    assert (tmp_path / "run" / "metrics.csv").read_text().splitlines() == ["epoch,train/loss", "1,2.0"]


def test_a_new_run_does_not_go_on_in_what_loggers_kept_of_the_one_before(tmp_path: Path) -> None:
    tiny_run(tmp_path, logger_factory("csv"))
    table, names, events = tmp_path / "metrics.csv", tmp_path / "trackers.json", tmp_path / "tensorboard" / "events"
    table.write_text("epoch,train/loss\n9,1.0\n")
    names.write_text('{"wandb": "abc"}')
    events.parent.mkdir()
    events.touch()
    tiny_run(tmp_path, logger_factory("csv"), overwrite=True)
    assert [row["epoch"] for row in csv.DictReader(table.read_text().splitlines())] == ["1", "2"]
    assert not names.exists()
    assert not events.parent.exists()
    for name in ("checkpoint.pt", "checkpoint.prev.pt", "history.jsonl", "summary.json"):
        (tmp_path / name).unlink()
    table.write_text("epoch,train/loss\n9,1.0\n")
    tiny_run(tmp_path, logger_factory("csv"))  # whose history is there, but empty, when loggers are made
    assert [row["epoch"] for row in csv.DictReader(table.read_text().splitlines())] == ["1", "2"]


def test_a_pipe_is_no_table_to_go_on_in(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text("{}\n")
    os.mkfifo(tmp_path / "metrics.csv")
    with pytest.raises(OSError, match="expected an ordinary file"):  # which is reported, and the run goes on
        logger_factory("csv")(tmp_path, {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own, of SQLAlchemy
def test_mlflow_has_curves_settings_and_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow's own default, as a user meets it
    monkeypatch.chdir(tmp_path)
    told_twice("mlflow", tmp_path / "run")
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("apical").experiment_id])
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 0.5)]
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.tags["config.training.epochs"] == "2"


def test_wandb_keeps_a_run_offline_under_one_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    told_twice("wandb", tmp_path / "run")
    name = json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]
    stored = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(stored) == 2
    end = time.monotonic() + 60  # its service writes behind finish()
    while time.monotonic() < end and any(b"growth/utilities" not in file.read_bytes() for file in stored):
        time.sleep(0.1)
    for file in stored:
        content = file.read_bytes()
        assert b"train/loss" in content
        assert b"growth/utilities" in content
    assert list((tmp_path / "run" / "wandb").rglob("widths_*.png"))


def test_trackio_keeps_a_run_in_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    pytest.importorskip("trackio")
    told_twice("trackio", tmp_path / "run")
    from trackio.sqlite_storage import SQLiteStorage

    assert SQLiteStorage.get_runs("apical") == ["run"]
    losses = [row["train/loss"] for row in SQLiteStorage.get_logs("apical", "run") if "train/loss" in row]
    assert losses == [1.0, 0.5]


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_tracker_that_is_not_installed_is_refused_before_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"pip install 'apical\[{name}\]'"):
        logger_factory(name)
