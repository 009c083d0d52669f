"""Files that are put in place whole: what they must never replace."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

import apical
from apical._atomic import atomic_file, new_aside
from apical.resizing._structure_file import save_structure


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_what_is_no_ordinary_file_is_not_replaced(tmp_path: Path) -> None:
    # a device is like a pipe here: a file in its place would break every program that uses it
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="not an ordinary file"), atomic_file(tmp_path / name):
            pytest.fail("it was opened")
        with pytest.raises(OSError, match="not an ordinary file"):
            new_aside(tmp_path / name)
    structure = apical.trace(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.zeros(1, 2))
    with pytest.raises(apical.errors.ApicalError, match="not an ordinary file"):
        save_structure(structure, pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_file_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def interrupted() -> None:
        with atomic_file(file) as aside:
            aside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    with atomic_file(file) as aside:
        aside.write_text("new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]
