"""Real processes, really killed; real disks, really full."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from apical.errors import CheckpointError
from apical.training import _run_folder as folders
from apical.training._run_folder import RunFolder
from fork_server import Ended, ForkServer
from marks import quick, slow
from recipes.within_epoch_cases import write_data
from tiny_run import timeless
from training.kill_cases import EPOCHS, KINDS, NO_SPACE, POINTS, RECIPES

SERVED = "training.kill_cases"


@pytest.fixture(scope="module")
def whole(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """What a run ends with that nothing disturbed, and its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    assert call(server, "held", folder / "first", 0.0).code == 0  # the server has imported everything
    return undisturbed_run(server, folder)


def undisturbed_run(server: ForkServer, folder: Path, kind: str = "moving average") -> tuple[dict[str, Any], float]:
    """What a run ends with, and its seconds."""
    folder.mkdir(exist_ok=True)
    started = time.monotonic()
    end = call(server, "run", folder / "run", str(folder / "end.pt"), kind)
    assert end.code == 0, end.output
    return torch.load(folder / "end.pt"), time.monotonic() - started


def call(server: ForkServer, function: str, folder: Path, *arguments: Any, after: float | None = None,
         number: int = signal.SIGKILL) -> Ended:  # fmt: skip
    signals = None if after is None else {0: (int(number), after)}
    (end,) = server.run(f"{SERVED}:{function}", str(folder), *arguments, folder=folder.parent, signals=signals)
    return end


def assert_ends_as(whole: dict[str, Any], server: ForkServer, folder: Path, kind: str = "moving average") -> None:
    """Resumed to its end, the run is the undisturbed one, bit for bit, and its folder is tidy."""
    end = call(server, "run", folder, str(folder.parent / "end.pt"), kind)
    assert end.code == 0, end.output
    assert_same_end(whole, torch.load(folder.parent / "end.pt"))
    assert not list(folder.glob(".*")), "what the killed processes were writing is swept away"


def assert_same_end(whole: dict[str, Any], found: dict[str, Any]) -> None:
    assert list(found["model"]) == list(whole["model"])
    for name, tensor in whole["model"].items():
        assert torch.equal(tensor, found["model"][name]), name
    assert timeless(found["history"]) == timeless(whole["history"])
    assert found["summary"]["test_loss"] == whole["summary"]["test_loss"]


def epochs_of(folder: Path) -> int:
    history = folder / "history.jsonl"
    return len(history.read_text().splitlines()) if history.exists() else 0


def test_the_run_is_worth_killing(whole: tuple[dict[str, Any], float]) -> None:
    history = whole[0]["history"]
    assert len(history) == EPOCHS
    assert sum(r["born"] > 0 for r in history) >= 5
    assert sum(r["died"] > 0 for r in history) >= 5
    assert any(r["returned"] > 0 for r in history)


