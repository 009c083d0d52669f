"""Stopping politely: a signal lets the running step end, then the run leaves with a checkpoint behind it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Interrupted(Exception):  # noqa: N818 - it is no error
    """A signal stopped the run. It can be resumed; the process should exit with `exit_code`.

    Attributes:
        signal_name: `"SIGINT"` or `"SIGTERM"`.
        exit_code: 75, which batch systems read as "run it again".
    """

    exit_code = EXIT_CODE

    def __init__(self, message: str, signal_name: str) -> None:
        super().__init__(message)
        self.signal_name = signal_name


class InterruptGuard:
    """While entered, SIGINT and SIGTERM are noted instead of obeyed; a second SIGINT is obeyed at once.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Example:
        >>> with InterruptGuard() as guard:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     guard.requested
        'SIGTERM'
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
