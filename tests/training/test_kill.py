"""Real processes, really killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny_run import assert_same_run, tiny_config, tiny_train

EPOCHS = 300
SCRIPT = """
import sys
from pathlib import Path
from tiny_run import tiny_config, tiny_train
from apical.training import Interrupted
folder = Path(sys.argv[1])
try:
    tiny_train(folder, tiny_config(epochs=int(sys.argv[2])), resume=folder.exists())
except Interrupted as stop:
    print(stop, flush=True)
    sys.exit(stop.exit_code)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(EPOCHS)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_epochs(process: subprocess.Popen[str], folder: Path, epochs: int) -> None:
    history = folder / "history.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if history.exists() and len(history.read_text().splitlines()) >= epochs:
            return
        time.sleep(0.002)
    pytest.fail(f"the run ended before it could be stopped: {process.stdout.read() if process.stdout else ''}")


@pytest.mark.slow
@pytest.mark.run
def test_killed_processes_resume_bit_for_bit(tmp_path: Path) -> None:
    config = tiny_config(epochs=EPOCHS)
    whole, folder = tiny_train(tmp_path / "whole", config), tmp_path / "run"
    for number, pause in ((1, 0.0), (40, 0.0031), (80, 0.0057)):  # anywhere: in a step, a restructuring, a write
        with start(folder) as process:
            wait_for_epochs(process, folder, number)
            time.sleep(pause)
            process.kill()
            assert process.wait() == -signal.SIGKILL
    with start(folder) as process:
        wait_for_epochs(process, folder, 120)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "stopped by SIGTERM" in output
    assert not list(folder.glob("summary.json"))
    assert_same_run(whole, tiny_train(folder, config, resume=True))
    assert not list(folder.glob(".*")), "what the killed processes were writing is swept away"
