"""Finding the arguments of calls and bounds of slices in the user's code that are sizes, and that no batch changes."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import CodeType, FrameType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.resizing._copying import sharing_copy
from apical.resizing._culprit import NOT_USERS
from apical.resizing._read_attributes import ReadAttributes
from apical.resizing._testbed import Example
from apical.structure._local_sizes import Method, Site, functions_of, method_of, noting, places

# What an argument may be made of, so that working it out once more changes nothing.
_PLAIN = (ast.Name, ast.Attribute, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Subscript, ast.operator, ast.unaryop,
          ast.expr_context)  # fmt: skip


Kind = Literal["argument", "bound", "quotient"]
KINDS: dict[type[ast.expr], Kind] = {ast.Call: "argument", ast.Subscript: "bound", ast.BinOp: "quotient"}


@dataclass(frozen=True)
class LocalSize:
    """An argument of a call, or a bound of a slice, that a forward pass came through before it failed.

    Attributes:
        module: path of the module in whose method it is, or in a function that this calls.
        method: name of the method, or of the function.
        attribute: what would stand for the argument (`apical.structure._local_sizes`).
        now: what it was when the call failed; None if it is unknown, or if another call did.
        kind: what it is; bounds of slices and quotients fail nowhere themselves.
    """

    module: str
    method: str
    attribute: str
    now: int | None = None
    kind: Kind = "argument"


Noted = dict[str, set[int | None]]  # what each argument of calls was, by its attribute; None where it is no size


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
        first, complete = self._noted(self.example, methods)
        batch, takes_batches = self._noted(_changed(self.example, _twice), methods)
        other = [self._noted(example, methods) for example in _other_sides(self.example)]
        # of the two dimensions after the batch one may be that of features, which cannot change
        counted = [noted for noted, ran in other if ran or not any(ran for _, ran in other)]
        for key in methods:
            found: Noted = {}
            for name, values in (item for noted in (first, batch, *counted) for item in noted[key].items()):
                found.setdefault(name, set()).update(values)
            steady = {name: next(iter(values)) for name, values in found.items() if len(values) == 1}
            known = {name: value for name, value in steady.items() if value is not None and name in first[key]}
            self.known[key] = known if complete and takes_batches else {}  # else what depends on the batch is not known

    def _noted(
        self, example: Example, methods: Collection[tuple[str, str]]
    ) -> tuple[dict[tuple[str, str], Noted], bool]:
        """What the sizes in some methods are in a call, as far as it comes, and whether it comes to its end."""
        twin = sharing_copy(self.model)
        noted: dict[tuple[str, str], Noted] = {key: {} for key in methods}

        def note(path: str, method: str, name: str, value: Any) -> Any:
            fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
            noted[path, method].setdefault(name, set()).add(value if fits else None)
            return value

        for path in dict.fromkeys(path for path, _ in methods):
            noting(twin.get_submodule(path), [how for at, how in methods if at == path], partial(note, path))
        try:
            example.run(twin)
        except Exception:  # noqa: BLE001 (a model that takes no other batch or length)
            return noted, False
        return noted, True


def _changed(example: Example, how: Callable[[Tensor], Tensor]) -> Example:
    args, kwargs = torch.utils._pytree.tree_map(
        lambda v: how(v) if isinstance(v, Tensor) else v, (example.args, example.kwargs)
    )
    return replace(example, args=args, kwargs=kwargs)


def _twice(v: Tensor) -> Tensor:
    return torch.cat([v, v]) if v.dim() else v


def _other_sides(example: Example) -> Iterator[Example]:
    """The example with other lengths and sides, in each way that changes it."""
    leaves = torch.utils._pytree.tree_leaves((example.args, example.kwargs))
    dims = {v.dim() for v in leaves if isinstance(v, Tensor)}
    if dims & {2, 3}:
        yield _changed(example, lambda v: v[:, :-1] if 1 < v.dim() < 4 and v.shape[1] > 1 else v)
    if 3 in dims:
        yield _changed(example, lambda v: v[..., :-1] if v.dim() == 3 and v.shape[2] > 1 else v)
    if 4 in dims:
        yield _changed(example, lambda v: v[..., : v.shape[-2] // 2, : v.shape[-1] // 2] if v.dim() == 4 else v)


def local_sizes(problem: BaseException, model: nn.Module) -> list[LocalSize]:
    """The arguments of calls that an exception came through or after, the likeliest first.

    That is the call that failed, then those on the lines before it, from the innermost method on.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found: list[LocalSize] = []
    trace = problem.__traceback__
    around: nn.Module | None = None  # the module whose method runs, or has called what runs
    while trace is not None:
        frame, code = trace.tb_frame, trace.tb_frame.f_code
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        mine = first if isinstance(first, nn.Module) and id(first) in names else None
        if not code.co_filename.startswith(NOT_USERS):
            for owner in (o for o in dict.fromkeys((mine, around)) if o is not None):
                method = method_of(type(owner), code.co_name)
                if method is not None and _is_code_of(code, method):
                    failed = _position(trace.tb_lasti, frame) or (trace.tb_lineno, trace.tb_lineno, None, None)
                    sizes = _arguments(method, frame, failed)
                    found = [LocalSize(names[id(owner)], code.co_name, *size) for size in sizes] + found
                    break
        around = mine or around
        trace = trace.tb_next
    return found


