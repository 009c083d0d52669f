"""Sizes that a module's code holds in local variables or constants, made attributes: ``x.reshape(b, n, c)``.

In a resized module one argument of one call becomes an attribute of the module. The user's class stays as it is: the
module gets a subclass of it that prints the same, whose method is compiled anew from the source with that argument
replaced. The attribute's name says which argument it is, and of which source: ``size_in_forward_3_2_1a2b3c4d`` is the
third argument of the fourth call in ``forward``, where that has this checksum. So whatever knows attributes (resizing,
saving, loading) needs to know nothing else.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from copyreg import __newobj__  # type: ignore[attr-defined]
from dataclasses import dataclass
from functools import cache
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

_NAME = re.compile(r"size_in_(\w+)_(\d+)_(\d+)_([0-9a-f]{8})")
_ORIGINAL, _NAMES = "_apical_class", "_apical_local_sizes"  # of a subclass: what it stands for, and its attributes
_NOTE = "_apical_note"
_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


@dataclass(frozen=True)
class Method:
    """A method whose source could be read, and compiles to what runs."""

    function: FunctionType
    text: str

    @property
    def checksum(self) -> str:
        """Eight digits that change with the source."""
        return f"{zlib.crc32(self.text.encode()):08x}"

    def tree(self) -> ast.FunctionDef:
        """Its syntax tree, with line numbers and columns as in the file."""
        return _parsed(self.text, self.function.__code__.co_firstlineno)

    def calls(self) -> list[ast.Call]:
        """All calls in it, in one fixed order; to be read only."""
        return _calls(self)

    def name_of(self, call: int, argument: int) -> str:
        """The attribute that stands for an argument of a call."""
        return f"size_in_{self.function.__name__}_{call}_{argument}_{self.checksum}"


def calls_of(tree: ast.FunctionDef) -> list[ast.Call]:
    """All calls in a function, in one fixed order."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@cache
def _calls(method: Method) -> list[ast.Call]:
    return calls_of(method.tree())


def places(call: ast.Call) -> list[tuple[list[ast.expr], int]]:
    """Where the positional arguments of a call are, those in a tuple or a list one by one: a list and a position."""
    found: list[tuple[list[ast.expr], int]] = []
    for i, argument in enumerate(call.args):
        inner = argument.elts if isinstance(argument, (ast.Tuple, ast.List)) else None
        found += [(call.args, i)] if inner is None else [(inner, k) for k in range(len(inner))]
    return found


def original_class(kind: type) -> type:
    """The user's class behind one that `give_attribute_` made; any other is its own."""
    found: type = vars(kind).get(_ORIGINAL, kind)
    return found


def method_of(kind: type, name: str) -> Method | None:
    """A method of a class; None if it is no plain function, or its source is not there or not what runs."""
    function = next((vars(k)[name] for k in original_class(kind).__mro__ if name in vars(k)), None)
    return _read(function) if isinstance(function, FunctionType) else None


def is_local(name: str) -> bool:
    """Whether an attribute is one of those that stand for an argument of a call."""
    return _NAME.fullmatch(name) is not None


def can_have(module: nn.Module, name: str) -> bool:
    """Whether the code of a module has the argument that an attribute stands for."""
    return _place(original_class(type(module)), name) is not None


def give_attribute_(module: nn.Module, name: str) -> None:
    """Let the module read an argument from an attribute of this name, which the caller sets.

    Raises:
        ValueError: there is no such argument, or the source is another one.
    """
    kind = type(module)
    base, names = original_class(kind), tuple(sorted({*vars(kind).get(_NAMES, ()), name}))
    if _place(base, name) is None:
        raise ValueError(f"the code of {base.__qualname__} is not the one of which {name} is a size")
    module.__class__ = _reading(base, names)


def noting(module: nn.Module, method: str, note: Callable[[str, Any], Any]) -> None:
    """Let a module hand all arguments of calls in a method of its to a function, with the attributes' names.

    Args:
        module: a copy that is thrown away.
        method: name of the method.
        note: gets name and value, and returns the value.
    """
    found = method_of(type(module), method)
    if found is None:
        return
    tree = found.tree()
    for number, call in enumerate(calls_of(tree)):
        for argument, (holder, i) in enumerate(places(call)):
            told = ast.Call(ast.Name(_NOTE, ast.Load()), [ast.Constant(found.name_of(number, argument)), holder[i]], [])
            if not isinstance(holder[i], ast.Starred):
                holder[i] = ast.copy_location(told, holder[i])
    new = _remade(found.function, tree, {**found.function.__globals__, _NOTE: note})
    vars(module)[method] = MethodType(new, module)


