"""Sharing: what is uploaded, the card, and networks that come back from a folder or from a Hub that is played here."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import apical
from apical.cli import main
from apical.errors import ConfigError, LoadError, SaveError
from apical.export import load_quantized
from apical.recipes import apply_settings, get_recipe
from apical.runs import _hub as hub
from apical.runs import from_pretrained, load_run, push_to_hub, run
from apical.training import make_progress

pytest.importorskip("PIL")

TINY = ["limit=64", "batch_size=32", "epochs=2", "model.depth=8", "model.width=4", "device=cpu"]
SOURCE = """
from apical.models import CifarResNet


def build(num_classes, in_channels):
    return CifarResNet(depth=8, width=4, num_classes=num_classes, in_channels=in_channels)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that must not be changed."""
    folder = tmp_path_factory.mktemp("private-place") / "tiny"
    config = apply_settings(get_recipe("digits"), ["data.path=synthetic", *TINY])
    run(config, folder, progress=make_progress("quiet"))
    return folder


@pytest.fixture(scope="module")
def with_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits") / "tiny"
    config = apply_settings(get_recipe("digits"), ["data.path=synthetic", *TINY, "budget=60% macs, 17% size"])
    run(config, folder, progress=make_progress("quiet"))
    return folder


class Server:
    """What the client of the Hub calls."""

    def __init__(self, place: Path, error: Exception | None = None) -> None:
        self.place, self.error, self.calls = place, error, []
        self.HfApi = lambda: self

    def create_repo(self, repo: str, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(("create", repo, options))

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        shutil.copytree(folder_path, self.place / repo_id)
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")

    def snapshot_download(self, repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        if not (self.place / repo).is_dir():
            raise RuntimeError(f"404: {repo}")
        self.calls.append(("fetch", repo, revision, allow_patterns))
        return str(self.place / repo)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    found = Server(tmp_path / "server")
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    return found


@pytest.fixture
def without_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a network that cannot be exported, which takes longest."""
    monkeypatch.setattr(hub, "_write_program", lambda *_: False)


def test_a_pushed_run_with_bits_comes_back_packed_and_the_same(with_bits: Path, server: Server) -> None:
    push_to_hub(with_bits, "me/bits")
    model, (ours, full, example) = from_pretrained("me/bits"), load_run(with_bits)
    assert torch.equal(model(example[0]), ours(example[0]))
    assert load_quantized(server.place / "me/bits") == load_quantized(with_bits) != {}
    size = (server.place / "me/bits/model.safetensors").stat().st_size
    whole = 4 * sum(p.numel() for p in full.parameters())
    assert (
        f"| file of the weights | {size:,} bytes | {whole:,} bytes |"
        in (server.place / "me/bits/README.md").read_text()
    )


def test_a_pushed_run_comes_back_as_the_same_network(finished: Path, server: Server) -> None:
    assert push_to_hub(finished, "me/digits", private=True) == "https://hub/me/digits"
    assert server.calls == [("create", "me/digits", {"private": True, "exist_ok": True})]
    model, (ours, _, example) = from_pretrained("me/digits", revision="v1"), load_run(finished)
    assert server.calls[-1][:3] == ("fetch", "me/digits", "v1")
    assert torch.equal(model(example[0]), ours(example[0]))
    assert not model.training
    again = from_pretrained(server.place / "me" / "digits")
    assert torch.equal(again(example[0]), ours(example[0]))
    program = torch.export.load(server.place / "me" / "digits" / "model.pt2").module()
    torch.testing.assert_close(program(example[0]), ours(example[0]))


