"""`benchmarks.device`: within its minutes, and on from where it ended. The network is small and the device a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOBS = ["digits:final-same-macs:0:4", "digits:grown:0:4", "digits:final-same-macs:5:4", "digits:l1:0:1"]


def call(out: Path, work: Path, minutes: float, jobs: list[str]) -> tuple[str, float]:
    """What it printed, and the seconds it took."""
    command = [sys.executable, "-m", "benchmarks.device", "--device", "cpu", "--out", str(out), "--work", str(work),
               "--minutes", str(minutes), "--workers", "1", "--jobs", *jobs]  # fmt: skip
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout, time.monotonic() - started


def results(out: Path) -> dict[str, dict[str, object]]:
    return {r["job"]: r for r in map(json.loads, (out / "results.jsonl").read_text().splitlines())}


@pytest.mark.slow
def test_runs_are_done_once_and_what_needs_another_comes_after_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    said, _ = call(out, tmp_path / "work", 5, JOBS)
    found = results(out)
    assert sorted(found) == ["digits-final-same-macs-seed0", "digits-grown-seed0", "digits-l1-seed0"]
    assert "digits-final-same-macs-seed5 is left out" in said
    grown, repeated = found["digits-grown-seed0"], found["digits-final-same-macs-seed0"]
    assert grown["widths"] == repeated["widths"]
    assert len(grown["curve"]) == 4  # type: ignore[arg-type]
    said, seconds = call(out, tmp_path / "other", 5, JOBS[:2])
    assert seconds < 60
    assert len((out / "results.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_a_run_that_is_stopped_when_time_is_over_goes_on_in_the_next_call(tmp_path: Path) -> None:
    out, job = tmp_path / "out", ["digits:grown:0:60"]
    kept = out / "unfinished" / "digits-grown-seed0"
    for minutes in (0.55, 1.0, 2.0):  # some eight seconds of training; a busy machine takes longer to begin
        _, seconds = call(out, tmp_path / f"first-{minutes}", minutes, job)
        assert seconds < minutes * 60 + 15
        if (kept / "checkpoint.pt").exists():
            break
    assert not (out / "results.jsonl").exists()
    assert (kept / "checkpoint.pt").exists()
    before = len((kept / "history.jsonl").read_text().splitlines())
    call(out, tmp_path / "second", 10, job)
    finished = results(out)["digits-grown-seed0"]
    assert 0 <= before < 60 == len(finished["curve"])  # type: ignore[arg-type]
    assert not kept.exists()
