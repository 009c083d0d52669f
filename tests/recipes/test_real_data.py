"""The recipes on the data sets that they are meant for, a few images and one epoch each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apical.recipes import apply_settings, get_recipe
from apical.runs import run
from apical.training import make_progress

ROOT = Path(os.environ.get("APICAL_DATA") or "/nonexistent")

SETTINGS: dict[str, tuple[str, list[str]]] = {
    "fashion-mnist": ("fashion-mnist", ["limit=256", "model.width=4"]),
    "cifar10-resnet20": ("cifar10", ["limit=256", "model.width=4"]),
    "cifar10-vgg16": ("cifar10", ["limit=256", "model.width=4", "budget=30% params"]),
    "imagenet-mobilenetv1": (
        "imagenette128",
        ["limit=64", "image_size=32", "resize=40", "model.width_mult=0.25", "amp=none", "growth.divisor=1"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SETTINGS)
def test_a_recipe_runs_on_its_data(recipe: str, tmp_path: Path) -> None:
    folder, settings = SETTINGS[recipe]
    if not (ROOT / folder).is_dir():
        pytest.skip(f"needs {folder} in the folder that APICAL_DATA names")
    changed = [f"data.path={ROOT / folder}", "epochs=4", "batch_size=32", "device=cpu", *settings]
    result = run(apply_settings(get_recipe(recipe), changed), tmp_path, progress=make_progress("quiet"))
    assert 0 < result.summary["test_accuracy"] <= 1
    assert (tmp_path / "report.html").exists()
    assert result.summary["num_params"] < result.summary["template"]["num_params"]