def _place(base: type, name: str) -> tuple[Method, int, int] | None:
    match = _NAME.fullmatch(name)
    method = method_of(base, match[1]) if match else None
    if match is None or method is None or method.checksum != match[4]:
        return None
    call, argument = int(match[2]), int(match[3])
    calls = method.calls()
    exists = call < len(calls) and argument < len(places(calls[call]))
    return (method, call, argument) if exists else None


@cache
def _reading(base: type, names: tuple[str, ...]) -> type:
    """The subclass whose methods read these attributes; one for all modules that read the same."""
    wanted: dict[Method, list[tuple[int, int, str]]] = {}
    for name in names:
        found = _place(base, name)
        assert found is not None, name
        wanted.setdefault(found[0], []).append((found[1], found[2], name))
    methods = {method.function.__name__: _rewritten(method, sites) for method, sites in wanted.items()}
    own = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__,
           "__reduce_ex__": _reduced, _ORIGINAL: base, _NAMES: names}  # fmt: skip
    return type(base)(base.__name__, (base,), {**methods, **own})


def _reduced(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """For copying and pickling: the class is found by what it is made of."""
    kind = type(self)
    plain: tuple[Any, ...] = tuple(object.__reduce_ex__(self, max(protocol, 2)))
    return _blank, (vars(kind)[_ORIGINAL], vars(kind)[_NAMES]), *plain[2:]


def _blank(base: type, names: tuple[str, ...]) -> Any:
    return __newobj__(_reading(base, names))


def _rewritten(method: Method, sites: Sequence[tuple[int, int, str]]) -> FunctionType:
    """The method with some arguments of calls read from attributes of its first argument."""
    tree = method.tree()
    calls, me = calls_of(tree), tree.args.args[0].arg
    spots = [(places(calls[call])[argument], name) for call, argument, name in sites]
    for (holder, i), name in spots:
        read = ast.Attribute(ast.Name(me, ast.Load()), name, ast.Load())
        holder[i] = ast.copy_location(read, holder[i])
    return _remade(method.function, tree, method.function.__globals__)


def _remade(function: FunctionType, tree: ast.FunctionDef, variables: dict[str, Any]) -> FunctionType:
    """A function like another one, of changed source."""
    code = _compiled(tree, function)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[variable] for variable in code.co_freevars)
    new = FunctionType(code, variables, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__, new.__qualname__, new.__doc__ = function.__kwdefaults__, function.__qualname__, function.__doc__
    new.__annotations__, new.__module__ = function.__annotations__, function.__module__
    return new


@cache
def _read(function: FunctionType) -> Method | None:
    try:
        method = Method(function, inspect.getsource(function))
        tree = method.tree()
        code = _compiled(tree, function)
    except (OSError, TypeError, SyntaxError, ValueError):  # no source, or no function of its own
        return None
    same = _contents(code) == _contents(function.__code__)
    return method if same and tree.args.args and not tree.decorator_list else None


def _contents(code: CodeType) -> tuple[Any, ...]:
    """What tells whether code is that of a source; instructions also depend on the imports of the file."""
    # before Python 3.11 the names of inner functions are constants, too, and say what is around
    plain = (c for c in code.co_consts if not isinstance(c, CodeType) and "<locals>" not in str(c))
    constants = [repr(c) for c in plain]
    return code.co_names, code.co_varnames, code.co_freevars, constants, len(list(_codes(code)))


def _parsed(text: str, first_line: int) -> ast.FunctionDef:
    indented = text[:1].isspace()
    tree = ast.parse(f"if 1:\n{text}" if indented else text)
    ast.increment_lineno(tree, first_line - (2 if indented else 1))
    node = tree.body[0].body[0] if isinstance(tree.body[0], ast.If) else tree.body[0]
    if not isinstance(node, ast.FunctionDef):
        raise ValueError("no function")
    return node


def _compiled(tree: ast.FunctionDef, function: FunctionType) -> CodeType:
    """The code of a function whose free variables are those of another function."""
    free = [ast.Assign([ast.Name(v, ast.Store())], ast.Constant(None)) for v in function.__code__.co_freevars]
    outer = ast.parse("def outer(): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    outer.body = [*free, tree]
    module = ast.fix_missing_locations(ast.Module([outer], []))
    flags = function.__code__.co_flags & _FUTURES
    code = compile(module, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    return next(c for around in _codes(code) for c in _codes(around) if c.co_name == tree.name)


def _codes(code: CodeType) -> Iterator[CodeType]:
    return (constant for constant in code.co_consts if isinstance(constant, CodeType))
