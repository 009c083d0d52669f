"""Two processes train one model: the same structures and weights in both, and those of one process alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apical.data import ImageLoader, RandomCrop, RandomFlip, synthetic_images
from apical.errors import ConfigError
from apical.growth._observer import add_at_
from apical.recipes.tasks.classification._stream import StreamLoader
from apical.training import Processes, processes
from apical.training._config import resolve_device
from apical.training._parallel import Replica, fingerprint
from fork_server import Ended, ForkServer
from marks import slow

SERVED = "training.parallel_cases"


def run(server: ForkServer, folder: Path, function: str = "run", *arguments: Any, count: int = 2,
        signals: Any = None) -> list[Ended]:  # fmt: skip
    folder.mkdir(exist_ok=True)
    return server.run(f"{SERVED}:{function}", str(folder), *arguments, count=count, folder=folder, signals=signals)


def states(ended: list[Ended], folder: Path) -> list[dict[str, Any]]:
    assert all(e.code == 0 for e in ended), "\n".join(e.output for e in ended)
    return [torch.load(folder / f"state-{rank}.pt") for rank in range(len(ended))]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def assert_close(a: dict[str, Any], b: dict[str, Any], tolerance: float = 1e-9) -> None:
    """The same widths in every epoch, and the same weights, statistics and losses but for rounding."""
    assert [r["widths"] for r in a["history"]] == [r["widths"] for r in b["history"]]
    assert [r["skipped"] for r in a["history"]] == [r["skipped"] for r in b["history"]]
    for name, tensor in a["model"].items():
        assert torch.allclose(tensor, b["model"][name], rtol=tolerance, atol=tolerance), name


@pytest.fixture(scope="module")
def alone(server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process ends with."""
    folder = tmp_path_factory.mktemp("one")
    (state,) = states(run(server, folder, count=1), folder)
    return state


def test_two_processes_are_one(server: ForkServer, alone: dict[str, Any], tmp_path: Path) -> None:
    """Same widths, weights, statistics, losses and counts as one process on the whole batches; float64."""
    two = tmp_path / "two"
    first, second = states(run(server, two), two)
    assert_equal(first["model"], second["model"])
    assert_close(alone, first)
    assert len({json.dumps(r["widths"]) for r in first["history"]}) > 2, "the network did change"
    for mine, theirs in zip(alone["history"], first["history"], strict=True):
        assert mine["samples"] == theirs["samples"]
        for name, tolerance in {"train_loss": 1e-9, "train_accuracy": 0, "eval_loss": 1e-6, "eval_accuracy": 0}.items():
            assert mine[name] == pytest.approx(theirs[name], rel=tolerance), name
    assert alone["summary"]["test_loss"] == pytest.approx(second["summary"]["test_loss"], rel=1e-6), "float32"
    assert (first["summary"]["processes"], first["summary"]["test_samples"]) == (2, 13)
    assert "BatchNorm2d" in first["kinds"]
    assert "ProcessBatchNorm" not in first["kinds"]
    files = sorted(p.name for p in (two / "run").iterdir())
    assert files == ["checkpoint.prev.pt", "checkpoint.pt", "config.json", "history.jsonl", "summary.json"]


