"""Counts the inputs of tests marked `attack`, and lets none of them hang or allocate without bound."""

from __future__ import annotations

import functools
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS, WAIT, BYTES = 10, 120, 4 * 2**30  # of the processor, and in all; what may be added to what is allocated
KEY = "attack inputs"


@contextmanager
def limited() -> Iterator[None]:
    """Fails what takes too long (through any `except Exception`), and refuses memory beyond the limit."""

    def late(*_: object) -> None:
        pytest.fail(f"this input took more than {SECONDS} s of the processor, or {WAIT} s in all")

    pages, (soft, hard) = Path("/proc/self/statm"), resource.getrlimit(resource.RLIMIT_AS)
    kinds = {signal.SIGPROF: (signal.ITIMER_PROF, SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAIT)}
    before = {number: signal.signal(number, late) for number in kinds}
    for timer, seconds in kinds.values():
        signal.setitimer(timer, seconds)
    if pages.exists():  # Linux tells what is allocated
        limit = int(pages.read_text().split()[0]) * resource.getpagesize() + BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, (timer, _) in kinds.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def watch(item: pytest.Item) -> None:
    """Put what Hypothesis calls once for each input under the limits, in place of a timeout of the whole test."""
    handle = getattr(getattr(item, "obj", None), "hypothesis", None)
    if handle is None:
        return
    item.add_marker(pytest.mark.timeout(0))
    if not hasattr(handle.inner_test, "inputs"):  # a test with parameters is collected several times
        handle.inner_test = _watched(handle.inner_test)


def _watched(test: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(test)
    def one(*arguments: Any, **named: Any) -> None:
        one.inputs += 1  # type: ignore[attr-defined]
        with limited():
            test(*arguments, **named)

    one.inputs = 0  # type: ignore[attr-defined]
    return one


def take_count(item: pytest.Item) -> None:
    """Note how many inputs a test has had, where a report finds it, also one from another process."""
    test = getattr(getattr(getattr(item, "obj", None), "hypothesis", None), "inner_test", None)
    if hasattr(test, "inputs"):
        item.user_properties.append((KEY, test.inputs))
        test.inputs = 0


def lines_of(reports: Iterable[Any]) -> list[str]:
    """Inputs of each test, over its parameters, and of all."""
    counts: Counter[str] = Counter()
    for report in reports:
        if report.when == "call":
            counts[report.nodeid.partition("[")[0]] += sum(n for key, n in report.user_properties if key == KEY)
    return [*(f"{n:6d} {test}" for test, n in sorted(counts.items()) if n), f"{counts.total():6d} inputs"]
