"""Checkpoints that are torn, foreign or cannot be written."""

from __future__ import annotations

import errno
import os
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apical._atomic import atomic_file
from apical.errors import CheckpointError
from apical.training._checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from apical.training._restore import load_weights_
from tiny_run import Recorder, assert_same_run, tiny_train


def write(folder: Path, epoch: int = 1, **state: Any) -> Path:
    return save_checkpoint(folder, Checkpoint(epoch, {"recipe": "r"}, {"weights": torch.arange(64.0), **state}))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2, more=[1, (2.5, None), {"a": torch.tensor(3)}])
    found = load_checkpoint(tmp_path, {"recipe": "r"})
    assert (found.epoch, found.state["more"][:2]) == (2, [1, (2.5, None)])
    assert torch.equal(found.state["weights"], torch.arange(64.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.prev.pt", "checkpoint.pt"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_torn_checkpoint_is_set_aside_and_the_previous_one_taken(tmp_path: Path, share: float) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    told: list[str] = []
    assert load_checkpoint(tmp_path, notify=told.append).epoch == 1
    assert "torn" in told[0]
    assert "resuming from checkpoint.prev.pt, after epoch 1" in told[0]
    assert (tmp_path / "checkpoint.torn.pt").exists()
    write(tmp_path, 2)  # the torn one must not take the place of the good one
    assert load_checkpoint(tmp_path).epoch == 2
    path.unlink()
    assert load_checkpoint(tmp_path).epoch == 1


def test_killed_between_the_two_moves(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    path.rename(tmp_path / "checkpoint.prev.pt")
    told: list[str] = []
    assert load_checkpoint(tmp_path, notify=told.append).epoch == 1
    assert "does not exist" in told[0]


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    content = bytearray(path.read_bytes())
    at = bytes(content).index(torch.arange(64.0).numpy().tobytes()) + 17
    content[at] ^= 4
    path.write_bytes(content)
    assert load_checkpoint(tmp_path).epoch == 1


def test_a_checkpoint_whose_other_files_are_damaged_counts_as_torn(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    told: list[str] = []
    answers = iter(["of its parts in parts-2, x was changed", None])
    assert load_checkpoint(tmp_path, notify=told.append, damage=lambda _: next(answers)).epoch == 1
    assert "checkpoint.pt is torn (of its parts in parts-2, x was changed)" in told[0]
    with pytest.raises(CheckpointError, match=r"checkpoint\.prev\.pt is torn"):
        load_checkpoint(tmp_path, damage=lambda _: "gone")


@pytest.mark.attack
@given(st.binary(max_size=300))
def test_no_bytes_at_all_crash_the_reader(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path)


def test_all_torn_is_an_error_that_names_both(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"PK")
    (tmp_path / "checkpoint.prev.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is torn.*checkpoint\.prev\.pt is torn"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"weight": torch.zeros(2)}, "not a checkpoint of apical"),
        ([1, 2], "not a checkpoint of apical.*got 'list'"),
        ({"format": "apical-checkpoint", "version": 99}, "version 99"),
        ({"format": "apical-checkpoint", "version": torch.zeros(3)}, r"version tensor\(\[0"),
        ({"format": "apical-checkpoint", "version": 1}, "incomplete.*epoch"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, content: Any, match: str) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(tmp_path)


def test_code_is_never_loaded(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="could run code"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")]
)
def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    write(tmp_path, 1)

    def fail(content: object, stream: Any) -> None:
        stream.write(b"half")
        raise failure

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*untouched; free space"):
        write(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert load_checkpoint(tmp_path).epoch == 1


def test_a_read_only_folder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        write(tmp_path, 2)


def test_a_run_survives_a_torn_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole = tiny_train(tmp_path / "whole")
    tiny_train(tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-100])
    progress = Recorder()
    assert_same_run(whole, tiny_train(tmp_path / "run", resume=True, progress=progress))
    assert "after epoch 3" in progress.messages[0]


def test_an_atomic_file_that_fails_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_file(target) as aside:
            aside.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_tensor_within_a_list_of_settings_is_a_difference(tmp_path: Path) -> None:
    """It would compare by elements, which is no answer."""
    saved = {"milestones": [torch.zeros(2, 2)], "nested": [{"a": [1]}]}
    save_checkpoint(tmp_path, Checkpoint(1, saved, {}))
    with pytest.raises(CheckpointError, match=r"milestones is \[tensor"):
        load_checkpoint(tmp_path, {"milestones": [1], "nested": [{"a": [1]}]})
    with pytest.raises(CheckpointError, match=r"nested is \[\{'a': \[1\]\}\] in the checkpoint"):
        load_checkpoint(tmp_path, {"milestones": [1], "nested": [{"a": [1, 2]}]})


def mutated(path: Path, draw: random.Random) -> bytes:
    """The checkpoint with its pickle changed in a few bytes, in an archive whose checksums are right."""
    aside = path.with_suffix(".changed")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            content = bytearray(old.read(item))
            if item.filename.endswith("data.pkl"):
                for _ in range(draw.choice((1, 1, 2, 5))):
                    content[draw.randrange(len(content))] = draw.randrange(256)
            new.writestr(item.filename, bytes(content))
    content = aside.read_bytes()
    aside.unlink()
    return bytes(content)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_wrong_with_the_newest_the_one_before_is_taken(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    write(tmp_path, 1)
    path = write(tmp_path, 2, more=[1, (2.5, None), {"a": torch.tensor(3)}])
    good, before = path.read_bytes(), (tmp_path / "checkpoint.prev.pt").read_bytes()
    kinds: set[object] = set()
    for _ in range(75):
        path.write_bytes(good)
        path.write_bytes(mutated(path, draw))
        told: list[str] = []
        try:
            found = load_checkpoint(tmp_path, notify=told.append)
        except CheckpointError as error:  # a changed word of the format: it says to be something else
            kinds.add(
                "foreign" if re.search("not a checkpoint of apical|has checkpoint version", str(error)) else error
            )
        else:
            kinds.add(found.epoch)
        (tmp_path / "checkpoint.prev.pt").write_bytes(before)
    assert all(kind == "foreign" or isinstance(kind, int) for kind in kinds), kinds  # the number may be what changed
    assert 1 in kinds


@pytest.mark.parametrize(
    ("name", "value"),
    [("epoch", float("-inf")), ("epoch", None), ("epoch", -1), ("epoch", True), ("identity", [1]), ("identity", {3: 1}),
     ("state", None), ("state", [("a", 1)])],
)  # fmt: skip
def test_a_part_that_is_no_part_counts_as_torn(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2)
    payload = torch.load(path, weights_only=True)
    torch.save({**payload, name: value}, path)
    told: list[str] = []
    assert load_checkpoint(tmp_path, notify=told.append).epoch == 1
    assert "is incomplete" in told[0]
    (tmp_path / "checkpoint.prev.pt").unlink()
    (tmp_path / "checkpoint.torn.pt").rename(path)
    with pytest.raises(CheckpointError, match="is incomplete"):
        load_checkpoint(tmp_path)


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2).unlink()
    os.mkfifo(tmp_path / "checkpoint.pt")
    assert load_checkpoint(tmp_path).epoch == 1


def test_a_torn_checkpoint_that_cannot_be_moved_aside_is_named(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2).write_bytes(b"torn")
    (tmp_path / "checkpoint.torn.pt").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is torn, and cannot be moved aside.* Remove it"):
        load_checkpoint(tmp_path)


def test_a_buffer_that_is_one_number_for_many_is_saved_and_resumed(tmp_path: Path) -> None:
    def built(value: float) -> nn.Module:
        model = nn.Linear(3, 4)
        model.register_buffer("mask", torch.full((1, 1), value).expand(512, 512))
        return model

    save_checkpoint(tmp_path, Checkpoint(1, {}, {"model": built(2.0).state_dict()}))
    model = built(1.0)
    load_weights_(model, load_checkpoint(tmp_path).state["model"], "the model")
    assert torch.equal(model.get_buffer("mask"), torch.full((512, 512), 2.0))
