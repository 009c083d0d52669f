"""A folder holds a whole model at every moment: through kills, full disks, savers at the same time, links in wait."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import apical
from apical.errors import ApicalError, CheckpointError, ConfigError, LoadError, SaveError
from apical.export import _load, _save
from apical.recipes import get_recipe, write_config_file
from apical.training._run_folder import RunFolder
from export.folders import ARCHITECTURE, WEIGHTS
from export.save_cases import net
from fork_server import Ended, ForkServer

SERVED = "export.save_cases"


def call(server: ForkServer, function: str, folder: Path, *arguments: Any) -> Ended:
    (end,) = server.run(f"{SERVED}:{function}", str(folder), *arguments, folder=folder.parent)
    return end


def value_in(folder: Path) -> float:
    """The number that all weights of the folder's model are."""
    values = torch.cat([p.detach().flatten() for p in apical.load(nn.Linear(3, 3), folder).parameters()]).unique()
    assert len(values) == 1, "a mixture of two saves"
    return float(values)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
def test_killed_at_every_step_over_an_older_save(server: ForkServer, tmp_path: Path) -> None:
    found, number = [], 0
    while True:
        number += 1
        folder = tmp_path / str(number) / "model"
        apical.save(net(1.0), folder)
        end = call(server, "killed_at", folder, number)
        found.append(value_in(folder))
        apical.save(net(3.0), folder)
        assert names(folder) == [ARCHITECTURE, WEIGHTS], "what the killed process left is swept away"
        assert value_in(folder) == 3.0
        if end.code == 0:
            break
        assert end.code == -signal.SIGKILL, end.output
    assert found == sorted(found), "first the old one, from one moment on the new one"
    assert found.count(1.0) >= 5
    assert found.count(2.0) >= 3


def test_killed_while_the_weights_are_written(server: ForkServer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    apical.save(net(1.0), folder)
    assert call(server, "killed_while_writing", folder).code == -signal.SIGKILL
    assert value_in(folder) == 1.0


def test_a_first_save_that_is_killed_leaves_nothing_that_loads(server: ForkServer, tmp_path: Path) -> None:
    assert call(server, "killed_while_writing", tmp_path / "model").code == -signal.SIGKILL
    with pytest.raises(LoadError, match=r"architecture\.json does not exist"):
        value_in(tmp_path / "model")
    apical.save(net(1.0), tmp_path / "model")
    assert names(tmp_path / "model") == [ARCHITECTURE, WEIGHTS]


def test_several_save_and_load_at_the_same_time(server: ForkServer, tmp_path: Path) -> None:
    folder, values, problems = tmp_path / "model", set(), []
    apical.save(net(1.0), folder)

    def other() -> None:
        end = call(server, "saves", folder, 2.0, 40)
        if end.code:
            problems.append(end.output)

    def own(value: float) -> None:
        for _ in range(20):
            apical.save(net(value), folder)

    threads = [threading.Thread(target=other), *(threading.Thread(target=own, args=(v,)) for v in (3.0, 4.0))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        values.add(value_in(folder))
    assert not problems
    assert values <= {1.0, 2.0, 3.0, 4.0}
    assert names(folder) == [ARCHITECTURE, WEIGHTS]


def test_weights_that_move_between_their_digest_and_their_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of another save renames the file that the loader has just found; torch says a RuntimeError then."""
    apical.save(net(1.0), tmp_path)
    true_open, opened = _load.safe_open, []

    def moved(path: Path, **options: Any) -> Any:
        opened.append(path)
        if len(opened) == 1:
            apical.save(net(2.0), tmp_path)
            raise RuntimeError(f"unable to open file <{path}> in read-only mode: No such file or directory (2)")
        return true_open(path, **options)

    monkeypatch.setattr(_load, "safe_open", moved)
    assert value_in(tmp_path) == 2.0
    assert len(opened) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apical.save(net(1.0), tmp_path)
    true_aside = _save.new_aside

    def full(path: Path) -> Path:
        aside = true_aside(path)
        if path.name == ARCHITECTURE:
            aside.unlink()
            aside.symlink_to("/dev/full")
        return aside

    monkeypatch.setattr(_save, "new_aside", full)
    with pytest.raises(SaveError, match=r"cannot write .*No space left.*Free space") as caught:
        apical.save(net(2.0), tmp_path)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, ApicalError)
    assert names(tmp_path) == [ARCHITECTURE, WEIGHTS]
    assert value_in(tmp_path) == 1.0


def test_weights_that_may_not_grow_that_large(server: ForkServer, tmp_path: Path) -> None:
    """The error is safetensors' own there."""
    folder = tmp_path / "model"
    apical.save(net(1.0), folder)
    end = call(server, "file_limit", folder)
    assert end.code == 2, end.output
    assert "File too large" in end.output
    assert names(folder) == [ARCHITECTURE, WEIGHTS]
    assert value_in(folder) == 1.0


def test_a_program_that_may_not_grow_that_large(server: ForkServer, tmp_path: Path) -> None:
    """Writing to a file of its own, torch would end the process."""
    end = call(server, "program_limit", tmp_path / "programs")
    assert end.code == 2, end.output
    assert "File too large" in end.output
    assert names(tmp_path / "programs") == []


def test_weights_that_are_far_too_large_are_not_read(tmp_path: Path) -> None:
    """A file of holes takes no room on a disk, and hours to read."""
    apical.save(net(1.0), tmp_path)
    with (tmp_path / WEIGHTS).open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(LoadError, match=r"has 1,099,511,627,776 bytes, more than the 100,000,192 that"):
        value_in(tmp_path)


def test_others_may_read_what_they_may_read_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    apical.save(net(1.0), tmp_path)
    assert (tmp_path / WEIGHTS).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_that_lies_in_wait_is_not_followed(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "model"
    outside.write_text("precious")
    folder.mkdir()
    for name in (WEIGHTS, ARCHITECTURE):
        (folder / f"{name}.tmp").symlink_to(outside)
        (folder / name).symlink_to(outside)
    apical.save(net(2.0), folder)
    assert outside.read_text() == "precious"
    assert value_in(folder) == 2.0


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / _save.LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SaveError, match="cannot write"):
        apical.save(net(2.0), tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_somebody_saves_there_for_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_save, "LOCK_PATIENCE_S", 0.1)
    with (
        _save.lock_file(tmp_path / _save.LOCK, 0.0),
        pytest.raises(SaveError, match="another process has been saving there"),
    ):
        apical.save(net(2.0), tmp_path)
    apical.save(net(2.0), tmp_path)
    assert value_in(tmp_path) == 2.0


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(SaveError, match=f"cannot write {folder}: {tmp_path / 'file'} is a file, expected a folder"):
            apical.save(net(2.0), folder)


@pytest.mark.parametrize("name", ["a\0b", "a\0b/c", "\ud800"])
def test_what_no_folder_can_be_called_is_refused_in_words(name: str, tmp_path: Path) -> None:
    for write in (apical.save, write_config_file):
        with pytest.raises((SaveError, ConfigError), match=r"cannot write .*this is no name of a folder"):
            write(net(2.0) if write is apical.save else get_recipe("digits"), tmp_path / name / "model.json")
    with pytest.raises(CheckpointError, match=r"cannot make the run folder .*this is no name of a folder"):
        RunFolder(tmp_path / name).__enter__()


@pytest.mark.parametrize("name", ["", ".", "a\0b", "\ud800"])
def test_what_no_file_can_be_called_is_refused_in_words(name: str, tmp_path: Path) -> None:
    structure = apical.trace(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 2))
    with pytest.raises(SaveError, match="cannot write"):
        apical.save_structure(structure, name)
