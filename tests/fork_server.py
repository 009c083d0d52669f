"""Processes that start fast: one interpreter has imported torch, and forks a child (or several) for each request.

Requests and answers are lines of JSON. A module of cases is imported when one of its functions is first asked for.
Forking happens before torch has computed anything, so there are no threads.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (negative for a signal) and what it printed."""

    code: int
    output: str


class ForkServer:
    """Runs ``module:function(*arguments)`` in forked processes."""

    def __init__(self) -> None:
        search = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "fork_server.py")],
            env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, function: str, *arguments: Any, count: int = 1, folder: Path, timeout: float = 120.0,
            signals: Mapping[int, tuple[int, float]] | None = None) -> list[Ended]:  # fmt: skip
        """Runs it in `count` processes, told of each other as torchrun would.

        Args:
            function: ``module:function``.
            arguments: as JSON holds them.
            count: number of processes.
            folder: for what they print.
            timeout: after so many seconds all are killed.
            signals: by rank, a signal and after how many seconds it is sent.
        """
        request = {"function": function, "arguments": arguments, "count": count, "folder": str(folder),
                   "timeout": timeout, "signals": {str(k): v for k, v in (signals or {}).items()}}  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [Ended(*item) for item in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    try:
        yield server
    finally:
        server.close()


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _child(request: Mapping[str, Any], rank: int, port: int, printed: Path) -> None:
    descriptor = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if request["count"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["count"]),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    code = 1
    try:
        module, function = request["function"].split(":")
        code = getattr(import_module(module), function)(*request["arguments"]) or 0
    except BaseException:  # noqa: BLE001 - the child must not go on as the server
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(request: Mapping[str, Any]) -> list[tuple[int, str]]:
    import_module(request["function"].partition(":")[0])  # here, once for all that are forked
    port, started = free_port(), time.monotonic()
    files = [Path(request["folder"]) / f"printed-{rank}.txt" for rank in range(request["count"])]
    children = []
    for rank, printed in enumerate(files):
        child = os.fork()
        if child == 0:
            _child(request, rank, port, printed)
        children.append(child)
    due = {int(rank): tuple(what) for rank, what in request["signals"].items()}
    codes: dict[int, int] = {}
    while len(codes) < len(children):
        passed = time.monotonic() - started
        for rank, child in enumerate(children):
            if rank in codes:
                continue
            if rank in due and passed >= due[rank][1]:
                os.kill(child, due.pop(rank)[0])
            if passed > request["timeout"]:
                os.kill(child, signal.SIGKILL)
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return [(codes[rank], files[rank].read_text() if files[rank].exists() else "") for rank in range(len(children))]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        answers.write(json.dumps(_serve(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
