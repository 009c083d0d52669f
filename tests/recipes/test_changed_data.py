"""A run that goes on on other data than those it was begun with says so, and in what they differ."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apical.errors import CheckpointError
from apical.recipes import RunConfig, apply_settings, get_recipe
from apical.runs import read_config, run
from marks import slow
from photo_folder import write_image_folder
from recipes.test_run import StopAfter, do, tiny
from tiny_run import Recorder
from voc_folder import write_voc

PHOTOS = ("model.name=resnet20", "model.width=4", "resize=none", "image_size=16", "batch_size=4", "epochs=3",
          "method=dense", "device=cpu", "workers=0")  # fmt: skip


def photos(folder: Path, *settings: str) -> RunConfig:
    return apply_settings(get_recipe("folder"), [f"data.path={folder}", *PHOTOS, *settings])


def edit(run: Path, **data: object) -> None:
    content = json.loads((run / "config.json").read_text())
    content["data"].update(data)
    (run / "config.json").write_text(json.dumps(content))


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A run that stopped after its first epoch."""
    with pytest.raises(KeyboardInterrupt):
        run(tiny("method=dense", "validation_fraction=0.2"), tmp_path / "run", progress=StopAfter(1))
    return tmp_path / "run"


@pytest.mark.parametrize(("name", "value"), [("validation_fraction", 0.4), ("limit", 48), ("flip", True)])
def test_edited_settings_of_the_data_are_refused(cut: Path, name: str, value: object) -> None:
    before = (cut / "checkpoint.pt").read_bytes()
    edit(cut, **{name: value})
    with pytest.raises(CheckpointError, match=rf"data\.{name} is .* in the checkpoint, {value}"):
        do(read_config(cut), cut, resume=True)
    assert (cut / "checkpoint.pt").read_bytes() == before


def test_where_and_how_data_are_read_may_change(cut: Path) -> None:
    edit(cut, workers=0, memory_gb=3.0)
    assert do(read_config(cut), cut, resume=True).summary["epochs"] == 4


def grow(folder: Path) -> None:
    for number, path in enumerate(sorted((folder / "train").rglob("*.png"))):
        shutil.copy(path, path.with_name(f"new{number}.png"))


def relabel(folder: Path) -> None:
    classes = sorted(path for path in (folder / "train").iterdir())
    one, other = (sorted(path.glob("*.png"))[0] for path in classes[:2])
    one.rename(classes[1] / "moved.png")
    other.rename(classes[0] / "moved.png")


def rename(folder: Path) -> None:
    path = sorted((folder / "val").rglob("*.png"))[0]
    path.rename(path.with_name("zz.png"))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "more images": (grow, r"contents\.train\.digest is .*contents\.train\.samples is \d+ in the checkpoint, \d+"),
    "other labels": (relabel, r"contents\.train\.digest"),
    "another test image": (rename, r"contents\.evaluation\.digest"),
}


@pytest.mark.parametrize("memory_gb", [slow(4.0), 0.0])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_image_folders_are_refused(tmp_path: Path, change: str, memory_gb: float) -> None:
    """In memory and read from files."""
    folder = tmp_path / "photos"
    write_image_folder(folder, 6)
    config = photos(folder, f"memory_gb={memory_gb}")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", progress=StopAfter(1))
    moved = tmp_path / "moved"
    folder.rename(moved)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(moved)))
    act, message = CHANGES[change]
    act(moved)
    with pytest.raises(CheckpointError, match=rf"{message}.*bring those back"):
        do(config, tmp_path / "run", resume=True)


def test_a_folder_that_was_only_moved_goes_on(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "photos", 6)
    with pytest.raises(KeyboardInterrupt):
        run(photos(tmp_path / "photos"), tmp_path / "run", progress=StopAfter(1))
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert do(photos(tmp_path / "moved"), tmp_path / "run", resume=True).summary["epochs"] == 3


def test_a_changed_text_is_refused(tmp_path: Path) -> None:
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text("a b c a b d\n" * 60)
    settings = (
        "batch_size=4",
        "bptt=5",
        "epochs=2",
        "method=dense",
        "device=cpu",
    )
    config = apply_settings(get_recipe("ptb-lstm-small"), [f"data.path={tmp_path}", *settings])
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "run", progress=StopAfter(1))
    text = (tmp_path / "train.txt").read_text()
    (tmp_path / "train.txt").write_text("b a" + text[3:])
    with pytest.raises(CheckpointError, match=r"contents\.train\.digest"):
        do(config, tmp_path / "run", resume=True)


def test_changed_masks_are_seen(tmp_path: Path) -> None:
    from apical.data import open_voc

    write_voc(tmp_path)
    before = open_voc(tmp_path, "train").described()
    path = tmp_path / "SegmentationClass" / f"{open_voc(tmp_path, 'train').names[0]}.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert open_voc(tmp_path, "train").described() != before


def test_loaders_of_ones_own_are_known_by_their_batches(tmp_path: Path) -> None:
    from apical.training import Loaders, train
    from tiny_run import TinyGrower, TinyLoader, tiny_config, tiny_model

    def go(samples: int, **options: bool) -> None:
        loaders = Loaders(TinyLoader(samples), TinyLoader(shuffle=False))
        train(tiny_model(), TinyGrower, loaders, tiny_config(epochs=1), tmp_path, progress=Recorder(), **options)

    go(40)
    with pytest.raises(CheckpointError, match=r"contents\.train\.batches is 4 in the checkpoint, 6 in this run"):
        go(60, resume=True)
    go(40, resume=True)