def _is_code_of(code: CodeType, method: Method) -> bool:
    """Whether code is a method's, or that of one made from it."""
    own = method.function.__code__
    return (own.co_firstlineno, own.co_filename) == (code.co_firstlineno, code.co_filename)


Position = tuple[int | None, int | None, int | None, int | None]  # first and last line, first and last column


def _position(instruction: int, frame: FrameType) -> Position | None:
    """Where in the source an instruction is; None before Python 3.11."""
    positions = getattr(frame.f_code, "co_positions", None)
    return None if positions is None else list(positions())[instruction // 2]


def quotients(model: nn.Module, paths: Iterable[str]) -> list[LocalSize]:
    """All quotients in the forward methods of some modules: sizes that may change a result and break nothing."""
    found: list[LocalSize] = []
    for path in paths:
        kind: Any = type(model.get_submodule(path))
        methods = [m for name in ("forward", *functions_of(kind)) if (m := method_of(kind, name)) is not None]
        for method in methods:
            numbers = [i for i, site in enumerate(method.sites()) if isinstance(site, ast.BinOp)]
            found += [LocalSize(path, method.name, method.name_of(i, 0), None, "quotient") for i in numbers]
    return found


def _arguments(method: Method, frame: FrameType, failed: Position) -> Iterator[tuple[str, int | None, Kind]]:
    """The sizes in a method up to the call that failed, the last first, what they were in that one, and their kinds."""
    sites = list(enumerate(method.sites()))

    def is_here(site: Site) -> bool:
        if failed[2] is None:  # the line is all that is known
            return site.lineno <= (failed[0] or 0) <= (site.end_lineno or 0)
        return (site.lineno, site.end_lineno, site.col_offset, site.end_col_offset) == failed

    sites.sort(key=lambda numbered: (not is_here(numbered[1]), -numbered[1].lineno, -numbered[1].col_offset))
    for number, site in sites:
        if site.lineno > (failed[1] or site.lineno):
            continue
        kind: Kind = KINDS[type(site)]
        sized = kind != "argument" or (isinstance(site, ast.Call) and isinstance(site.func, ast.Attribute))
        for argument, place in enumerate(places(site)):
            if sized or isinstance(place.holder, ast.keyword):  # ``f(x, 3)`` says no size, ``f(x, n=3)`` may
                now = _value(place.value, frame) if is_here(site) or kind == "quotient" else None
                yield method.name_of(number, argument), now, kind


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