def test_a_text_is_shared_by_its_streams(server: ForkServer, tmp_path: Path) -> None:
    """Same widths, weights and losses as one process, with a recurrent state and odd shares of the evaluation."""
    (alone,) = states(run(server, tmp_path / "one", "text", count=1), tmp_path / "one")
    first, second = states(run(server, tmp_path / "two", "text"), tmp_path / "two")
    assert_equal(first["model"], second["model"])
    assert_close(alone, first)
    assert len({json.dumps(r["widths"]) for r in first["history"]}) > 1, "the network did change"
    for mine, theirs in zip(alone["history"], first["history"], strict=True):
        assert mine["samples"] == theirs["samples"]
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-9)
        assert mine["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-6)


def test_norms_apart_dropout_augmentation_and_averages(server: ForkServer, tmp_path: Path) -> None:
    """Whatever a process draws or measures for itself, both end with the same model."""
    options = {"sync": False, "dropout": 0.3, "augment": True, "ema": 0.5}
    first, second = states(run(server, tmp_path, "run", False, options), tmp_path)
    assert_equal(first["model"], second["model"])
    assert first["history"][-1]["train_loss"] == second["history"][-1]["train_loss"]


def test_a_users_own_loop(server: ForkServer, tmp_path: Path) -> None:
    first, second = states(run(server, tmp_path, "own_loop"), tmp_path)
    assert_equal(first["model"], second["model"])
    assert first["history"][-1]["macs_fraction"] == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize(("before", "after"), [(2, 1), slow(1, 2), slow(2, 2)])
def test_resumed_by_another_number_of_processes(
    server: ForkServer, alone: dict[str, Any], tmp_path: Path, before: int, after: int
) -> None:
    """Stopped by a signal to one process, all save and leave; the rest of the run is that of an unbroken one."""
    folder = tmp_path / "run"
    stopped = run(server, folder, "stopped", 3, 2, count=before)
    assert [e.code for e in stopped] == [75] * before, stopped[0].output
    assert "SIGTERM" in stopped[before - 1].output
    saved = torch.load(folder / "run" / "checkpoint.pt")
    assert saved["epoch"] == 2
    assert saved["state"]["begun"]["steps"] == (2 if before == 1 else 4)
    ended = states(run(server, folder, "run", True, count=after), folder)
    assert_close(alone, ended[0])
    for mine, theirs in zip(alone["history"], ended[0]["history"], strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-9)
        assert mine["samples"] == theirs["samples"]


def test_what_is_measured_is_measured_by_the_first(server: ForkServer, tmp_path: Path) -> None:
    """Latency table and divisor: clocks never agree, networks must."""
    first, second = states(run(server, tmp_path, "measured"), tmp_path)
    assert (first.pop("calls") > 0, second.pop("calls")) == (True, 0)
    assert first == second


@pytest.mark.slow
def test_who_cannot_measure_tells_the_others(server: ForkServer, tmp_path: Path) -> None:
    ended = run(server, tmp_path, "first_cannot_measure")
    assert [e.code for e in ended] == [2, 2]
    assert "process 0 could not measure what all need: ApicalError: no timer" in ended[1].output


def test_processes_that_decide_differently_stop(server: ForkServer, tmp_path: Path) -> None:
    ended = run(server, tmp_path, "run", False, {"torn_apart": True})
    for rank, end in enumerate(ended):
        assert end.code == 2
        assert "TrainingError: the processes no longer train the same network" in end.output
        assert f"of process 1 and of process 0 differ at the start; this is process {rank}" in end.output


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ("labels", r"contents\.train\.digest is '\w+' in process 0, '\w+' in process 1"),
        slow("size", r"contents\.train\.samples is 40 in process 0, 32 in process 1"),
        slow("eval_every", r"training\.eval_every is 1 in process 0, 2 in process 1"),
        slow("ema", r"training\.ema_decay is None in process 0, 0\.9 in process 1"),
        ("resume", r"resume is False in process 0, True in process 1"),
    ],
)
def test_processes_that_are_given_other_things_stop_at_the_start(
    server: ForkServer, tmp_path: Path, odd: str, message: str
) -> None:
    for rank, end in enumerate(run(server, tmp_path, "run", False, {"odd": odd}, count=2)):
        assert end.code == 2, end.output
        assert "TrainingError: the processes would not do the same run" in end.output
        assert re.search(message, end.output), end.output
        assert f"differ from process 0: 1; this is process {rank}" in end.output
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_loss_that_is_no_number_in_one_process_stops_all(server: ForkServer, tmp_path: Path) -> None:
    ended = run(server, tmp_path, "run", False, {"poison": (1, 7)})
    assert [e.code for e in ended] == [2, 2]
    assert "the loss is nan in epoch 2, step 2" in ended[0].output, "the norms' shared statistics carried it over"
    assert "the loss is nan in epoch 2, step 2" in ended[1].output


