"""Checkpoints that are whole files but hold something wrong: the project's own error, or the run goes on."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings

from apical.errors import ApicalError, CheckpointError
from apical.training._checkpoint import load_checkpoint
from changed_tree import CHANGES, change, places
from tiny_run import tiny_config, tiny_train


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its third epoch of four."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def hook(epoch: int, batch: int) -> None:
        if epoch == 3:
            raise KilledError

    with pytest.raises(KilledError):
        tiny_train(folder, tiny_config(ema_decay=0.5), hook=hook)
    return folder


@pytest.mark.attack
@settings(max_examples=2 * settings().max_examples, phases=[Phase.explicit, Phase.generate])  # shrinking costs runs
@given(CHANGES)
def test_any_change_of_the_state(stopped: Path, tmp_path: Path, changed: tuple[int, str, Any]) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.prev.pt").unlink()
    path = tmp_path / "run" / "checkpoint.pt"
    payload = torch.load(path, weights_only=True)
    change(payload, *changed)
    torch.save(payload, path)
    try:
        result = tiny_train(tmp_path / "run", tiny_config(ema_decay=0.5), resume=True)
    except ApicalError:
        return
    assert len(result.history) >= 4


def test_a_packed_archive_is_refused(stopped: Path, tmp_path: Path) -> None:
    """torch packs nothing; something that unfolds to a hundred times its size is no checkpoint."""
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)
    with pytest.raises(CheckpointError, match=r"is torn .*packed"):
        load_checkpoint(tmp_path)


def test_one_number_that_stands_for_millions_is_refused(stopped: Path, tmp_path: Path) -> None:
    """Written out, as a record of the history is, it would fill the memory."""
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.prev.pt").unlink()
    path = tmp_path / "run" / "checkpoint.pt"
    payload = torch.load(path, weights_only=True)
    payload["state"]["history"][0]["odd"] = torch.zeros(1).expand(2**10, 2**10)
    torch.save(payload, path)
    with pytest.raises(CheckpointError, match=r"a tensor in it says to be larger than the file"):
        tiny_train(tmp_path / "run", tiny_config(ema_decay=0.5), resume=True)


def test_no_more_epochs_than_the_run_has(stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    payload = torch.load(path, weights_only=True)
    payload["state"]["history"] *= 3
    torch.save(payload, path)
    with pytest.raises(CheckpointError, match=r"does not fit this run: .*6 records of 2 epochs"):
        tiny_train(tmp_path / "run", tiny_config(ema_decay=0.5), resume=True)


@pytest.mark.parametrize("value", [1e300, float("nan"), -1e39])
def test_a_setting_that_no_step_can_compute_with(stopped: Path, tmp_path: Path, value: float) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.prev.pt").unlink()
    path = tmp_path / "run" / "checkpoint.pt"
    payload = torch.load(path, weights_only=True)
    place = next(p for p in places(payload) if p[-1] == "weight_decay" and "param_groups" in p)
    box = payload
    for key in place[:-1]:
        box = box[key]
    box["weight_decay"] = value
    torch.save(payload, path)
    with pytest.raises(CheckpointError, match="weight_decay of the optimizer's group 0"):
        tiny_train(tmp_path / "run", tiny_config(ema_decay=0.5), resume=True)
