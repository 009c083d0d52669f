"""docs/coverage.md stays true: a subset of its rows is measured again."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.run
@pytest.mark.skipif(
    not all(importlib.util.find_spec(library) for library in ("torchvision", "timm")),
    reason="torchvision or timm is not installed",
)
def test_the_page_says_what_is_measured() -> None:
    command = [sys.executable, "benchmarks/coverage.py", "--check", "docs/coverage.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