@pytest.mark.parametrize("number", [slow(signal.SIGSTOP), signal.SIGKILL])
def test_a_process_that_is_lost_is_named_by_the_others(server: ForkServer, tmp_path: Path, number: int) -> None:
    first, second = run(server, tmp_path, "lost", int(number))
    assert second.code == -signal.SIGKILL
    assert first.code == 2, first.output
    assert re.search(r"ProcessLostError: no sign of life of process 1, since \d{4}-\d\d-\d\d", first.output), (
        first.output
    )
    assert "An exchange of process 0 with the others failed" in first.output
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_loaders_that_all_read_the_same_are_refused(server: ForkServer, tmp_path: Path) -> None:
    ended = run(server, tmp_path, "run", False, {"unshared": True})
    assert [e.code for e in ended] == [2, 2]
    assert "the training loader (ImageLoader) is that of process 1 of 1" in ended[1].output


def test_when_the_first_process_fails_the_others_do_not_wait(server: ForkServer, tmp_path: Path) -> None:
    first, second = run(server, tmp_path, "first_fails")
    assert (first.code, second.code) == (2, 2)
    assert "no space" in first.output
    assert "process 1 stops because process 0 could not go on" in second.output


def test_a_synchronised_norm_is_a_norm_of_the_whole_batch(server: ForkServer, tmp_path: Path) -> None:
    """Outputs, input and weight gradients, and running statistics; three against two values a channel in torch."""
    shares = states(run(server, tmp_path, "batch_norms", count=3), tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)).double()
    x = torch.randn(6, 3, 5, 5, dtype=torch.float64).requires_grad_(True)
    y = model(x)
    (y.square() * torch.arange(1.0, 5.0, dtype=torch.float64).view(1, 4, 1, 1)).sum().backward()
    for rank, share in enumerate(shares):
        assert share["paths"] == ["0", "2"]
        assert share["kinds"] == ["BatchNorm2d", "Conv2d", "BatchNorm2d"]
        assert torch.allclose(share["y"], y[rank::3])
        assert x.grad is not None
        assert torch.allclose(share["x"], x.grad[rank::3])
        for name, tensor in model.state_dict().items():
            assert torch.allclose(share["state"][name], tensor), name
    for parameter, *parts in zip(model.parameters(), *(share["grads"] for share in shares), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(sum(parts), parameter.grad)


@pytest.mark.slow
@pytest.mark.run
def test_torchrun_trains_a_recipe(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    settings = ["data.path=synthetic", "limit=64", "batch_size=16", "epochs=2", "model.depth=8", "model.width=8"]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "apical", "train", "digits", "--device", "cpu", "--out", str(tmp_path / "run"),
        *[part for setting in settings for part in ("--set", setting)],
    ]  # fmt: skip
    ended = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("done: test accuracy") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert (tmp_path / "run" / "report.html").exists()
    assert len((tmp_path / "run" / "history.jsonl").read_text().splitlines()) == 2


# ---- pieces, in one process -----------------------------------------------------------------------------------------


def images(number: int = 26) -> Any:
    return synthetic_images(num_images=number, num_classes=4, size=8)


def indices(loader: Any) -> list[list[float]]:
    return [batch.double().sum((1, 2, 3)).tolist() for batch, _ in loader]


def test_shares_make_up_the_whole_batches() -> None:
    whole = indices(ImageLoader(images(), 6, drop_last=True, seed=1, rank=0, world_size=1))
    shares = [indices(ImageLoader(images(), 2, drop_last=True, seed=1, rank=r, world_size=3)) for r in range(3)]
    assert [sorted(a + b + c) for a, b, c in zip(*shares, strict=True)] == [sorted(batch) for batch in whole]


def test_any_processs_state_resumes_all_of_them_within_an_epoch() -> None:
    def loader(rank: int) -> ImageLoader:
        return ImageLoader(images(), 2, drop_last=True, augment=(RandomFlip(), RandomCrop(1)), seed=1, rank=rank,
                           world_size=3)  # fmt: skip

    wholes = [indices(loader(rank)) for rank in range(3)]
    first = loader(0)
    batches = iter(first)
    next(batches), next(batches)
    state = first.state_dict()
    for rank in range(3):
        resumed = loader(rank)
        resumed.load_state_dict(state)
        assert indices(resumed) == wholes[rank][2:]
    assert wholes[0] != wholes[1]


@pytest.mark.parametrize("shuffle", [True, False])
def test_streams_are_shared(tmp_path: Path, shuffle: bool) -> None:
    pytest.importorskip("PIL")
    from apical.data import Decode, open_images
    from photo_folder import write_image_folder

    write_image_folder(tmp_path, 7)
    source = open_images(str(tmp_path), decode=Decode(8, None, 3))

    def read(rank: int, count: int, batch: int) -> list[float]:
        loader = StreamLoader(source, batch, shuffle=shuffle, drop_last=shuffle, normalize=torch.Tensor.double,
                              device=torch.device("cpu"), seed=4, rank=rank, world_size=count)  # fmt: skip
        return [value for batch_of in indices(loader) for value in batch_of]

    shares = [read(rank, 2, 2) for rank in range(2)]
    if shuffle:
        whole = read(0, 1, 4)
        assert [whole[0::2], whole[1::2]] == shares, "the order of one process alone"
    else:
        assert sorted(shares[0] + shares[1]) == sorted(read(0, 1, 4))


def test_the_environment_of_torchrun_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes() == Processes()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes() == Processes(), "some cluster's own variable"
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert processes() == Processes(3, 4, 1)
    assert not processes().first
    with pytest.raises(ConfigError, match=r"batch_size=10 cannot be shared by 4 processes.*such as 8"):
        processes().share(10)
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(ConfigError, match=r"RANK=4, expected one in 0\.\.3"):
        processes()
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="expected whole numbers"):
        processes()


