"""Trained networks are taken down from the same weights, kept, and timed in turns."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apical.models import CifarResNet
from benchmark_script import random_images, script

pretrained = script("pretrained")


def ran(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> list[dict[str, Any]]:
    """The lines of the file after the command, on a setting of seconds and random images."""

    def build() -> nn.Module:
        return CifarResNet(depth=8)

    setting = pretrained.SETTINGS["resnet20-16"]
    tiny = dataclasses.replace(setting, build=build, train=384, held_out=128, amp=False)
    monkeypatch.setitem(pretrained.SETTINGS, "resnet20-16", tiny)
    monkeypatch.setattr(pretrained, "images", random_images)
    shared = ["--dense-epochs", "2", "--epochs", "3", "--seeds", "10", "--budgets", "50% macs"]
    shared += ["--out", str(out), "--weights", str(out.parent / "weights")]
    monkeypatch.setattr(sys, "argv", ["pretrained.py", *shared, *arguments])
    pretrained.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_runs_are_kept_and_their_networks_timed_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "runs.jsonl"
    first = ran(monkeypatch, out, "--methods", "dense", "grown", "l1")
    assert [line["method"] for line in first] == ["dense", "grown", "l1"]
    assert [round(line["macs_fraction"], 1) for line in first] == [1.0, 0.5, 0.5]
    assert ran(monkeypatch, out, "--methods", "dense", "grown", "l1") == first
    for line in first:
        network = torch.load(pretrained.network_file(tmp_path / "weights", line), weights_only=False)
        assert sum(p.numel() for p in network.parameters()) == line["num_params"]
    timed = ran(monkeypatch, out, "--time")[len(first) :]
    assert [line["method"] for line in timed] == ["dense", "grown", "l1"]
    assert all(line["share_of_dense"] > 0 for line in timed)
    again = ran(monkeypatch, out, "--methods", "dense", "grown", "l1")
    assert again == first + timed, "lines of seconds are no runs"
    *_, precise = ran(monkeypatch, out, "--methods", "dense", "--float32")
    assert (precise["method"], precise["dtype"], first[0]["dtype"]) == ("dense", "float32", None)
    assert len({path.name for path in (tmp_path / "weights").glob("*dense*.network")}) == 2
    assert len(list((tmp_path / "weights").glob("*.pt"))) == 2


def test_without_the_dense_run_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="grown needs the dense run of the same seed first"):
        ran(monkeypatch, tmp_path / "runs.jsonl", "--methods", "grown")
    (tmp_path / "runs.jsonl").touch()
    with pytest.raises(SystemExit, match="seed 10: no kept networks"):
        ran(monkeypatch, tmp_path / "runs.jsonl", "--time")
