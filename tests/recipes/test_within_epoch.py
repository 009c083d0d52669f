"""Runs that a signal stops in the middle of an epoch and that are resumed end as those that were not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fork_server import ForkServer
from marks import slow
from recipes.within_epoch_cases import CASES, write_data
from tiny_run import timeless

SERVED = "recipes.within_epoch_cases"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_data(tmp_path_factory.mktemp("data"))


def ended(server: ForkServer, folder: Path, case: str, data: Path, what: str, count: int) -> list[dict[str, Any]]:
    """What each process ends with; nothing if the run was stopped."""
    ends = server.run(f"{SERVED}:once", str(folder), case, str(data), what, count=count, folder=folder)
    output = "\n".join(end.output for end in ends)
    assert [end.code for end in ends] == [75 if what == "cut" else 0] * count, output
    if what == "cut":
        step = CASES[case][2]
        assert f"stopped by SIGTERM in epoch 2, after step {step} of " in output
        saved = torch.load(folder / "cut" / "checkpoint.pt")
        assert (saved["epoch"], saved["state"]["begun"]["steps"]) == (1, step)
        return []
    return [torch.load(folder / f"{what}-{rank}-{count}.pt") for rank in range(count)]


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("folder", 1),
        slow("parquet", 1),
        slow("masks", 1),
        slow("text", 1),
        slow("folder", 2),
        slow("masks", 2),
        ("text", 2),
    ],
)
def test_a_run_goes_on_behind_the_step(
    server: ForkServer, data: dict[str, Path], tmp_path: Path, case: str, count: int
) -> None:
    """Weights and history bit for bit; of several processes the loss of the running epoch but for rounding."""
    whole = ended(server, tmp_path, case, data[case], "whole", count)
    ended(server, tmp_path, case, data[case], "cut", count)
    resumed = ended(server, tmp_path, case, data[case], "resumed", count)
    for mine, theirs in zip(whole, resumed, strict=True):
        assert list(mine["model"]) == list(theirs["model"])
        for name, tensor in mine["model"].items():
            assert torch.equal(tensor, theirs["model"][name]), name
    histories = [timeless(ends[0]["history"]) for ends in (whole, resumed)]
    if count > 1:
        for a, b in zip(*histories, strict=True):
            for name in [name for name in a if name.startswith("train_")]:
                assert a.pop(name) == pytest.approx(b.pop(name), rel=1e-6), name
    assert histories[0] == histories[1]
    assert "resumed within epoch 2 of 3, after step" in "".join(resumed[0]["messages"])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["folder", "text"])
def test_another_number_of_processes_goes_on_and_says_what_is_lost(
    server: ForkServer, data: dict[str, Path], tmp_path: Path, case: str
) -> None:
    ended(server, tmp_path, case, data[case], "cut", 2)
    (resumed,) = ended(server, tmp_path, case, data[case], "resumed", 1)
    assert [record["epoch"] for record in resumed["history"]] == [1, 2, 3]
    assert resumed["history"][0]["samples"] == resumed["history"][1]["samples"], "nothing twice, nothing left out"
    assert "they were others in number" in "".join(resumed["messages"])
