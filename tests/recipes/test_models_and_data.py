"""Models by name, data by folder, and what is said when they do not fit."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apical.errors import ApicalError, ConfigError, DataError
from apical.recipes import DataConfig, ModelConfig, build_model
from apical.recipes._model import check_outputs, import_callable, usual_input
from apical.recipes.tasks.classification import prepare_data
from apical.training import TrainingConfig
from photo_folder import write_image_folder
from torchvision_shim import has_torchvision, import_torchvision

TRAINING = TrainingConfig(epochs=1, batch_size=8, device="cpu")


def test_the_data_decides_classes_and_channels() -> None:
    model = build_model(ModelConfig("resnet20", {"width": 4}), num_classes=3, in_channels=1)
    assert model.conv1.in_channels == 1
    assert model.fc.out_features == 3
    assert build_model(ModelConfig("CifarResNet", {"depth": 8}), num_classes=4, in_channels=3).fc.out_features == 4


def test_a_callable_of_the_current_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets_xyz.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, wide=2):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, wide), nn.Linear(wide, num_classes))\n"
        "def nothing():\n    return 3\n"
        "def broken():\n    raise RuntimeError('no luck')\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = build_model(ModelConfig("my_nets_xyz:net", {"wide": 5}), num_classes=7, in_channels=3)
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [5, 7]
    for name, message in {
        "my_nets_xyz:nett": "has no 'nett'; did you mean 'net'",
        "my_nets_xyz:nothing": "returns a int, expected a torch.nn.Module",
        "my_nets_xyz:broken": "cannot be built with no arguments: no luck",
        "my_nets_xyz:number": "is a int, expected something that builds",
        "my_nets_abc:net": "there is no module 'my_nets_abc'",
        ":net": "expected package.module:callable",
    }.items():
        with pytest.raises(ConfigError, match=message):
            build_model(ModelConfig(name), num_classes=7, in_channels=3)
    with pytest.raises(ConfigError, match=r"expected package\.module:callable"):
        import_callable("my_nets_xyz")


def test_only_a_library_that_is_built_for_torch_is_told_to_fit_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_nets_bad", "torchvision"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match=r"my_nets_bad does not load: RuntimeError: operator.*Import it in") as caught:
        import_callable("my_nets_bad:net")
    assert "pip" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"torchvision does not load: .*may not fit torch .*pip install --upgrade"):
        import_callable("torchvision:resnet18")


def test_wrong_names_and_arguments_are_suggested() -> None:
    with pytest.raises(ConfigError, match=r"no model 'resnet21'; did you mean 'resnet20'"):
        build_model(ModelConfig("resnet21"), num_classes=10, in_channels=3)
    with pytest.raises(ConfigError, match=r"takes no argument 'widht'; did you mean 'width'"):
        build_model(ModelConfig("resnet20", {"widht": 8}), num_classes=10, in_channels=3)
    with pytest.raises(ConfigError, match="depth must be 6n"):
        build_model(ModelConfig("CifarResNet", {"depth": 9}), num_classes=10, in_channels=3)


@pytest.mark.zoo
@pytest.mark.skipif(not has_torchvision(), reason="needs torchvision")
def test_torchvision_models_by_name() -> None:
    import_torchvision()
    assert build_model(ModelConfig("torchvision:resnet18"), num_classes=7, in_channels=3).fc.out_features == 7
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build_model(ModelConfig("torchvision:resnet118"), num_classes=7, in_channels=3)


@pytest.mark.zoo
@pytest.mark.skipif(not has_torchvision(), reason="needs torchvision")
@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("torchvision:resnet18", {}, (1, 3, 224, 224)),
        ("torchvision:ResNet", {}, None),
        ("timm:resnet18", {}, (1, 3, 224, 224)),
        ("timm:vit_tiny_patch16_224", {"img_size": 64, "in_chans": 1}, (1, 1, 64, 64)),
        ("my_package:Net", {}, None),
    ],
)
def test_the_usual_image_of_a_model_known_by_name(
    name: str, options: dict[str, Any], shape: tuple[int, ...] | None
) -> None:
    import_torchvision()
    model = nn.Identity()
    if name.startswith("timm:"):
        model = pytest.importorskip("timm").create_model(name.removeprefix("timm:"), **options)
    assert usual_input(name, model, options) == shape


@pytest.mark.zoo
@pytest.mark.skipif(not has_torchvision(), reason="needs torchvision")
def test_timm_models_by_name() -> None:
    import_torchvision()
    pytest.importorskip("timm")
    model = build_model(ModelConfig("timm:resnet18"), num_classes=7, in_channels=1)
    assert model.fc.out_features == 7
    assert model.conv1.in_channels == 1
    with pytest.raises(ConfigError, match="timm has no model"):
        build_model(ModelConfig("timm:resnet1888"), num_classes=7, in_channels=1)


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="pip install timm"):
        build_model(ModelConfig("timm:resnet18"), num_classes=7, in_channels=3)


def test_a_model_that_does_not_fit_the_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"does not run on images of shape \(1, 8, 8\)"):
        check_outputs(nn.Conv2d(3, 4, 3), torch.zeros(1, 1, 8, 8), 10, "net")
    with pytest.raises(ConfigError, match=r"returns \(1, 4, 6, 6\) for 1 image, expected logits \(1, 10\)"):
        check_outputs(nn.Conv2d(1, 4, 3), torch.zeros(1, 1, 8, 8), 10, "net")


def test_validation_images_are_held_out_and_the_test_set_kept_for_the_end() -> None:
    data = prepare_data(DataConfig("synthetic", validation_fraction=0.25, crop_padding=1, flip=True), TRAINING)
    assert data.facts["image_shape"] == [3, 16, 16]
    assert len(data.loaders.train) == 192 // 8
    assert sum(len(labels) for _, labels in data.loaders.evaluation) == 64
    assert data.loaders.test is not None
    assert sum(len(labels) for _, labels in data.loaders.test) == 256
    assert prepare_data(DataConfig("synthetic"), TRAINING).loaders.test is None


def test_images_are_normalised_by_their_own_statistics() -> None:
    data = prepare_data(DataConfig("synthetic"), TRAINING)
    images = torch.cat([images for images, _ in data.loaders.train])
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (images.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_a_limit_takes_a_part_of_both_splits() -> None:
    data = prepare_data(DataConfig("synthetic", limit=40), TRAINING)
    assert sum(len(labels) for _, labels in data.loaders.train) == 40
    assert sum(len(labels) for _, labels in data.loaders.evaluation) == 40


FOLDER = DataConfig("", image_size=8, resize=10, random_resized_crop=True, flip=True, workers=0)


@pytest.mark.parametrize("memory_gb", [4.0, 0.0])
def test_a_folder_of_photographs_is_kept_in_memory_or_streamed(tmp_path: Path, memory_gb: float) -> None:
    write_image_folder(tmp_path, images=6, sizes=((12, 14), (16, 12)))
    config = dataclasses.replace(FOLDER, path=str(tmp_path), memory_gb=memory_gb)
    data = prepare_data(config, TRAINING)
    assert data.notes == {"data_in_memory": memory_gb > 0}
    assert data.facts == {"classes": ["cat", "dog"], "image_shape": [3, 8, 8]}
    state = data.loaders.train.state_dict()
    torch.manual_seed(1)  # the generator of a stream that reads in this process; checkpoints keep it
    first, second = ([b.clone() for b, _ in data.loaders.train] for _ in range(2))
    assert first[0].shape == (8, 3, 8, 8)
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    data.loaders.train.load_state_dict(state)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, [b for b, _ in data.loaders.train], strict=True))
    evaluations = [[b.clone() for b, _ in data.loaders.evaluation] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*evaluations, strict=True))


def test_streamed_validation_and_foreign_states_are_refused(tmp_path: Path) -> None:
    write_image_folder(tmp_path, images=6)
    config = dataclasses.replace(FOLDER, path=str(tmp_path), memory_gb=0.0)
    with pytest.raises(ConfigError, match="memory_gb"):
        prepare_data(dataclasses.replace(config, validation_fraction=0.1), TRAINING)
    with pytest.raises(ConfigError, match="do not fill one batch"):
        prepare_data(config, dataclasses.replace(TRAINING, batch_size=64))
    in_memory = prepare_data(dataclasses.replace(config, memory_gb=1.0), TRAINING)
    with pytest.raises(ConfigError, match="memory_gb"):
        prepare_data(config, TRAINING).loaders.train.load_state_dict(in_memory.loaders.train.state_dict())


def test_wrong_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APICAL_DATA", raising=False)
    with pytest.raises(DataError, match="--data FOLDER"):
        prepare_data(DataConfig(""), TRAINING)
    with pytest.raises(DataError, match=r"nowhere.*--data"):
        prepare_data(DataConfig("nowhere"), TRAINING)
    with pytest.raises(DataError, match="no known layout"):
        prepare_data(DataConfig(str(tmp_path)), TRAINING)
    write_image_folder(tmp_path, images=2, sizes=((12, 14), (16, 12)))
    with pytest.raises(ApicalError, match="size"):
        prepare_data(DataConfig(str(tmp_path)), TRAINING)
