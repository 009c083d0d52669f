"""Loggers: TensorBoard reads what was written, a tracker of one's own is told everything, and none ends a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
