"""What the README shows works when it is pasted."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def python_blocks() -> list[str]:
    return (
        re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.M | re.S)
        if README.exists()
        else []
    )


def test_the_quick_start_runs_and_ends_at_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = python_blocks()
    if not blocks:
        pytest.skip("README.md has no python block yet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for number, block in enumerate(blocks):
            exec(compile(block, f"README.md, python block {number + 1}", "exec"), names)
    assert sorted(p.name for p in (tmp_path / "compact").iterdir()) == ["architecture.json", "model.safetensors"]
    fractions = [float(f) for f in re.findall(r"(\d+)% of the MACs", printed.getvalue())]
    assert fractions[0] <= 30
    assert fractions[-1] == pytest.approx(50, abs=1)
