"""Processes that save into a folder and die on the way, for `test_save_whole`."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import apical
from apical.errors import ExportError, SaveError
from apical.export import _save, export_pt2

_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir"})


def net(value: float) -> nn.Module:
    """A model all of whose weights are one number, so that a mixture of two saves is noticed."""
    model = nn.Linear(3, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def killed_at(folder: str, number: int) -> int:
    """Saves a model of twos, and is killed before the given one of the things that this does to the folder's files."""
    model, seen = net(2.0), []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and any(str(argument).startswith(folder) for argument in arguments):
            seen.append(event)
            if len(seen) == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    apical.save(model, folder)
    return 0


def killed_while_writing(folder: str) -> int:
    """Is killed with half of the weights written."""

    def half(_tensors: object, path: Path) -> None:
        path.write_bytes(b"\0" * 100)
        os.kill(os.getpid(), signal.SIGKILL)

    _save.save_file = half  # type: ignore[assignment]
    apical.save(net(2.0), folder)
    return 0


def file_limit(folder: str) -> int:
    """May write no file as large as the weights are."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        apical.save(nn.Linear(64, 64), folder)
    except SaveError as error:
        print(error)
        return 2
    return 0


def program_limit(folder: str) -> int:
    """May write no file as large as a program is."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        export_pt2(nn.Linear(64, 64), torch.zeros(2, 64), Path(folder) / "model.pt2")
    except ExportError as error:
        print(error)
        return 2
    return 0


def saves(folder: str, value: float, times: int) -> int:
    """Saves again and again."""
    for _ in range(times):
        apical.save(net(value), folder)
    return 0
