"""Any words after `apical`: exit code 0 or 2 with a message, and no traceback. Nothing is trained or uploaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from apical.cli import main
from reporting.test_report import make_run

pytestmark = pytest.mark.usefixtures("traced_once")
SMALL = ["CifarResNet", "--kwargs", '{"depth": 8, "width": 4}', "--input", "1x3x8x8"]
STARTS = {
    "train": [[], ["digits"], ["digits", "--set", "model.width=4"], ["--config", "settings.json"], ["--resume", "run"]],
    "plan": [[], ["digits"], SMALL, [*SMALL, "--no-weights"], [*SMALL, "--device-table", "table.json"]],
    "compare": [["digits"], ["digits", "--seeds", "0,1"]],
    "inspect": [[], ["resnet20"], SMALL, [*SMALL, "--json"]],
    "export": [[], ["run", "--format", "pt2"], ["run", "--format", "onnx"]],
    "push": [[], ["run", "me/run"]],
    "report": [[], ["run"], ["run", "run"]],
}
ENDS = {  # what keeps a command from training and from uploading
    "train": [["--list-settings"], ["--save-config", "written.json"]],
    "compare": [["--methods", "nothing"]],
    "push": [["--out", "shared"]],
}
WORDS = ["", "-", "--", "-h", "digits", "run", "resnet20", "torchvision:none", "os:mkdir", "json:loads", "a.b:c", ":",
         "1x3x8x8", "0x3x8x8", "1x3x0x8", "1x3x8", "1", "9" * 30, "1x3x99999x99999", "1x999999999999x9", "2x3:int64:0",
         "1x8:int64:9", "1x3x8x8:bool", "1x3x8x8:float16", "50% macs", "1e400", "-1", "0", "nan", "inf", "1e-30",
         "\udcff", "²", "a=b", "lr=0.1", "model.width=8", "model.depth=9", "epochs=0", "data.path=/dev/null", "{}", "[",
         '{"width": 4}', '{"width": 10000000}', '{"width": -1}', '{"x": [1]}', "/dev/null", "/dev/full", "/dev/zero",
         "nowhere/x.json", "table.json", "settings.json", "x" * 300, ".", "cpu", "cuda:9", "2000000000"]  # fmt: skip
NOT_HERE = {"--measure", "--write-table", "--help"}  # takes seconds; never fails


def options_of(command: str) -> list[str]:
    found = [name for p in main.commands[command].params for name in p.opts if isinstance(p, click.Option)]
    return sorted(set(found) - NOT_HERE)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    command = draw(st.sampled_from(sorted(STARTS)))
    words = [command, *draw(st.sampled_from(STARTS[command]))]
    for name in draw(st.lists(st.sampled_from([*options_of(command), ""]), max_size=3)):
        option = next((p for p in main.commands[command].params if name in p.opts), None)
        flag = isinstance(option, click.Option) and option.is_flag
        words += [name] if flag else [*filter(None, [name]), draw(st.sampled_from(WORDS) | st.text(max_size=6))]
    return [word.replace("\0", "") for word in [*words, *draw(st.sampled_from(ENDS.get(command, [[]])))]]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of each kind of file."""
    make_run(tmp_path / "kept" / "run")
    table = {"device": "d", "model": "CifarResNet", "batch_size": 8, "points": [[1e4, 0.01], [1e6, 0.02]]}
    (tmp_path / "kept" / "table.json").write_text(json.dumps(table))
    (tmp_path / "kept" / "settings.json").write_text('{"recipe": "digits", "training": {"epochs": 2}}')
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore")
@settings(phases=[Phase.explicit, Phase.generate])
@given(command_lines())
def test_any_words(place: Path, words: list[str]) -> None:
    for found in (place / "here").iterdir():
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    shutil.copytree(place / "kept", place / "here", dirs_exist_ok=True)
    result = CliRunner().invoke(main, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"apical {words}") from result.exception
    assert result.exit_code in (0, 2), (words, result.output)
    assert result.exit_code == 0 or result.output.strip(), f"nothing is said of {words}"
