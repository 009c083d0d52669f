"""The command line: what people type, what they see, and the exit codes that programs see."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import apical as package
from apical import Grower, _atomic
from apical.cli import main
from apical.errors import CheckpointError, ProcessLostError
from apical.export import _save
from apical.models import resnet20
from apical.training import Interrupted, _run
from apical.training._checkpoint import Checkpoint, save_checkpoint
from marks import slow
from photo_folder import write_image_folder

pytestmark = pytest.mark.usefixtures("traced_once")
TINY = (
    "--set=data.path=synthetic",
    "--set=limit=64",
    "--set=batch_size=16",
    "--set=model.depth=8",
    "--set=model.width=8",
    "--device=cpu",
    "--epochs=2",
)


SHALLOW = ("--kwargs", '{"depth": 8, "width": 4}')  # of a CifarResNet, which is traced in no time


def apical(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that must not be changed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert apical("train", "digits", *TINY, "--out", folder, "--quiet").exit_code == 0
    return folder


def test_help_says_what_to_type_next() -> None:
    for arguments in (
        [],
        ["--help"],
        ["train", "--help"],
        ["inspect", "-h"],
        ["export", "--help"],
        ["report", "--help"],
    ):
        result = apical(*arguments)
        assert "apical" in result.output
        assert "Traceback" not in result.output
    assert "apical train digits" in apical("--help").output
    assert "apical train --resume" in apical("train", "--help").output


def test_training_without_a_recipe_lists_them() -> None:
    result = apical("train")
    assert result.exit_code == 0
    assert "cifar10-resnet20" in result.output
    assert "apical train digits" in result.output


def test_settings_of_a_recipe_can_be_listed() -> None:
    result = apical("train", "cifar10-resnet20", "--list-settings")
    assert "training.optimizer.lr = 0.1" in result.output
    assert "data.path = cifar10" in result.output
    assert "model.depth = 14" in apical("train", "digits", "--list-settings").output


def test_train_prints_a_line_per_epoch_and_where_the_report_is(tmp_path: Path) -> None:
    result = apical("train", "digits", *TINY, "--out", tmp_path / "a", "--method", "uniform", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert "MACs %" in result.output
    assert "report.html" in result.output
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["seed"] == 5


def test_train_json_is_an_object_per_line(tmp_path: Path) -> None:
    result = apical("train", "digits", *TINY, "--out", tmp_path / "a", "--method", "dense", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["message", "start", "epoch", "epoch", "summary"]
    assert "makes 6 training steps in all" in events[0]["text"]


def test_the_default_folder_is_named_after_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert apical("train", "digits", *TINY, "--method", "dense", "--quiet").exit_code == 0
    assert (tmp_path / "runs" / "digits" / "summary.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digit"], "did you mean 'digits'?"),
        (["train", "digits", "--set", "lr=fast"], "expected a number, got 'fast'"),
        (["train", "digits", "--set", "lr"], "expected key=value"),
        (["train", "digits", "--set", "learning_rat=1"], "no such setting"),
        (["train", "digits", "--budget", "much"], "cannot read the budget"),
        (["train", "digits", "--method", "grwn"], "did you mean 'grown'?"),
        (["train", "digits", "--device", "gpu"], "expected 'auto', 'cpu', 'cuda'"),
        (["train", "digits", "--model", "resnet21"], "did you mean 'resnet20'?"),
        (["train", "digits", "--data", "/no/such/folder"], "/no/such/folder is not a folder"),
        (["train", "folder"], "--data FOLDER"),
        (["train", "digits", "--data", "afile"], "afile is not a folder; expected one of\n  cifar"),
        (["train", "folder", "--data", "afile"], "afile is not a folder; expected one of\n  cifar"),
        (["train", "wikitext2-lstm", "--data", "afile"], "afile is not a folder; expected three text files"),
        (["train", "gpt-wikitext2", "--data", "afile"], "The recipe gpt-bytes reads the bytes of a single file"),
        (["train", "camvid-deeplabv3-small", "--data", "afile"], "expected the layout of PASCAL VOC"),
        (["train", "digits", "--from", "afile"], "expected a .safetensors file"),
        (["train", "--resume", "/no/such/run"], "expected a run folder"),
        (["train", "digits", "--resume", "x", "--epochs", "3"], "leave out RECIPE digits, --epochs"),
        (["train", "--resume", "x", "--seed", "0"], "leave out --seed"),
        (["inspect", "apical.models:resnet21", "--input", "1x3x8x8"], "did you mean 'resnet20'?"),
        (["inspect", "apical.models.resnet20", "--input", "1x3x8x8"], "did you mean 'apical.models:resnet20'?"),
        (["train", "digits", "--model", "my_nets.Net"], "did you mean 'my_nets:Net'?"),
        (["inspect", "resnet21", "--input", "1x3x8x8"], "did you mean 'resnet20'?"),
        (["inspect", "apical.models.resnet20"], "did you mean 'apical.models:resnet20'?"),
        (["inspect", "UNet"], "UNet needs an example: add --input"),
        (["inspect", "apical.models:resnet20", "--input", "1x1x8x8"], "expected input"),
        (["inspect", "apical.models:resnet20", "--input", "1x3xa"], "not like 1x3x224x224"),
        (["inspect", "apical.models:resnet20", "--input", "3:int9"], "is none of float32"),
        (["inspect", "apical.models:resnet20", "--input", "3:int64:0"], "no number of values"),
        (["inspect", "apical.models:resnet20", "--input", "3:int64:²"], "no number of values"),
        (["inspect", "digits", "--input", "1x1x8x8"], "digits is a recipe, not a model; apical plan digits"),
        (["compare", "digits", "--seeds", "1,²"], "'²' is no seed"),
        (["inspect", "apical.models:resnet20", "--input", "3", "--kwargs", "{"], "is no JSON"),
        (["inspect", "apical.models:resnet20", "--input", "3", "--kwargs", "[1]"], "is no JSON object"),
        (["inspect", "apical.models:resnet20", "--input", "3", "--kwargs", '{"depth": 3}'], "takes no argument"),
        (["export", "/no/such/run", "--format", "onnx"], "expected a run folder"),
        (["export", "/no/such/run", "--format", "tflite"], "'tflite' is not one of"),
        (["report", "/no/such/run"], "is not a run folder"),
        (["report", "a" * 300], "cannot be read: File name too long"),
        (["train", "digits", *TINY, "--out", "afile"], "afile is a file, expected a folder"),
        (["train", "digits", *TINY, "--out", "afile/deeper"], "afile is a file, expected a folder"),
        (["compare", "digits", "--methods=dense", "--seeds=0", "--out", "afile"], "afile is a file, expected a folder"),
        (["inspect", "CifarResNet", *SHALLOW, "--html", "."], "is a folder, expected a file"),
        (["inspect", "CifarResNet", *SHALLOW, "--html", "afile/x"], "afile is a file, expected a folder"),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").touch()
    result = apical(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_folder_with_a_run_is_refused_with_both_ways_out(finished: Path) -> None:
    result = apical("train", "digits", *TINY, "--out", finished, "--quiet")
    assert result.exit_code == 2
    assert f"apical train --resume {finished}" in result.stderr
    assert "--overwrite" in result.stderr


def test_one_process_alone_divides_nothing(tmp_path: Path) -> None:
    result = apical("train", "digits", *TINY, "--shard", "--out", tmp_path / "a")
    assert result.exit_code == 2
    assert "divides the model among several processes, and this is one alone. Start it as torchrun" in result.stderr
    other = apical("train", "digits", *TINY, "--shard", "--set", "channels_last=true", "--out", tmp_path / "a")
    assert "shard=true with channels_last=true, expected channels_last=false" in other.stderr
    assert "leave out --shard" in apical("train", "--resume", tmp_path, "--shard").stderr
    assert not (tmp_path / "a").exists()


def test_an_impossible_budget_says_what_can_be_reached(tmp_path: Path) -> None:
    result = apical("train", "digits", *TINY, "--budget", "0.001% macs", "--out", tmp_path / "a", "--quiet")
    assert result.exit_code == 2
    assert "the smallest that can be grown from this model costs" in result.stderr


def test_overwrite_costs_nothing_if_the_new_run_cannot_start(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for wrong in ("--budget=0.001% macs", "--from=nowhere.pt", "--set=data.path=/no/such/folder"):
        assert apical("train", "digits", *TINY, wrong, "--out", finished, "--overwrite", "--quiet").exit_code == 2
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_signal_ends_with_75_and_the_command_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("stopped by SIGTERM after epoch 1", "SIGTERM")

    monkeypatch.setattr("apical.runs.run", stopped)
    result = apical("train", "digits", "--out", tmp_path / "a")
    assert result.exit_code == 75
    assert f"apical train --resume {tmp_path / 'a'}" in result.stderr


@pytest.mark.parametrize(
    ("error", "command"),
    [
        (Interrupted("stopped by SIGTERM", "SIGTERM"), "apical train --resume {}"),
        (ProcessLostError("no sign of life of process 1"), "apical train --resume {}"),
        (CheckpointError("it already holds a run"), "(apical train --resume {})"),
        (None, "apical export {} --format onnx"),
    ],
)
def test_commands_can_be_pasted_whatever_the_folder_is_called(
    error: Exception | None, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> None:
        if error is not None:
            raise error

    monkeypatch.setattr("apical.runs.run", run)
    shown = apical("train", "digits", "--out", tmp_path / "a & b")
    assert command.format(f"'{tmp_path / 'a & b'}'") in shown.output
    saved = apical("train", "digits", "--save-config", tmp_path / "a b.json")
    assert f"apical train --config '{tmp_path / 'a b.json'}'" in saved.output


def test_ctrl_c_at_once_says_what_is_kept_and_ends_with_75(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("apical.runs.run", stopped)
    monkeypatch.setattr("apical.runs.compare", stopped)
    early = apical("train", "digits", "--out", tmp_path / "a")
    assert (early.exit_code, early.stderr) == (75, "apical: stopped by Ctrl-C\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "checkpoint.pt").touch()
    late = apical("train", "digits", "--out", tmp_path / "a")
    assert late.exit_code == 75
    assert f"{tmp_path / 'a'} holds the run as it was last saved.\nGo on with: apical train --resume" in late.stderr
    compared = apical("compare", "digits", "--methods", "grown,dense", "--out", tmp_path / "b")
    assert compared.exit_code == 75
    assert "Go on with the same command" in compared.stderr


def test_the_same_command_starts_a_run_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ("train", "digits", *TINY, "--method", "dense", "--out", tmp_path / "a", "--auto-resume")
    true_save = save_checkpoint

    def killed(folder: Path, checkpoint: Checkpoint) -> Path:
        path = true_save(folder, checkpoint)
        if checkpoint.epoch == 1:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patch:
        patch.setattr(_run, "save_checkpoint", killed)
        assert apical(*run).exit_code != 0
    again = apical(*run)
    assert again.exit_code == 0, again.output
    assert "holds a run already; it goes on" in again.output
    assert "resumed after epoch 1 of 2" in again.output
    other = apical(*run, "--set", "lr=0.001")
    assert other.exit_code == 2
    assert "training.optimizer.lr" in other.stderr
    both = apical(*run, "--overwrite")
    assert both.exit_code == 2
    assert "leave out one of them" in both.stderr


@pytest.mark.parametrize("left", [None, "{"])
def test_the_same_command_goes_on_without_a_config_and_writes_it_again(left: str | None, tmp_path: Path) -> None:
    settings = ("--method=dense", "--set=amp=auto", "--epochs=1", "--quiet")
    run = ("train", "digits", *TINY, *settings, "--out", tmp_path)
    assert apical(*run).exit_code == 0
    config = tmp_path / "config.json"
    before = config.read_text()
    config.unlink() if left is None else config.write_text(left)
    if left is None:
        lost = apical("train", "--resume", tmp_path)
        assert (lost.exit_code, "if --auto-resume is added" in lost.stderr) == (2, True)
    other = apical(*run, "--auto-resume", "--set", "lr=0.001")
    assert (other.exit_code, "training.optimizer.lr" in other.stderr) == (2, True)
    again = apical(*run, "--auto-resume")
    assert again.exit_code == 0, again.output
    assert "as measured before" in again.stderr
    assert config.read_text() == before


@pytest.mark.parametrize("name", ["architecture.json", slow("summary.json"), slow("template.json"), "report.html"])
def test_a_disk_that_is_full_at_any_file_is_one_message(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run goes on once there is space."""
    true_aside = _atomic.new_aside

    def full(path: Path) -> Path:
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return true_aside(path)

    run = ("train", "digits", *TINY, "--out", tmp_path / "a", "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(_atomic, "new_aside", full)
        patch.setattr(_save, "new_aside", full)
        result = apical(*run)
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
    assert "No space left" in result.stderr
    again = apical("train", "--resume", tmp_path / "a", "--quiet")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "a" / "report.html").exists()


