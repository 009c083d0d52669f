"""Growth on another device than the CPU: the same network, nothing left on the CPU, and no step waits for the device.

No GPU is needed: a device of device.cpp stands in for one, which takes a C++ compiler half a minute.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fork_server import ForkServer, fork_server
from marks import quick, slow
from standin import backend, cases

# attention and recurrent cells are computed in other steps than on the CPU
GROWN = {
    ("residual", "sgd", ""): 0.0,
    ("residual", "adamw", "by lot from trained weights"): 0.0,
    ("residual", "sgd", "the paper's version"): 0.0,
    ("residual", "adamw", "few bits"): 0.0,
    ("plain", "adamw", ""): 0.0,
    ("mlp", "sgd", "steps"): 0.0,
    ("lstm", "sgd", ""): 1e-6,
    ("tied", "adamw", ""): 1e-5,
    ("gpt", "sgd", ""): 1e-5,
    ("attention", "sgd", ""): 1e-5,
}
QUICK = {
    ("residual", "sgd", ""),
    ("lstm", "sgd", ""),
    ("gpt", "sgd", ""),
    ("mlp", "sgd", "steps"),
    ("residual", "adamw", "few bits"),
}
DIGITS = ["epochs=2", "limit=300"]
RUNS = {
    "grown": ("digits", []),
    "few bits": ("digits", ["budget=10% size", "ema_decay=0.9"]),
    "paper": ("digits", ["method=scs"]),
    "slimming": ("digits", ["method=slimming"]),
}


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    if backend.COMPILER is None or sys.platform != "linux" or torch.__version__ < (2, 13):
        pytest.skip("needs Linux, a C++ compiler and PyTorch 2.13 or newer")
    return str(backend.build(tmp_path_factory.mktemp("standin")))


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """One of its own: in that of other tests torch may have computed gradients, and has counted the devices then."""
    with fork_server() as running:
        yield running


def passes(server: ForkServer, folder: Path, function: str, *arguments: object) -> None:
    (end,) = server.run(f"standin.cases:{function}", *arguments, folder=folder, timeout=300.0)
    assert end.code == 0, end.output


def test_the_device_can_tell(server: ForkServer, library: str, tmp_path: Path) -> None:
    passes(server, tmp_path, "can_tell", library)


@pytest.mark.parametrize(("name", "maker", "options"), quick(GROWN, QUICK))
def test_a_model_grows_alike(
    name: str, maker: str, options: str, server: ForkServer, library: str, tmp_path: Path
) -> None:
    passes(server, tmp_path, "grows_alike", library, name, maker, options, GROWN[name, maker, options])


@pytest.mark.parametrize("name", quick(RUNS, ["grown", "few bits"]))
def test_a_run_goes_by_the_same(name: str, server: ForkServer, library: str, tmp_path: Path) -> None:
    recipe, settings = RUNS[name]
    passes(server, tmp_path, "goes_by_the_same", library, str(tmp_path), recipe, [*DIGITS, *settings])


@pytest.mark.parametrize("settings", [["ema_decay=0.9", "clip_grad_norm=1.0", "flip=true"], slow(["method=scs"])])
def test_no_step_of_a_run_waits_for_the_device(
    settings: list[str], server: ForkServer, library: str, tmp_path: Path
) -> None:
    fixed = ["epochs=2", "interval_unit=epochs", "interval=1", *settings]
    passes(server, tmp_path, "waits_for_no_step", library, str(tmp_path), "digits", fixed)


def test_a_network_is_saved_and_exported(server: ForkServer, library: str, tmp_path: Path) -> None:
    passes(server, tmp_path, "is_saved_and_exported", library, str(tmp_path))


@pytest.mark.parametrize("function", ["is_measured_there", "refuses_inputs_of_another_device", "waits_for_no_batch"])
def test_what_needs_the_device(function: str, server: ForkServer, library: str, tmp_path: Path) -> None:
    passes(server, tmp_path, function, library)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["residual", "lstm", "gpt"])
def test_no_training_step_waits_for_a_gpu(name: str) -> None:
    training = cases.Training(name, "sgd", "", "cuda", cases.refused)
    training.epochs(cases.EPOCHS)
    training.grower.finish()
    assert {v.device.type for v in training.model.state_dict().values()} == {"cuda"}
