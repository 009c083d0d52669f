"""Stopping politely: a signal lets the running step end, then the run leaves with a checkpoint behind it."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from apical.training._processes import Processes, any_of_all

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


def what_is_kept(checkpoint: Path, done: int, epochs: int, within: bool) -> str:
    """What a stopped run has saved, and where it goes on.

    Example:
        >>> what_is_kept(Path("checkpoint.pt"), 2, 9, False)
        'checkpoint.pt holds the run after 2 of 9 epochs; resumed, it goes on with the beginning of epoch 3'
    """
    if done == epochs:
        return "All epochs are done; resume to write the final files"
    if within:
        return f"{checkpoint} holds the run as it is, within epoch {done + 1} of {epochs}; resumed, it goes on there"
    return (
        f"{checkpoint} holds the run after {done} of {epochs} epochs; resumed, it goes on with the beginning of epoch "
        f"{done + 1}"
    )


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

    def came(self, team: Processes, due: bool = True) -> bool:
        """Whether a signal came. Several processes ask each other, together, when it is `due`."""
        own = self.requested is not None
        return own if team.count == 1 else due and bool(any_of_all(int(own)))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.requested == "SIGINT" and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