def test_a_programming_error_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("apical.runs.run", broken)
    with pytest.raises(ZeroDivisionError):
        apical("train", "digits", "--out", tmp_path / "a")


def test_a_finished_run_can_be_resumed_and_ends_the_same(tmp_path: Path) -> None:
    assert apical("train", "digits", *TINY, "--out", tmp_path, "--overwrite", "--quiet").exit_code == 0
    before = json.loads((tmp_path / "summary.json").read_text())
    result = apical("train", "--resume", tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    assert "this run had finished, all 2 epochs are done" in result.stderr
    after = json.loads((tmp_path / "summary.json").read_text())
    assert {k: before[k] for k in ("test_loss", "macs", "num_params")} == {
        k: after[k] for k in ("test_loss", "macs", "num_params")
    }


def test_a_folder_of_photographs_with_a_model_by_name(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "photos", images=10, sizes=((12, 14), (16, 12)))
    settings = ["--set=image_size=8", "--set=resize=10", "--set=batch_size=8", "--set=amp=none", "--set=workers=0"]
    settings += ["--set=model.depth=8", "--set=growth.divisor=1", "--device=cpu", "--epochs=2", "--budget=60% macs"]
    out = tmp_path / "run"
    result = apical(
        "train", "folder", "--data", tmp_path / "photos", "--model", "CifarResNet", *settings, "--out", out, "--quiet"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((out / "config.json").read_text())["input"]["classes"] == ["cat", "dog"]


def test_a_folder_of_classes_only_is_split_and_says_so(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "made", images=10)
    settings = ["--set=image_size=8", "--set=resize=10", "--set=batch_size=8", "--set=amp=none", "--set=model.depth=8"]
    settings += ["--set=growth.divisor=1", "--set=warmup_epochs=0", "--device=cpu", "--epochs=1", "--method=dense"]
    photos, out = tmp_path / "made" / "train", tmp_path / "run"
    result = apical("train", "folder", "--data", photos, "--model", "CifarResNet", *settings, "--out", out)
    assert result.exit_code == 0, result.output
    assert "4 of its 20 images are held out" in result.output
    assert json.loads((out / "summary.json").read_text())["test_samples"] == 4


@pytest.mark.parametrize("kind", [slow("onnx"), "pt2"])
def test_export_writes_what_it_checked(kind: str, finished: Path, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    result = apical("export", finished, "--format", kind, "--out", tmp_path / f"net.{kind}")
    assert result.exit_code == 0, result.output
    assert "largest difference" in result.output
    assert (tmp_path / f"net.{kind}").exists()


def test_export_refuses_an_unfinished_run(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((finished / "config.json").read_bytes())
    result = apical("export", tmp_path, "--format", "pt2")
    assert result.exit_code == 2
    assert "has not finished" in result.stderr
    assert "architecture.json does not exist" in result.stderr
    assert f"Go on with it: apical train --resume {tmp_path}\n" in result.stderr


@pytest.mark.parametrize("name", ["architecture.json", "model.safetensors"])
def test_a_network_that_was_damaged_is_written_anew_by_its_checkpoint(
    name: str, finished: Path, tmp_path: Path
) -> None:
    folder, export = tmp_path / "run", ("export", tmp_path / "run", "--format", "pt2")
    shutil.copytree(finished, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    result = apical(*export)
    assert result.exit_code == 2
    assert f". Its checkpoint writes it anew: apical train --resume {folder}\n" in result.stderr
    assert apical("train", "--resume", folder, "--quiet").exit_code == 0
    assert (folder / name).read_bytes() == (finished / name).read_bytes()
    other = apical(*export, "--input", "1x1x8x8")
    assert other.exit_code == 2
    assert "the model itself does not run on inputs (1, 1, 8, 8) torch.float32" in other.stderr
    assert "batch_dim" not in other.stderr


def test_inspect_prints_a_table_or_json() -> None:
    result = apical("inspect", "apical.models:CifarResNet", "--input", "1x3x16x16", *SHALLOW)
    assert result.exit_code == 0, result.output
    assert "1 skippable block;" in result.output
    assert "reaches the model's output" in result.output
    result = apical("inspect", "apical.models:resnet20", "--input", "1x3x16x16", "--json")
    content = json.loads(result.stdout)
    assert len(content["groups"]) == 12
    assert len(content["blocks"]) == 7
    assert 0 < content["least_macs"] < content["macs"]
    assert content["frozen"][0]["name"] == "fc"
    by_name = apical("inspect", "resnet20", "--input", "1x3x16x16", "--json")  # as training takes it
    assert json.loads(by_name.stdout)["groups"] == content["groups"]


@pytest.mark.parametrize(("name", "shape"), [("resnet20", "1x3x32x32"), ("apical.models:vit_small", "1x3x32x32")])
def test_inspect_and_plan_know_the_images_of_models_known_by_name(name: str, shape: str) -> None:
    options = ["--kwargs", '{"width": 4}'] if name == "resnet20" else ["--kwargs", '{"num_layers": 1}']
    without, given = apical("inspect", name, *options, "--json"), apical("inspect", name, *options, "--input", shape,
                                                                          "--json")  # fmt: skip
    assert without.exit_code == 0, without.output
    assert json.loads(without.stdout) == json.loads(given.stdout)
    assert f"--input {shape}, as {name} usually takes it" in without.stderr
    planned = apical("plan", name, *options, "--epochs", "2", "--budget", "50% macs", "--json")
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["full_macs"] == json.loads(given.stdout)["macs"]


def test_a_model_of_ones_own_is_planned_as_its_grower_plans_it() -> None:
    planned = apical("plan", "resnet20", "--kwargs", '{"width": 4}', "--epochs", "5", "--budget", "50% macs", "--json")
    assert planned.exit_code == 0, planned.output
    model = resnet20(width=4)
    grower = Grower(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(1, 3, 32, 32), "50% macs", 5)
    assert [e["widths"] for e in json.loads(planned.stdout)["epochs"]] == [e.widths for e in grower.plan().epochs]


def test_inspect_draws_whole_numbers_for_embeddings() -> None:
    kwargs = '{"vocab_size": 31, "embedding_size": 12, "hidden_sizes": [16]}'
    result = apical("inspect", "apical.models:LSTMLanguageModel", "--input", "5x2:int64:31", "--kwargs", kwargs)
    assert result.exit_code == 0, result.output


class Given(nn.Module):
    """A model of the user's with two inputs."""

    def __init__(self, wide: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, wide), nn.Linear(2, wide), nn.Linear(wide, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.a(x) + self.b(y)))


def test_inspect_takes_a_model_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "given_net_xyz.py").write_text(f"import torch\nfrom torch import nn\n{_source(Given)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = apical("inspect", "given_net_xyz:Given", "--input", "1x3", "--input", "1x2:float32", "--json")
    assert result.exit_code == 0, result.output
    assert [group["size"] for group in json.loads(result.stdout)["groups"]] == [6]


class TwoHeads(nn.Module):
    """Of two heads a call reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        return self.a(self.body(x).relu())


def test_inspect_says_once_what_the_call_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "two_heads_xyz.py").write_text(f"import torch\nfrom torch import nn\n{_source(TwoHeads)}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    result = apical("inspect", "two_heads_xyz:TwoHeads", "--input", "1x3")  # warnings are errors in tests
    assert result.output.count("the example call does not read b.weight, b.bias") == 1


def _source(kind: type) -> str:
    import inspect

    return inspect.getsource(kind)


def test_the_version_is_that_of_apical_however_it_was_started() -> None:
    result = CliRunner().invoke(main, ["--version"], prog_name="python -m apical")
    assert result.output == f"apical, version {package.__version__}\n"


@pytest.mark.run
def test_the_module_can_be_run(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "apical", "train", "digit"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("apical: there is no recipe 'digit'")