@pytest.mark.parametrize("point", quick(POINTS, ["between two steps of a restructuring"]))
def test_killed_at_the_worst_moments(
    server: ForkServer, whole: tuple[dict[str, Any], float], tmp_path: Path, point: str
) -> None:
    """In the middle of it at the 1st, 4th, 7th, 8th call, in one run after the other."""
    for number in (1, 4, 7, 8):
        end = call(server, "killed_at", tmp_path / "run", point, number)
        assert end.code == -signal.SIGKILL, end.output
    assert_ends_as(whole[0], server, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_twenty_random_moments(server: ForkServer, tmp_path: Path, kind: str) -> None:
    """Runs are killed, each again and again after random whiles, until they end as the undisturbed one."""
    assert call(server, "run", tmp_path / "first", None, kind).code == 0  # what is imported late is there now
    undisturbed, seconds = undisturbed_run(server, tmp_path / "whole", kind)
    draw, reached, number = random.Random(7), [], 0
    while len(reached) < 20:
        run = tmp_path / str(number) / "run"
        run.parent.mkdir(exist_ok=True)
        end = call(server, "run", run, None, kind, after=draw.uniform(0.02, 0.9 * seconds))
        if end.code == 0:  # it came to its end before: on with another one
            number += 1
            continue
        assert end.code == -signal.SIGKILL, end.output
        reached.append(epochs_of(run))
    for ended in range(number + 1):
        assert_ends_as(undisturbed, server, tmp_path / str(ended) / "run", kind)
    assert len(set(reached)) > 1, f"the runs were killed after epochs {reached}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes read."""
    root = tmp_path_factory.mktemp("data")
    write_data(root)
    return root


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize("name", [*KINDS, *RECIPES])
def test_killed_at_any_moment(
    server: ForkServer, data: Path, tmp_path: Path, pytestconfig: pytest.Config, name: str
) -> None:
    """In an attack sixty times in all, elsewhere once each: after a random while, or in the middle of a restructuring
    or of a save; of several processes all die. Resumed, each run ends as one that nothing disturbed.
    """
    count = RECIPES[name][3] if name in RECIPES else 1
    wanted = 1 if settings().derandomize else 6 if count == 1 else 2

    def go(run: Path, *how: Any, seconds: Sequence[float] = ()) -> list[Ended]:
        run.parent.mkdir(exist_ok=True)
        signals = {rank: (int(signal.SIGKILL), after) for rank, after in enumerate(seconds)}
        return server.run(f"{SERVED}:go", str(run), str(run.parent / "end"), name, str(data), *how, count=count,
                          folder=run.parent, timeout=400, signals=signals)  # fmt: skip

    def to_its_end(run: Path) -> list[dict[str, Any]]:
        ends = go(run)
        assert [end.code for end in ends] == [0] * count, "\n".join(end.output for end in ends)
        return [torch.load(run.parent / f"end-{rank}") for rank in range(count)]

    started = time.monotonic()
    undisturbed = to_its_end(tmp_path / "whole" / "run")
    took = time.monotonic() - started
    seed = pytestconfig.getoption("hypothesis_seed") or 7
    draw, kills, number = random.Random(f"{seed} {name}"), [], 0
    while len(kills) < wanted:
        run = tmp_path / str(number) / "run"
        how: tuple[Any, ...] = ()
        after = draw.uniform(0.02, 0.95) * took
        if draw.random() < 0.5:
            how, after = (draw.choice(list(POINTS)), draw.randint(1, 12)), 2 * took + 5
        ends = go(run, *how, seconds=[after + draw.uniform(0, 0.05) for _ in range(count)])
        if all(end.code == 0 for end in ends):  # it came to its end before: on with another one
            number += 1
            continue
        assert ends[0].code == -signal.SIGKILL, "\n".join(end.output for end in ends)
        kills.append((*how, round(after / took, 2), epochs_of(run)))
    print(f"{name}: killed {kills}, {number + 1} runs")
    for ended in range(number + 1):
        run = tmp_path / str(ended) / "run"
        for mine, theirs in zip(undisturbed, to_its_end(run), strict=True):
            assert_same_end(mine, theirs)
        assert not list(run.glob(".*")), "what the killed processes were writing is swept away"


@pytest.mark.parametrize(
    ("where", "number", "within"), [("step", 13, 3), slow("step", 15, 5), slow("evaluation", 5, 5)]
)
def test_a_signal_loses_nothing(
    server: ForkServer, whole: tuple[dict[str, Any], float], tmp_path: Path, where: str, number: int, within: int
) -> None:
    """Stopped in epoch 3 of 5 steps (in its 3rd or last step, or in its evaluation), it goes on behind that step."""
    end = call(server, "signalled", tmp_path / "run", number, where)
    assert end.code == 75, end.output
    assert "stopped by SIGTERM" in end.output
    assert "within epoch 3 of 24; resumed, it goes on there" in end.output
    saved = torch.load(tmp_path / "run" / "checkpoint.pt")
    assert (saved["epoch"], saved["state"]["begun"]["steps"]) == (2, within)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert_ends_as(whole[0], server, tmp_path / "run")


def assert_checkpoint(folder: Path, epoch: int) -> None:
    assert torch.load(folder / "checkpoint.pt")["epoch"] == epoch


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(server: ForkServer, whole: tuple[dict[str, Any], float], tmp_path: Path) -> None:
    end = call(server, "full_disk", tmp_path / "run", 5)
    assert end.code == 2
    assert "CheckpointError: cannot write" in end.output
    assert NO_SPACE in end.output or "PytorchStreamWriter failed" in end.output
    assert "untouched; free space or make the folder writable" in end.output
    assert_checkpoint(tmp_path / "run", 3)
    assert_ends_as(whole[0], server, tmp_path / "run")


@pytest.mark.slow
def test_a_file_that_may_not_grow_that_large(
    server: ForkServer, whole: tuple[dict[str, Any], float], tmp_path: Path
) -> None:
    assert call(server, "killed_at", tmp_path / "run", "while flushing", 9).code == -signal.SIGKILL
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    end = call(server, "file_limit", tmp_path / "run", 20)
    assert end.code == 2
    assert "CheckpointError: cannot write" in end.output
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert_ends_as(whole[0], server, tmp_path / "run")


@pytest.mark.slow
def test_a_folder_that_becomes_read_only(server: ForkServer, whole: tuple[dict[str, Any], float]) -> None:
    with tempfile.TemporaryDirectory() as outer:  # pytest's own folder is closed to other users
        folder = Path(outer) / "run"
        end = call(server, "read_only", folder, 4)
        folder.chmod(0o700)
        assert end.code == 2, end.output
        assert "CheckpointError: cannot write" in end.output
        assert "Permission denied" in end.output
        assert_checkpoint(folder, 2)
        assert_ends_as(whole[0], server, folder)


def test_two_runs_in_one_folder(server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LOCK_PATIENCE_S", 0.2)
    with RunFolder(tmp_path), pytest.raises(CheckpointError, match="another process is training in"):
        RunFolder(tmp_path).__enter__()
    with RunFolder(tmp_path), RunFolder(tmp_path, writes=False):
        pass
    assert call(server, "held", tmp_path / "run", 60, after=0.3).code == -signal.SIGKILL
    with RunFolder(tmp_path / "run"):
        assert not list((tmp_path / "run").iterdir()), "the lock goes with the process and leaves nothing behind"


def test_a_lock_that_is_given_back_soon_is_waited_for(server: ForkServer, tmp_path: Path) -> None:
    """As by the reading processes of a killed run, which notice a little later that it is gone."""
    from threading import Thread

    other = Thread(target=call, args=(server, "held", tmp_path / "run", 1.0))
    other.start()
    while not (tmp_path / "run").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    with RunFolder(tmp_path / "run"):
        pass
    other.join()
