"""A call that Ctrl-C does not cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let Ctrl-C wait for the end of what must happen as a whole; a second one is obeyed at once.

    So a notebook's cell that was interrupted can be run again: the epoch has ended, or it has not. Where Ctrl-C is not
    Python's (outside the main thread, or if it is ignored) this does nothing.

    Example:
        >>> try:
        ...     with undisturbed():
        ...         signal.raise_signal(signal.SIGINT)
        ...         print("as a whole")
        ... except KeyboardInterrupt:
        ...     print("then interrupted")
        as a whole
        then interrupted
    """
    obeyed = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(obeyed):
        yield
        return
    waiting: list[tuple[int, Any]] = []

    def obey() -> None:
        while waiting:
            obeyed(*waiting.pop(0))

    def note(number: int, frame: Any) -> None:
        waiting.append((number, frame))
        if len(waiting) > 1:
            obey()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, obeyed)
        obey()