def test_what_is_uploaded_has_a_card_and_names_no_folder_of_this_machine(finished: Path, tmp_path: Path) -> None:
    out = hub.write_share(finished, tmp_path / "share", "me/digits")
    names = {path.name for path in out.iterdir()}
    assert names == {*hub.MODEL, *hub.RECORDS, "model.pt2", "growth.png", "README.md", "report.html"}
    for path in out.iterdir():
        assert b"private-place" not in path.read_bytes(), path.name
    card = (out / "README.md").read_text(encoding="utf-8")
    for part in ("library_name: apical", "| test accuracy |", "| parameters |", "multiply-adds of the training",
                 "![Widths by epoch](growth.png)", 'from_pretrained("me/digits")', "apical train digits"):  # fmt: skip
        assert part in card


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["push", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.usefixtures("without_program")
def test_the_command(finished: Path, server: Server, tmp_path: Path) -> None:
    looked = command(finished, "me/a", "--out", tmp_path / "look")
    assert "nothing was uploaded" in looked.output
    assert not server.calls
    assert "pushed https://hub/me/b" in command(finished, "me/b").output


@pytest.mark.usefixtures("without_program")
@pytest.mark.parametrize("error", [ValueError("not JSON"), ConnectionError("no network")])
def test_a_hub_that_refuses_is_quoted(error: Exception, finished: Path, server: Server) -> None:
    server.error = error
    with pytest.raises(SaveError, match=f"{type(error).__name__}: {error}.*the same command can be repeated"):
        push_to_hub(finished, "me/digits")


@pytest.mark.parametrize("repo", ["digits", "me/", "/digits", "https://hub/me/digits", " /digits", "a b/c", "a b/c/d"])
def test_what_is_no_name_of_a_repository_is_refused_at_once(
    repo: str, finished: Path, server: Server, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"repo must be user/name, got '{repo}'"):
        push_to_hub(finished, repo)
    assert not server.calls
    looked = command(finished, repo, "--out", tmp_path / "look")
    assert (looked.exit_code, (tmp_path / "look").exists()) == (2, False)
    assert "repo must be user/name" in looked.output


def rewritten(run_folder: Path, name: str, **changes: Any) -> None:
    path = run_folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.usefixtures("without_program")
def test_only_whole_paths_are_named_by_their_last_part(finished: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(finished, own)
    data = json.loads((own / "config.json").read_text())["data"]
    rewritten(own, "config.json", data=data | {"path": "./d"}, budget="50% macs")
    rewritten(own, "summary.json", data="./d", device="../d and ./data")
    out = hub.write_share(own, tmp_path / "share", "me/own")
    config, summary = (json.loads((out / f"{name}.json").read_text()) for name in ("config", "summary"))
    assert (config["data"]["path"], summary["data"]) == ("d", "d")
    assert summary["device"] == "../d and ./data"  # other text is left alone
    assert "--set data.path=d " in summary["command"]
    assert summary["command"].endswith("--out own")


@pytest.mark.usefixtures("without_program")
def test_the_card_shows_text_as_it_is(finished: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(finished, own)
    rewritten(own, "summary.json", device="a|b <img src=x>\n# c", test_split="x|y", data="half \ud800")
    card = (hub.write_share(own, tmp_path / "share", "me/own") / "README.md").read_text()
    assert r"on a\|b \<img src=x\> \# c. A single run" in card
    assert r"| x\|y accuracy |" in card
    assert json.loads((tmp_path / "share" / "summary.json").read_text())["data"] == "half \ud800"


def test_what_is_no_finished_run_or_no_repository_is_named(finished: Path, server: Server, tmp_path: Path) -> None:
    result = command(tmp_path, "me/a")
    assert (result.exit_code, "config.json does not exist" in result.output) == (2, True)
    part = tmp_path / "part"
    shutil.copytree(finished, part, ignore=shutil.ignore_patterns("summary.json"))
    with pytest.raises(ConfigError, match=r"no finished run: summary\.json is missing"):
        push_to_hub(part, "me/a")
    with pytest.raises(LoadError, match="expected a run folder, or user/name"):
        from_pretrained("nowhere")
    with pytest.raises(LoadError, match="404: me/nothing"):
        from_pretrained("me/nothing")


def test_without_the_client_the_extra_is_named(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'apical\[hub\]'"):
        push_to_hub(finished, "me/digits")


def test_code_of_ones_own_is_called_only_if_trusted_and_replaced_by_the_program_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_hub_net.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = ["data.path=synthetic", *TINY[:3], TINY[5]]
    config = apply_settings(get_recipe("digits"), [*settings, "model.name=own_hub_net:build"])
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, options={}))
    run(config, tmp_path / "run", progress=make_progress("quiet"), trust_code=True)
    share = hub.write_share(tmp_path / "run", tmp_path / "share", "me/own", trust_code=True)
    assert "trust_code=True" in (share / "README.md").read_text()
    with pytest.raises(ConfigError, match="trust"):
        from_pretrained(share)
    example = torch.randn(2, *load_run(share, trust_code=True)[2][0].shape[1:])
    built = from_pretrained(share, trust_code=True)
    assert type(built).__name__ == "CifarResNet"
    (tmp_path / "own_hub_net.py").unlink()
    monkeypatch.delitem(sys.modules, "own_hub_net")
    program = from_pretrained(share, trust_code=True)
    torch.testing.assert_close(program(example), built(example))
    from apical.models import CifarResNet

    mine = from_pretrained(share, model=CifarResNet(depth=8, width=4, num_classes=10))
    torch.testing.assert_close(mine(example), built(example))


def test_what_save_wrote_is_loaded_with_the_model_at_hand(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    apical.save(model, tmp_path / "compact")
    assert torch.equal(from_pretrained(tmp_path / "compact", model=torch.nn.Linear(2, 3)).weight, model.weight)
