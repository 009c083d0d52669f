"""Finding the arguments of calls in the user's code that are sizes: what they are, and that no batch changes them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from apical.resizing._copying import sharing_copy
from apical.resizing._culprit import NOT_USERS
from apical.resizing._read_attributes import ReadAttributes
from apical.resizing._testbed import Example
from apical.structure._local_sizes import Method, method_of, noting, places

# What an argument may be made of, so that working it out once more changes nothing.
_PLAIN = (ast.Name, ast.Attribute, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Subscript, ast.operator, ast.unaryop,
          ast.expr_context)  # fmt: skip


@dataclass(frozen=True)
class LocalSize:
    """An argument of a call in a method of a module that a forward pass came through before it failed.

    Attributes:
        module: path of the module.
        method: name of the method.
        attribute: what would stand for the argument (`apical.structure._local_sizes`).
        now: what it was when the call failed; None if it is unknown, or if another call did.
    """

    module: str
    method: str
    attribute: str
    now: int | None = None


@dataclass
class FullSizes:
    """What arguments are in the full model, where they are always the same, and which attributes it reads."""

    model: nn.Module
    example: Example
    known: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)

    @cached_property
    def read(self) -> ReadAttributes:
        """The attributes that a call reads, by module path and name."""
        return ReadAttributes(self.model, self.example)

    def of(self, size: LocalSize) -> int | None:
        """An argument's value; None if it is no integer, or differs between calls or batches."""
        self.observe([size])
        return self.known[size.module, size.method].get(size.attribute)

    def observe(self, sizes: Iterable[LocalSize]) -> None:
        """Note the arguments in the methods that these are in, of all modules of their classes."""
        asked = dict.fromkeys((s.module, s.method) for s in sizes if (s.module, s.method) not in self.known)
        kinds = {(type(self.model.get_submodule(path)), method) for path, method in asked}
        methods = {(path, how) for path, m in self.model.named_modules() for kind, how in kinds if type(m) is kind}
        if methods:
            self._observe(methods)

    def _observe(self, methods: Collection[tuple[str, str]]) -> None:
        values: dict[tuple[str, str], dict[str, int]] = {key: {} for key in methods}
        unsteady: set[tuple[str, str]] = set()

        def note(key: tuple[str, str], name: str, value: Any) -> Any:
            fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
            if not fits or values[key].setdefault(name, value) != value:
                unsteady.add((key[0], name))
            return value

        for i, example in enumerate((self.example, *_others(self.example))):
            twin = sharing_copy(self.model)
            for path, method in methods:
                noting(twin.get_submodule(path), method, partial(note, (path, method)))
            try:
                example.run(twin)
            except Exception:  # noqa: BLE001 (a model that takes no other batch or length)
                if i == 1:  # what depends on the batch is not known then
                    values = {key: {} for key in methods}
                    break
        for (path, method), found in values.items():
            self.known[path, method] = {name: v for name, v in found.items() if (path, name) not in unsteady}


def _others(example: Example) -> Iterator[Example]:
    """The example with a batch twice as large, and with other lengths and sides."""

    def changed(how: Any) -> Example:
        args, kwargs = torch.utils._pytree.tree_map(how, (example.args, example.kwargs))
        return replace(example, args=args, kwargs=kwargs)

    yield changed(lambda v: torch.cat([v, v]) if isinstance(v, Tensor) and v.dim() else v)
    yield changed(lambda v: v[:, :-1] if isinstance(v, Tensor) and 1 < v.dim() < 4 and v.shape[1] > 1 else v)
    yield changed(lambda v: v[..., :-1] if isinstance(v, Tensor) and v.dim() == 3 and v.shape[2] > 1 else v)
    yield changed(
        lambda v: v[..., : v.shape[-2] // 2, : v.shape[-1] // 2] if isinstance(v, Tensor) and v.dim() == 4 else v
    )


def local_sizes(problem: BaseException, model: nn.Module) -> list[LocalSize]:
    """The arguments of calls that an exception came through or after, the likeliest first.

    That is the call that failed, then those on the lines before it, from the innermost method on.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: list[LocalSize] = []
    trace = problem.__traceback__
    while trace is not None:
        frame, code = trace.tb_frame, trace.tb_frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if isinstance(owner, nn.Module) and id(owner) in names and not code.co_filename.startswith(NOT_USERS):
            method = method_of(type(owner), code.co_name)
            if method is not None and method.function.__code__.co_firstlineno == code.co_firstlineno:
                failed = _position(trace.tb_lasti, frame) or (trace.tb_lineno, trace.tb_lineno, None, None)
                sizes = _arguments(method, frame, failed)
                found = [LocalSize(names[id(owner)], code.co_name, *size) for size in sizes] + found
        trace = trace.tb_next
    return found


Position = tuple[int | None, int | None, int | None, int | None]  # first and last line, first and last column


def _position(instruction: int, frame: FrameType) -> Position | None:
    """Where in the source an instruction is; None before Python 3.11."""
    positions = getattr(frame.f_code, "co_positions", None)
    return None if positions is None else list(positions())[instruction // 2]


def _arguments(method: Method, frame: FrameType, failed: Position) -> Iterator[tuple[str, int | None]]:
    """The arguments of calls up to the one that failed, the last first, and what they were in that one."""
    calls = list(enumerate(method.calls()))

    def is_here(call: ast.Call) -> bool:
        if failed[2] is None:  # the line is all that is known
            return call.lineno <= (failed[0] or 0) <= (call.end_lineno or 0)
        return (call.lineno, call.end_lineno, call.col_offset, call.end_col_offset) == failed

    calls.sort(key=lambda numbered: (not is_here(numbered[1]), -numbered[1].lineno, -numbered[1].col_offset))
    for number, call in calls:
        if call.lineno > (failed[1] or call.lineno) or not isinstance(call.func, ast.Attribute):
            continue
        for argument, (holder, i) in enumerate(places(call)):
            now = _value(holder[i], frame) if is_here(call) else None
            yield method.name_of(number, argument), now


def _value(argument: ast.expr, frame: FrameType) -> int | None:
    """What an argument is where the code stopped; None if it is no integer, or not plain to work out."""
    if not all(isinstance(node, _PLAIN) or _asks_size(node) for node in ast.walk(argument)):
        return None
    code = compile(ast.fix_missing_locations(ast.Expression(argument)), "<size>", "eval")
    try:
        value = eval(code, frame.f_globals, frame.f_locals)  # noqa: S307 (of the user's own code, which just ran)
    except Exception:  # noqa: BLE001 (whatever a property of the user's raises)
        return None
    return value if isinstance(value, int) else None


def _asks_size(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "size"
