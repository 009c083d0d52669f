"""Calling torch's exporters without their noise, and without taking anything away from other threads.

Exporting is not safe in two threads at once, and what silences a process (``logging.disable``, another ``sys.stderr``,
``warnings.catch_warnings``) silences everybody in it, for good if two of them overlap. So exporters are called one at
a time, and what is silenced is what *this* thread says.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch

LIBRARIES = frozenset({"torch", "onnxscript", "onnx_ir", "onnx"})  # whose log lines are dropped
Stream = Literal["stdout", "stderr"]
_ONE_AT_A_TIME = threading.RLock()


@contextmanager
def quiet(*streams: Stream) -> Iterator[None]:
    """While entered, this thread exports alone, and its warnings and the exporters' log lines are dropped.

    Args:
        streams: of which this thread's output is dropped, too.

    Example:
        >>> with quiet("stdout"):
        ...     print("exporting ...")
    """
    with _ONE_AT_A_TIME, ExitStack() as stack:
        stack.enter_context(_no_warnings())
        stack.enter_context(_no_log_lines())
        for name in streams:
            stack.enter_context(_no_output(name))
        yield


@contextmanager
def quiet_rng() -> Iterator[None]:
    """`quiet`, also on stderr, where failing graphs are printed; without effect on the CPU's global random state."""
    with quiet("stderr"), torch.random.fork_rng(devices=[]):
        yield


class _Mine:
    """Whether it is this thread that asks, until it is over; what others copied meanwhile is then without effect."""

    def __init__(self) -> None:
        self._thread: int | None = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() == self._thread

    def match(self, _text: str) -> bool:
        """As the pattern of a warning filter: every message of this thread."""
        return bool(self)

    def over(self) -> None:
        self._thread = None


@contextmanager
def _no_warnings() -> Iterator[None]:
    mine = _Mine()
    entry = ("ignore", mine, Warning, None, 0)
    cast(list[Any], warnings.filters).insert(0, entry)
    try:
        yield
    finally:
        mine.over()
        filters = cast(list[Any], warnings.filters)
        filters[:] = [other for other in filters if other is not entry]


@contextmanager
def _no_log_lines() -> Iterator[None]:
    mine = _Mine()

    def wanted(record: logging.LogRecord) -> bool:
        return not (mine and record.name.partition(".")[0] in LIBRARIES)

    loggers = [
        logging.root,
        *(v for v in list(logging.root.manager.loggerDict.values()) if isinstance(v, logging.Logger)),
    ]
    handlers = {handler for logger in loggers for handler in list(logger.handlers)}
    if logging.lastResort is not None:
        handlers.add(logging.lastResort)
    for handler in handlers:
        handler.addFilter(wanted)
    try:
        yield
    finally:
        mine.over()
        for handler in handlers:
            handler.removeFilter(wanted)


class _Apart:
    """A stream that drops what one thread writes."""

    def __init__(self, stream: Any, mine: _Mine) -> None:
        self._stream, self._mine = stream, mine

    def write(self, text: str) -> int:
        return len(text) if self._mine else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _no_output(name: Stream) -> Iterator[None]:
    mine, stream = _Mine(), getattr(sys, name)
    if stream is None:  # a program without a console
        yield
        return
    apart = _Apart(stream, mine)
    setattr(sys, name, apart)
    try:
        yield
    finally:
        mine.over()
        if getattr(sys, name) is apart:
            setattr(sys, name, stream)
