"""Traces in several threads, and what a trace leaves to the other threads of its process."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.errors import TraceError
from apical.structure._quiet import quiet, quiet_rng


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


class Branch(nn.Module):
    """Cannot be exported, for which torch prints a graph and logs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return x if x.sum() > 0 else -x


def in_threads(count: int, call: object) -> None:
    threads = [threading.Thread(target=call) for _ in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_that_trace_do_not_meet() -> None:
    found: list[object] = []

    def work() -> None:
        try:
            found.append([group.size for group in apical.trace(net(), torch.zeros(1, 3, 8, 8)).groups])
        except Exception as error:  # noqa: BLE001
            found.append(error)

    apical.trace(net(), torch.zeros(1, 3, 8, 8))  # the first one imports libraries that set filters of their own
    before = (sys.stderr, logging.root.manager.disable, list(warnings.filters))
    for _ in range(3):
        in_threads(3, work)
    assert found == [[6]] * 9
    assert sys.stderr is before[0]
    assert logging.root.manager.disable == before[1]
    assert warnings.filters == before[2]
    apical.trace(net(), torch.zeros(1, 3, 8, 8))


def test_what_other_threads_say_is_heard(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    def speak() -> None:
        logging.getLogger("mine").warning("a line of mine")
        logging.getLogger("torch.distributed").warning("a line of torch in another thread")
        print("printed", file=sys.stderr)
        warnings.warn("a warning of mine", stacklevel=1)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_rng():
            in_threads(1, speak)
            logging.getLogger("mine").warning("the tracing thread's own")
            logging.getLogger("torch.export").error("not heard")
            logging.getLogger("torch._dynamo.x").error("not heard")
            print("not heard", file=sys.stderr)
            warnings.warn("not heard", stacklevel=1)
    assert [r.getMessage() for r in caplog.records] == [
        "a line of mine", "a line of torch in another thread", "the tracing thread's own",
    ]  # fmt: skip
    assert [str(w.message) for w in caught] == ["a warning of mine"]
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1] == "printed"
    assert not [line for line in shown if "not heard" in line]


def test_a_failing_trace_is_quiet_and_says_why(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TraceError, match=r"torch\.export cannot trace Branch: GuardOnDataDependentSymNode"):
        apical.trace(Branch(), torch.ones(2, 3))
    assert capfd.readouterr().err == ""
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_whoever_replaces_a_stream_or_the_filters_meanwhile_is_not_muted_for_good() -> None:
    """Another thread's redirection begins within a trace and ends after it, and so brings back what the trace set."""
    real, kept = sys.stderr, list(warnings.filters)
    catch, sink = warnings.catch_warnings(), io.StringIO()
    try:
        with quiet("stderr"):
            left = sys.stderr
            sys.stderr = sink
            catch.__enter__()
        assert sys.stderr is sink
        catch.__exit__(None, None, None)
        assert type(warnings.filters[0][1]).__name__ == "_Mine", "what the trace had set is there again"
        sys.stderr = left
        with warnings.catch_warnings(record=True) as caught:
            warnings.filters[:] = [*warnings.filters[:1], ("always", None, Warning, None, 0)]  # type: ignore[index]
            warnings.warn("heard", RuntimeWarning, stacklevel=1)
        assert [str(w.message) for w in caught] == ["heard"]
        left._stream = io.StringIO()  # type: ignore[attr-defined]
        print("heard", file=sys.stderr)
        assert left._stream.getvalue() == "heard\n"  # type: ignore[attr-defined]
    finally:
        sys.stderr = real
        warnings.filters[:] = kept  # type: ignore[index]
