"""Runs of recipes that are stopped by a signal in the middle of an epoch, for test_within_epoch.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.export._trace  # what tracing imports, once for all that are forked

from apical.recipes import RunConfig, apply_settings, get_recipe
from apical.runs import read_config, run
from apical.training import Interrupted, _run, processes
from data.layout_writers import encode, random_images, write_parquet
from photo_folder import write_image_folder
from tiny_run import Recorder
from voc_folder import write_voc

PHOTOS = ("model.name=resnet20", "model.width=4", "image_size=8", "resize=10", "memory_gb=0",
          "batch_size=4", "amp=none", "flip=true", "random_resized_crop=true")  # fmt: skip
MASKS = ("crop=24", "batch_size=4", "model.width=8", "model.head_width=16", "divisor=1", "amp=none", "lr=0.05",
         "channels_last=false", "pictures=0", "memory_gb=0")  # fmt: skip
TEXT = ("model.embedding_size=12", "model.hidden_sizes=16,12", "model.dropout=0.3", "bptt=6", "batch_size=4", "lr=6",
        "eval_streams=2", "growth.interval_unit=steps", "growth.interval=4")  # fmt: skip

# Recipe, settings, and the step of the second epoch in which the signal comes.
CASES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "folder": ("folder", (*PHOTOS, "workers=0", "ema_decay=0.5"), 2),
    "parquet": ("folder", (*PHOTOS, "workers=2"), 3),
    "masks": ("camvid-deeplabv3-small", (*MASKS, "workers=2"), 2),
    "text": ("ptb-lstm-small", TEXT, 13),
}


def write_data(root: Path) -> dict[str, Path]:
    """What each case reads."""
    pytest.importorskip("PIL")
    write_image_folder(root / "folder", 8, sizes=((12, 12), (14, 11)))
    for split, count in (("train", 20), ("validation", 4)):
        content = [encode(image) for image in random_images(count)]
        path = root / "parquet" / "data" / f"{split}-00000-of-00001.parquet"
        write_parquet(path, content, [number % 3 for number in range(count)], row_group_size=3)
    write_voc(root / "masks", {"train": 16, "val": 4, "test": 4})
    (root / "text").mkdir()
    for split, lines in (("train", 120), ("valid", 20), ("test", 20)):
        words = [f"a w{number % 7} b w{number * number % 5} ." for number in range(lines)]
        (root / "text" / f"{split}.txt").write_text("\n".join(words) + "\n")
    return {name: root / name for name in CASES}


class StopAt(Recorder):
    """Sends SIGTERM to this process in a step of an epoch."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.at = (epoch, step)

    def step(self, epoch: int, step: int, steps: int) -> None:
        super().step(epoch, step, steps)
        if (epoch, step) == self.at:
            assert step < steps - 1, "in the middle"
            signal.raise_signal(signal.SIGTERM)


def config(case: str, data: str) -> RunConfig:
    recipe, settings, _ = CASES[case]
    return apply_settings(get_recipe(recipe), [f"data.path={data}", "device=cpu", "epochs=3", *settings])


def once(folder: str, case: str, data: str, what: str) -> int:
    """A run that is not disturbed (``whole``), is stopped (``cut``) or goes on (``resumed``)."""
    _run.STEPS_PER_QUESTION = 1
    out, step = Path(folder) / ("whole" if what == "whole" else "cut"), CASES[case][2]
    progress: Any = StopAt(2, step) if what == "cut" else Recorder()
    try:
        if what == "resumed":
            result = run(read_config(out), out, resume=True, progress=progress)
        else:
            result = run(config(case, data), out, progress=progress)
    except Interrupted as stopped:
        print(stopped)
        return stopped.exit_code
    content = {"model": result.model.state_dict(), "history": result.history, "messages": progress.messages}
    torch.save(content, Path(folder) / f"{what}-{processes().rank}-{os.environ.get('WORLD_SIZE', 1)}.pt")
    return 0
