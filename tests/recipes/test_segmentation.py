"""Segmentation runs on a tiny data set: whole folders, resume, growth everywhere, export, pictures, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import apical
from apical.cli import main
from apical.errors import ConfigError, DataError
from apical.growth._components import unit_strengths
from apical.models import DeepLabV3
from apical.recipes import RunConfig, apply_settings, get_recipe, recipes
from apical.recipes._task_kind import task_kind
from apical.runs import load_run, load_serving, read_config
from apical.training import Interrupted, TrainingResult
from recipes.test_run import do
from voc_folder import write_voc

TINY = ("crop=24", "epochs=4", "batch_size=4", "model.width=8", "model.head_width=16", "divisor=1", "device=cpu",
        "amp=none", "channels_last=false", "eval_every=2", "lr=0.05", "pictures=2")  # fmt: skip

FACTS = {"classes": ["ground", "red thing", "green thing", "blue thing"], "image_shape": [3, 24, 24]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("voc"))


def tiny(folder: Path, *settings: str) -> RunConfig:
    return apply_settings(get_recipe("camvid-deeplabv3-small"), [*TINY, f"data.path={folder}", *settings])


@pytest.fixture(scope="module")
def grown(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return do(tiny(folder), tmp_path_factory.mktemp("runs") / "grown")


def test_a_run_leaves_a_whole_folder_within_its_budget(grown: TrainingResult) -> None:
    summary = json.loads((grown.folder / "summary.json").read_text())
    assert 0.49 <= summary["macs_fraction"] <= 0.505
    assert 0 <= summary["test_miou"] <= 1
    assert 0 < summary["test_pixel_accuracy"] <= 1
    assert (summary["task"], summary["test_samples"], summary["test_split"]) == ("segmentation", 5, "test")
    assert summary["data_in_memory"]
    history = [json.loads(line) for line in (grown.folder / "history.jsonl").read_text().splitlines()]
    assert [record["eval_miou"] is None for record in history] == [True, False, True, False]
    structure = apical.trace(grown.model, torch.zeros(1, 3, 24, 24))
    assert structure.macs() == summary["macs"]


def test_everything_but_the_last_layers_grows(grown: TrainingResult) -> None:
    template = grown.summary["template"]
    assert [part["name"] for part in template["frozen"]] == ["classifier.4", "aux_classifier.4"]
    assert all("reaches the model's output" in part["reason"] for part in template["frozen"])
    first, last = grown.history[0]["widths"], grown.history[-1]["widths"]
    for part, count in {
        "backbone.": 12,
        "classifier.0.convs.": 5,
        "classifier.0.project": 1,
        "classifier.1": 1,
    }.items():
        names = [name for name in template["widths"] if name.startswith(part)]
        assert len(names) == count
        inner = [name for name in names if template["roles"][name] == "inner"]
        moved = [name for name in inner if last.get(name) != first[name] or last[name] < template["widths"][name]]
        assert moved, part
    assert any(last[name] > first[name] for name in last)
    assert any(last[name] < template["widths"][name] for name in last)


def test_inspect_names_what_is_frozen_and_groups_every_branch() -> None:
    kwargs = json.dumps({"depth": 18, "num_classes": 5, "width": 4, "head_width": 8, "aux": True})
    result = CliRunner().invoke(
        main, ["inspect", "apical.models:DeepLabV3", "--input", "1x3x17x25", "--kwargs", kwargs, "--json"]
    )
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    assert [part["name"] for part in content["frozen"]] == ["classifier.4", "aux_classifier.4"]
    groups = [group["name"] for group in content["groups"]]
    assert {f"classifier.0.convs.{i}.{int(i == 4)}" for i in range(5)} <= set(groups)
    assert {"classifier.0.project.0", "classifier.1", "aux_classifier.0", "backbone.conv1"} <= set(groups)
    assert content["least_macs"] < 0.05 * content["macs"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "uniform"])
def test_other_methods_run_too(method: str, folder: Path, tmp_path: Path) -> None:
    result = do(tiny(folder, f"method={method}", "epochs=1", "pictures=0"), tmp_path)
    assert result.summary["macs_fraction"] == 1 if method == "dense" else result.summary["macs_fraction"] <= 0.5


def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(folder, "memory_gb=0", "workers=2", "pictures=0", "epochs=3")
    whole = do(config, tmp_path / "whole")
    assert not whole.summary["data_in_memory"]

    from apical.training import _run

    original = _run._Run.one_epoch

    def stopping(self: Any) -> None:
        original(self)
        if len(self.history) == 2:
            raise Interrupted("stopped", "SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(_run._Run, "one_epoch", stopping)
        with pytest.raises(Interrupted):
            do(config, tmp_path / "stopped")
    resumed = do(read_config(tmp_path / "stopped"), tmp_path / "stopped", resume=True)
    assert [r["train_loss"] for r in resumed.history] == [r["train_loss"] for r in whole.history]
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert resumed.summary["test_miou"] == whole.summary["test_miou"]


@pytest.mark.slow
def test_memory_or_files_is_the_same_run(folder: Path, tmp_path: Path) -> None:
    losses = []
    for memory, workers in ((4, 0), (0, 3)):
        config = tiny(folder, f"memory_gb={memory}", f"workers={workers}", "epochs=1", "method=dense", "pictures=0")
        losses.append(do(config, tmp_path / str(memory)).history[0]["train_loss"])
    assert losses[0] == losses[1]


def test_growing_from_a_trained_network_keeps_its_strongest_channels(folder: Path, tmp_path: Path) -> None:
    do(tiny(folder, "method=dense", "epochs=1", "pictures=0"), tmp_path / "dense")
    weights = tmp_path / "dense" / "model.safetensors"
    settings = (f"model.initial_weights={weights}", "seed_style=pretrained", "seed_fraction=0.3", "pictures=0",
                "growth.interval_unit=epochs")  # fmt: skip
    result = do(tiny(folder, *settings, "epochs=3"), tmp_path / "grown")
    assert 0.49 <= result.summary["macs_fraction"] <= 0.505
    assert result.history[0]["macs_fraction"] < 0.2
    assert all(record["born"] == 0 for record in result.history)  # whatever comes has been trained before
    assert sum(record["returned"] for record in result.history) > 0
    structure = result.method.structure
    template = task_kind("segmentation").template(read_config(tmp_path / "dense").model, FACTS)
    trained = apical.load(template, tmp_path / "dense")
    ranks = {group.name: unit_strengths(trained, group).argsort(descending=True) for group in structure.groups}
    grower = apical.Grower(
        trained, torch.optim.SGD(trained.parameters(), lr=0.1), torch.zeros(1, 3, 24, 24), "50% macs", 3,
        seed_style="pretrained", seed_fraction=0.3, structure=structure,
    )  # fmt: skip
    for name, kept in grower.state_dict()["keep"].items():
        assert sorted(ranks[name][: len(kept)].tolist()) == kept
        assert len(kept) == result.history[0]["widths"][name]


@pytest.mark.slow
def test_export_leaves_the_auxiliary_head_out(grown: TrainingResult, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file = tmp_path / "net.onnx"
    arguments = ["export", str(grown.folder), "--format", "onnx", "--out", str(file), "--input", "1x3x24x40"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": torch.zeros(2, 3, 24, 40).numpy()})
    assert logits.shape == (2, 4, 24, 40)


def test_a_saved_run_can_be_loaded_with_or_without_the_auxiliary_head(grown: TrainingResult, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        trained, full, _ = load_run(grown.folder)
        bare, full_bare, _ = load_serving(grown.folder)
        assert set(trained(images)) == set(full(images)) == {"out", "aux"}
        assert set(bare(images)) == set(full_bare(images)) == {"out"}
        assert torch.allclose(bare(images)["out"], trained(images)["out"], rtol=0, atol=1e-6)
        apical.save(bare, tmp_path)
        options = {"depth": 18, "num_classes": 4, "width": 8, "head_width": 16, "rates": (3, 6, 9)}
        loaded = apical.load(DeepLabV3(**options), tmp_path).eval()
        values = loaded.state_dict()
        assert all(torch.equal(value, values[name]) for name, value in bare.state_dict().items())
        assert torch.allclose(loaded(images)["out"], bare(images)["out"], rtol=0, atol=1e-6)


def test_the_report_shows_image_truth_and_prediction(grown: TrainingResult) -> None:
    stored = json.loads((grown.folder / "pictures" / "pictures.json").read_text())
    assert [row["name"] for row in stored["rows"]] == ["val_0", "val_2"]
    assert {key["name"] for key in stored["legend"]} >= {"ground", "not labelled"}
    page = (grown.folder / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 6
    assert 'alt="truth: ' in page
    assert "What could not grow" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_truth_and_prediction_are_drawn_in_the_colours_of_the_masks(grown: TrainingResult, folder: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    with pillow.open(grown.folder / "pictures" / "0-truth.png") as drawn, \
            pillow.open(folder / "SegmentationClass" / "val_0.png") as mask:  # fmt: skip
        colours, labels = drawn.convert("RGB"), mask.copy()
        for at in ((5, 0), (5, 20), (16, 12)):
            label = labels.getpixel(at)
            expected = (255, 255, 255) if label == 255 else tuple(mask.getpalette()[3 * label : 3 * label + 3])
            assert colours.getpixel(at) == expected


@pytest.mark.slow
def test_overwriting_removes_the_pictures_of_the_run_before(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    do(tiny(folder, "epochs=1", "method=dense"), out)
    assert (out / "pictures").is_dir()
    do(tiny(folder, "epochs=1", "method=dense", "pictures=0"), out, overwrite=True)
    assert not (out / "pictures").exists()
    assert "<img" not in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_model_that_returns_a_tensor_will_do(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", sizes=((24, 32),))
    config = tiny(folder, "epochs=1", "method=uniform", "crop=16")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, name="UNet", options={"width": 4}))
    result = do(config, tmp_path / "run")
    assert result.summary["test_samples"] == 5
    assert result.summary["macs_fraction"] <= 0.5


def test_the_test_list_is_read_where_it_has_masks(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc")
    for path in (folder / "SegmentationClass").glob("test_*.png"):
        path.unlink()
    config = tiny(folder)
    data = task_kind("segmentation").prepare(config.data, config.training)
    assert data.loaders.test is None
    assert data.notes["test_split"] == "val"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["data.path=/nothere"], DataError, "/nothere is not a folder"),
        (["train_list=trainval"], DataError, "trainval.txt does not exist; the lists are test, train, val"),
        (["num_classes=6"], DataError, "names 4 classes, num_classes is 6"),
        (["ignore_label=2"], DataError, r"once each, beside the ignore label 2, got \[0, 1, 3\]"),
        (["batch_size=1"], ConfigError, "cannot be normalised over one image"),
        (["batch_size=13"], ConfigError, "12 images do not fill one batch of 13"),
        (["model.num_classes=7"], ConfigError, r"returns \{'out': \(1, 7, 24, 24\).* expected logits \(1, 4, 24, 24\)"),
        (["crop=4", "scale=2,1"], ConfigError, "crop=4, expected at least 8; scale="),
        (["ignore_label=300"], ConfigError, "ignore_label=300, expected 0 to 255"),
        (["ignore_label=254"], DataError, "has the value 255; expected classes 0 to 3, or 254"),
    ],
)
def test_refusals(settings: list[str], error: type[Exception], message: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        do(tiny(folder, *settings), tmp_path)


def test_the_full_recipes_have_what_the_paper_says() -> None:
    for name in ("voc-deeplabv3-resnet101", "voc-deeplabv3-resnet50"):
        assert name in recipes()
        config = get_recipe(name)
        assert config.training.schedule.name == "poly"
        assert (config.data.crop, config.data.scale, config.data.ignore_label) == (513, (0.5, 2.0), 255)
        with torch.device("meta"):
            model = getattr(apical.models, config.model.name)(21, **config.model.options)
        assert isinstance(model, nn.Module)
        assert model.aux_classifier is not None


def test_a_class_cannot_be_ignored(tmp_path: Path) -> None:
    folder = write_voc(tmp_path / "voc", names=None)
    with pytest.raises(ConfigError, match="ignore_label=2 is one of the 4 classes"):
        do(tiny(folder, "ignore_label=2", "num_classes=4"), tmp_path / "run")
