"""Starting from weights in a file."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from apical.cli import main
from apical.errors import ApicalError, ConfigError
from apical.models import CifarResNet, DeepLabV3, ResNet
from apical.recipes import RunConfig, apply_settings, get_recipe
from apical.runs import run
from apical.runs._weights import load_initial_weights_, read_weights
from apical.training import TrainingResult, make_progress
from apical.training._progress import SilentProgress
from changed_tree import CHANGES, change
from data.test_any_damage import DAMAGES, damage
from tiny_run import assert_same_run


def deeplab(classes: int = 4, aux: bool = True, width: int = 4) -> DeepLabV3:
    return DeepLabV3(18, num_classes=classes, aux=aux, width=width, head_width=4)


def same(a: nn.Module, b: nn.Module, but: tuple[str, ...] = ()) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name]) for name, value in a.state_dict().items() if name not in but)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "safetensors"])
def test_the_same_network_is_filled(wrapper: str | None, tmp_path: Path) -> None:
    source, target = deeplab(), deeplab()
    content: Any = source.state_dict()
    path = tmp_path / ("w.safetensors" if wrapper == "safetensors" else "w.pt")
    if wrapper == "safetensors":
        save_file(content, path)
    else:
        torch.save(content if wrapper is None else {wrapper: content, "epoch": 3}, path)
    assert not same(source, target)
    assert load_initial_weights_(target, path, 4) == []
    assert same(source, target)


def test_heads_of_another_number_of_classes_keep_their_initialisation(tmp_path: Path) -> None:
    source, target = deeplab(21), deeplab(4)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    torch.save(source.state_dict(), tmp_path / "w.pt")
    notes = load_initial_weights_(target, tmp_path / "w.pt", 4)
    heads = ("aux_classifier.4.bias", "aux_classifier.4.weight", "classifier.4.bias", "classifier.4.weight")
    assert notes == [f"{', '.join(heads[:3])} and {heads[3]} keep their initialisation: the file has 21 outputs, "
                     "the model 4"]  # fmt: skip
    assert same(source, target, but=heads)
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in heads)


def test_a_classifier_fills_the_backbone(tmp_path: Path) -> None:
    source, target = ResNet(18, num_classes=10, width=4), deeplab()
    torch.save(source.state_dict(), tmp_path / "w.pt")
    (note,) = load_initial_weights_(target, tmp_path / "w.pt", 4)
    assert "fills the backbone only" in note
    assert "fc.bias and fc.weight of the file is not used" in note
    assert torch.equal(target.backbone.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_everything_else_must_fit_and_nothing_is_loaded_if_not(tmp_path: Path) -> None:
    target = deeplab()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    torch.save(deeplab(width=8).state_dict(), tmp_path / "wide.pt")
    torch.save(deeplab(aux=False).state_dict(), tmp_path / "no-aux.pt")
    torch.save({**deeplab().state_dict(), "extra": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(
        ConfigError, match=r"conv1.weight is \(8, 8, 3, 3\) in the file and \(4, 4, 3, 3\) in the model; .* more"
    ):
        load_initial_weights_(target, tmp_path / "wide.pt", 4)
    with pytest.raises(ConfigError, match=r"aux_classifier.0.weight is missing; .* and 2 more"):
        load_initial_weights_(target, tmp_path / "no-aux.pt", 4)
    with pytest.raises(ConfigError, match="extra is not in the model"):
        load_initial_weights_(target, tmp_path / "more.pt", 4)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


class _Harmful:
    def __reduce__(self) -> Any:
        return (print, ("this must not run",))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {"missing.pt": None, "torn.pt": b"PK\x03\x04 torn", "torn.safetensors": b"\xff" * 20, "empty.pt": b""}
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"{name} (does not exist|cannot be read)"):
            load_initial_weights_(deeplab(), tmp_path / name, 4)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ConfigError, match="holds no state_dict"):
        load_initial_weights_(deeplab(), tmp_path / "list.pt", 4)
    torch.save({"model": _Harmful()}, tmp_path / "code.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(_Harmful(), protocol=2))
    for name in ("code.pt", "pickle.pt"):
        with pytest.raises(ConfigError, match="more than tensors and plain containers"):
            load_initial_weights_(deeplab(), tmp_path / name, 4)
    assert "this must not run" not in capsys.readouterr().out


def do(config: RunConfig, out: Path) -> TrainingResult:
    return run(config, out, progress=make_progress("quiet"))


def test_a_run_starts_from_the_file_and_says_so_in_its_command(tmp_path: Path) -> None:
    tiny = ["data.path=synthetic", "limit=32", "crop_padding=0", "batch_size=16", "epochs=1", "model.depth=8",
            "model.width=8", "device=cpu", "method=dense"]  # fmt: skip
    first = do(apply_settings(get_recipe("digits"), tiny), tmp_path / "first")
    weights = tmp_path / "first" / "model.safetensors"
    frozen = [*tiny, f"model.initial_weights={weights}", "lr=1e-12", "weight_decay=0"]
    second = do(apply_settings(get_recipe("digits"), frozen), tmp_path / "second")
    parameters = dict(second.model.named_parameters())
    assert all(torch.allclose(value, parameters[name]) for name, value in first.model.named_parameters())
    assert f"--set model.initial_weights={weights}" in second.summary["command"]


class Stopped(SilentProgress):
    """Stops a run behind its first checkpoint, or the one of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.stop_at = epoch

    def start(self, *_: Any) -> None:
        if self.stop_at == 0:
            raise KeyboardInterrupt

    def epoch(self, record: Any) -> None:
        if record["epoch"] == self.stop_at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_goes_on_without_the_weights_that_it_began_with(epoch: int, tmp_path: Path) -> None:
    tiny = ["data.path=synthetic", "limit=32", "crop_padding=0", "batch_size=16", "epochs=2", "model.depth=8",
            "model.width=8", "device=cpu"]  # fmt: skip
    weights = tmp_path / "weights.pt"
    torch.save(CifarResNet(depth=8, width=8, num_classes=10, in_channels=3).state_dict(), weights)
    config = apply_settings(get_recipe("digits"), [*tiny, f"model.initial_weights={weights}",
                            "growth.seed_style=pretrained", "growth.seed_fraction=1"])  # fmt: skip
    whole = do(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "cut", progress=Stopped(epoch))
    weights.unlink()
    resumed = run(config, tmp_path / "cut", resume=True, progress=make_progress("quiet"))
    assert_same_run(whole, resumed)
    for name in ("checkpoint.pt", "checkpoint.prev.pt", "summary.json", "history.jsonl"):
        (tmp_path / "cut" / name).unlink()
    with pytest.raises(ConfigError, match=r"weights\.pt does not exist\. .*before its first checkpoint, so it begins"):
        run(config, tmp_path / "cut", resume=True, progress=make_progress("quiet"))


