"""What the guide to segmentation shows works."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from apical.recipes import apply_settings, get_recipe
from voc_folder import write_voc

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "segmentation.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_loop_runs_and_ends_at_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_voc(tmp_path / "voc")
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks("python"):
            exec(compile(block, "segmentation.md", "exec"), {"__name__": "guide"})
    fractions = [float(f) for f in re.findall(r"(\d+)% of the MACs", printed.getvalue())]
    assert fractions[0] <= 13
    assert fractions[-1] == pytest.approx(50, abs=1)


def test_the_commands_name_recipes_and_settings_that_exist() -> None:
    commands = [line for block in blocks("console") for line in block.replace("\\\n", " ").splitlines()]
    trained = [shlex.split(line) for line in commands if line.startswith("apical train")]
    assert len(trained) == 3
    for words in trained:
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        assert apply_settings(get_recipe(words[2]), settings).task == "segmentation"
