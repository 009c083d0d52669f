"""What all tests share: one thread, no network, few and repeatable Hypothesis examples."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

import attack
from fork_server import ForkServer, fork_server
from traced_once import trace_once

collect_ignore_glob = ["*cases.py"]  # nothing to collect: what tests or their processes import

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts in the background

settings.register_profile(
    "short",
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("long", parent=settings.get_profile("short"), max_examples=30)
settings.register_profile("thorough", parent=settings.get_profile("short"), max_examples=500, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Every test starts from one seed and leaves torch's global switches as it found them."""
    dtype, deterministic = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """What was made before is left out of garbage collection, and of the copies that a `Grower` looks for."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def traced_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each network is traced once, not once a run; `make test-all`, which selects by no mark, traces anew each time."""
    if request.config.option.markexpr:
        trace_once(monkeypatch)


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    """Forks processes that run the functions of modules of cases."""
    with fork_server() as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test's number of inputs goes into its report."""
    try:
        return (yield)
    finally:
        attack.take_count(item)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Of an attack, the inputs of each test."""
    if not settings().derandomize:
        reports = [r for status in ("passed", "failed") for r in terminalreporter.stats.get(status, ())]
        terminalreporter.write_line("\n".join(attack.lines_of(reports)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `attack` are watched in an attack; those marked `gpu`, skipped where there is no CUDA device."""
    if not settings().derandomize:
        for item in items:
            if "attack" in item.keywords:
                attack.watch(item)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)