def test_each_process_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda:1")
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"'cuda:0' for 2 processes; expected 'cuda'"):
        resolve_device("cuda:0")


def test_fingerprints_tell_structures_and_weights_apart() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    same = fingerprint(model)
    assert fingerprint(model) == same
    with torch.no_grad():
        model[0].weight[1, 2] += 1e-6
    assert (fingerprint(model)[0] == same[0], fingerprint(model)[1] == same[1]) == (True, False)
    with torch.no_grad():
        model[1].weight.copy_(model[1].weight.flip(1))
    assert fingerprint(model)[1] != same[1]
    model[0] = nn.Linear(3, 4, bias=False)
    assert fingerprint(model)[0] != same[0]


def test_the_wrapper_is_kept_until_parameters_are_replaced() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    replica = Replica(model, torch.device("cpu"), sync_batchnorm=True)
    assert replica.module is model
    assert not replica.changed()
    replica.refresh("now")
    assert replica._wrapped is model
    model[0].weight = nn.Parameter(torch.zeros(4, 3))
    assert replica.changed()
    replica.refresh("now")
    assert replica._wrapped is None


def test_both_ways_of_adding_agree() -> None:
    """The one for CUDA is the same sum; which one runs depends on the device only."""
    targets, values = torch.tensor([2, 0, 2, 1, 2]), torch.randn(5)
    expected = torch.zeros(4).index_add_(0, targets, values)
    assert torch.allclose(torch.zeros(4).index_put_((targets,), values, accumulate=True), expected)
    assert torch.equal(add_at_(torch.zeros(4), targets, values), expected)