@pytest.mark.parametrize(
    "content",
    [b"hello world\n", b"c\n", b"(", b".", b"}\n", b"\x80\x02", b"1,2,3\n4,5,6\n", b"{}", b"\x80\x02}q\x00(X"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_texts_are_no_weights(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"weights\.\w+ (cannot be read|holds)"):
        read_weights(path)


def test_pipes_and_numbered_tensors_are_no_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    torch.save({0: torch.zeros(2)}, tmp_path / "numbered.pt")
    for name in ("pipe.pt", "numbered.pt"):
        with pytest.raises(ConfigError, match=name):
            read_weights(tmp_path / name)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def write(content: Any, path: Path, kind: str) -> None:
    """In one of the formats that people have; safetensors holds tensors only."""
    if kind == "safetensors":
        tensors = {str(k): v.contiguous() for k, v in content.items() if isinstance(v, Tensor) and v.numel() < 10**7}
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    else:
        wrapped = {"state_dict": content} if kind == "wrapped" else content
        torch.save(wrapped, path, _use_new_zipfile_serialization=kind != "legacy")


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=3 * settings().max_examples, phases=[Phase.explicit, Phase.generate])
@given(
    kind=st.sampled_from(["safetensors", "zip", "legacy", "wrapped"]),
    changes=st.lists(CHANGES, max_size=2),
    damages=st.lists(
        st.tuples(st.sampled_from(DAMAGES), st.just(0), st.floats(0, 1), st.integers(0, 9999)), max_size=2
    ),
)
def test_any_damage_to_weights(tmp_path: Path, kind: str, changes: list[Any], damages: list[Any]) -> None:
    """They are loaded as a whole or not at all."""
    folder, model = tmp_path / "weights", small()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth")
    content = dict(small().state_dict())
    for one in changes:
        change(content, *one)
    write(content, path, kind)
    for one in damages:
        damage(folder, *one)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        load_initial_weights_(model, path, 5)
    except ApicalError:
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(torch.zeros(1, 3, 4, 4))


def train(*arguments: str, status: int = 0) -> str:
    """What the command says about a tiny run."""
    tiny = ("data.path=synthetic", "limit=64", "batch_size=32", "model.depth=8", "model.width=4", "epochs=1")
    settings = [part for setting in tiny for part in ("--set", setting)]
    result = CliRunner().invoke(main, ["train", "digits", *settings, "--quiet", *arguments])
    assert result.exit_code == status, result.output
    return result.output


def test_a_run_whose_network_does_not_fit_is_refused_in_a_sentence(tmp_path: Path) -> None:
    train("--out", str(tmp_path / "grown"))
    train("--out", str(tmp_path / "dense"), "--method", "dense")
    for weights in (tmp_path / "grown", tmp_path / "grown" / "model.safetensors"):
        said = train("--from", str(weights), "--out", str(tmp_path / "again"), status=2)
        assert "is a run of the recipe digits (model CifarResNet, depth=8, width=4), by method grown, wh" in said
        assert "with --method dense" in said
        assert "in the file" not in said, "no list of tensors"
    said = train("--from", str(tmp_path / "dense"), "--set", "model.width=8", "--out", str(tmp_path / "x"), status=2)
    assert "width=4); its weights do not fit this CifarResNet" in said


def test_from_on_the_command_line_takes_a_file_or_the_folder_of_a_dense_run(tmp_path: Path) -> None:
    train("--method", "dense", "--out", str(tmp_path / "dense"))
    for weights in (tmp_path / "dense", tmp_path / "dense" / "model.safetensors"):
        train("--from", str(weights), "--out", str(tmp_path / "compact"), "--overwrite")
        config = json.loads((tmp_path / "compact" / "config.json").read_text())
        assert config["model"]["initial_weights"] == str(weights)
        assert (config["growth"]["seed_style"], config["growth"]["seed_fraction"]) == ("pretrained", 1.0)
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        read_weights(tmp_path)
    shown = CliRunner().invoke(main, ["train", "--resume", str(tmp_path / "compact"), "--from", "x.pt"])
    assert (shown.exit_code, "leave out --from" in shown.output) == (2, True)
