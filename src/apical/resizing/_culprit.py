"""Where in the user's code a forward pass failed."""

from __future__ import annotations

import linecache
import os
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from torch import nn

from apical.structure._nodes import NOT_USERS as TORCH_AND_STRUCTURE

# Torch, and what stands between; whole names of folders, since torchvision's begins like torch's.
NOT_USERS = (*TORCH_AND_STRUCTURE, f"{Path(__file__).parent}{os.sep}")


@dataclass(frozen=True)
class Culprit:
    """The innermost line outside of torch that raised, and the modules that were running.

    Attributes:
        modules: paths of the modules whose code was running, the innermost first.
        place: file and line number; the innermost of torch's own if the user's code is not involved.
        code: the source line, where it can be read.
        step: what tells several operations of one line apart.
    """

    modules: tuple[str, ...]
    place: tuple[str, int]
    code: str
    step: tuple[str, int] = ("", 0)

    @property
    def point(self) -> tuple[object, ...]:
        """What is different once the forward pass got further."""
        return self.modules, self.place, self.step

    def __str__(self) -> str:
        file, line = self.place
        return f"{Path(file).name}:{line}" + (f", `{self.code}`" if self.code else "")


def culprit(problem: BaseException, model: nn.Module) -> Culprit | None:
    """Where an exception of the model's forward pass comes from; None if no module of the model was running."""
    names = {id(module): name for name, module in model.named_modules()}
    modules: list[str] = []
    frames: list[tuple[FrameType, int, int]] = []
    trace = problem.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if id(owner) in names and isinstance(owner, nn.Module):
            modules.insert(0, names[id(owner)])
        if modules:
            frames.append((trace.tb_frame, trace.tb_lineno, trace.tb_lasti))
        trace = trace.tb_next
    if not modules:
        return None
    own = [f for f in frames if not f[0].f_code.co_filename.startswith(NOT_USERS)]
    frame, line, instruction = (own or frames)[-1]
    file = frame.f_code.co_filename
    code = linecache.getline(file, line).strip()
    return Culprit(tuple(dict.fromkeys(modules)), (file, line), code, (frame.f_code.co_name, instruction))


SIZES_IN_CODE = ("reshape", "view", "unflatten", "split", "expand", "chunk", "unpack", "narrow", "repeat")


def explained(problem: BaseException, model: nn.Module) -> str:
    """The exception in one line, where it came from, and what to write there instead."""
    lines = str(problem).strip().splitlines()
    text = f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__
    where = culprit(problem, model)
    if where is None or where.place[0].startswith(NOT_USERS):
        return text
    advice = "read the size from the tensor or from a layer's weight there"
    if any(word in where.code for word in SIZES_IN_CODE):
        advice = "write -1 for the size that changes there, or read it from the tensor that is reshaped"
    return f"{text} (at {where}). That line expects a fixed size: {advice}, or see apical.register_module"
