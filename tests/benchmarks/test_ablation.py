"""The ablation's variants change what growth decides by, its runs are kept, and its table compares seed by seed."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from apical import GrowthConfig
from apical.models import CifarResNet
from benchmark_script import random_images, script
from growth.test_learning import branch_widths

ablation, learning = script("ablation"), script("learning")


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of seconds, on random images."""

    def build() -> nn.Module:
        return CifarResNet(depth=8)

    setting = dataclasses.replace(
        learning.SETTINGS["resnet20-32"], build=build, epochs=3, train=384, held_out=128, amp=False
    )
    monkeypatch.setitem(learning.SETTINGS, "resnet20-32", setting)
    monkeypatch.setattr(ablation, "images", random_images)


def ablated(monkeypatch: pytest.MonkeyPatch, out: Path, *arguments: str) -> list[dict[str, Any]]:
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--out", str(out), *arguments])
    ablation.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_runs_are_kept_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch)
    out, names = tmp_path / "runs.jsonl", ["default", "utility-signed", "utility-magnitude"]
    first = ablated(monkeypatch, out, "--seeds", "10", "--variants", *names)
    assert [line["variant"] for line in first] == names
    assert all(0 < line["macs_fraction"] <= 0.51 for line in first)
    networks = {json.dumps(line["trajectory"][-1]["widths"]) for line in first}
    assert len(networks) == 3, "what decides shows in the widths"
    assert "`utility-signed`" in capsys.readouterr().out
    assert ablated(monkeypatch, out, "--seeds", "10", "--variants", *names) == first
    again = ablated(monkeypatch, tmp_path / "again.jsonl", "--seeds", "10", "--variants", "default")
    assert again[0]["last"] == first[0]["last"], "the variants leave nothing behind"


def test_every_variant_changes_something_that_growth_knows() -> None:
    for name, variant in ablation.VARIANTS.items():
        changed = GrowthConfig(**variant.options) != GrowthConfig() or variant.within is not ablation.nullcontext
        assert changed == (name != "default")


def test_differences_are_taken_seed_by_seed_over_the_seeds_that_both_have() -> None:
    def line(variant: str, seed: int, accuracy: float) -> dict[str, Any]:
        return {"variant": variant, "seed": seed, "accuracy": accuracy, "train_macs": 3.5, "params_fraction": 0.5}

    lines = [line("default", 0, 0.70), line("default", 1, 0.72)]
    lines += [line("no-depth", 0, 0.71), line("no-depth", 1, 0.71), line("no-depth", 5, 0.10)]
    rows = ablation.table(lines).splitlines()
    assert rows[2].startswith("| `default` | the library's default, and growth until 0.4 | 2 | 71.00 ± 1.41 | – | 3.50")
    assert "| 3 | 50.67 ± 35.22 | +0.00 ± 1.41 |" in rows[3]


def test_norms_of_weights_do_not_see_noise_and_gate_products_do() -> None:
    """Of two equal branches the first sees the input, the second hardly anything but noise (`growth.test_learning`)."""

    def share(within: str) -> float:
        with ablation.VARIANTS[within].within():
            seeing, noisy = branch_widths.__wrapped__((0.0, 5.0))
        return seeing / (seeing + noisy)

    assert share("default") > 0.8
    assert share("utility-signed") > 0.8
    assert share("utility-magnitude") < 0.6
