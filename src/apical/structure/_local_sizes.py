"""Sizes that a module's code holds in local variables or constants, made attributes: ``x.reshape(b, n, c)``.

In a resized module one argument of one call, one bound of a slice or one quotient (``c // self.num_heads``) becomes an
attribute of the module. The user's class stays as it is: the module gets a subclass of it that prints the same, whose
method is compiled anew from the source with that argument replaced. A function outside of the class that its methods
call by name becomes a method of the subclass, which they call instead. The attribute's name says which argument it is,
and of which source: ``size_in_forward_3_2_1a2b3c4d`` is the third argument of the fourth call in ``forward``, where
that has this checksum; slices and quotients are counted after all calls. So whatever knows attributes (resizing,
saving, loading) needs to know nothing else.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copyreg import __newobj__  # type: ignore[attr-defined]
from dataclasses import dataclass, replace
from functools import cache, partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from apical.structure._nodes import NOT_USERS

_NAME = re.compile(r"size_in_(\w+)_(\d+)_(\d+)_([0-9a-f]{8})")
_ORIGINAL, _NAMES = "_apical_class", "_apical_local_sizes"  # of a subclass: what it stands for, and its attributes
_NOTE = "_apical_note"
_SELF, _FUNCTION = "_apical_self", "_apical_function_"  # of what was a function: its first argument, its name's start
_TORCH = ("torch.nn.", "builtins")
_FUTURES = sum(getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)


Site = ast.Call | ast.Subscript | ast.BinOp


@dataclass(frozen=True)
class Method:
    """A method whose source could be read, and compiles to what runs, or a function that methods call.

    Attributes:
        function: as the user wrote it.
        text: its source.
        callers: of a function outside of the class, the methods and such functions that call it by its name.
    """

    function: FunctionType
    text: str
    callers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called in its source."""
        return self.function.__name__

    @property
    def checksum(self) -> str:
        """Eight digits that change with the source."""
        return f"{zlib.crc32(self.text.encode()):08x}"

    def tree(self) -> ast.FunctionDef:
        """Its syntax tree, with line numbers and columns as in the file; of a function, as that of a method."""
        tree = _parsed(self.text, self.function.__code__.co_firstlineno)
        if self.callers:
            _positional(tree).insert(0, ast.arg(_SELF))
        return tree

    def has_variable(self, name: str) -> bool:
        """Whether a name is one of its own variables, and so no function outside of it."""
        code = self.function.__code__
        return name in (*code.co_varnames, *code.co_cellvars, *code.co_freevars)

    def sites(self) -> list[Site]:
        """All calls in it, then all subscripts, then all quotients, in one fixed order; to be read only."""
        return _sites(self)

    def name_of(self, site: int, argument: int) -> str:
        """The attribute that stands for an argument of a call, a bound of a slice, or a quotient."""
        return f"size_in_{self.name}_{site}_{argument}_{self.checksum}"


@dataclass(frozen=True)
class Place:
    """Where an expression stands: in a list, as a field of a node, or (key "") as a quotient that is a node."""

    holder: Any
    key: int | str

    @property
    def value(self) -> ast.expr:
        """The expression."""
        if self.key == "":
            return ast.copy_location(ast.BinOp(self.holder.left, self.holder.op, self.holder.right), self.holder)
        found: ast.expr = self.holder[self.key] if isinstance(self.key, int) else getattr(self.holder, self.key)
        return found

    def put(self, new: ast.expr) -> None:
        """Another expression instead."""
        ast.copy_location(new, self.value)
        if isinstance(self.key, int):
            self.holder[self.key] = new
        elif self.key:
            setattr(self.holder, self.key, new)
        else:  # the node stays where it is
            self.holder.left, self.holder.right = new, ast.copy_location(ast.Constant(1), new)


def sites_of(tree: ast.FunctionDef) -> list[Site]:
    """All calls in a function, then all subscripts, then all quotients, in one fixed order."""
    nodes = list(ast.walk(tree))
    quotients = [n for n in nodes if isinstance(n, ast.BinOp) and isinstance(n.op, ast.FloorDiv)]
    return [n for kind in (ast.Call, ast.Subscript) for n in nodes if isinstance(n, kind)] + quotients


@cache
def _sites(method: Method) -> list[Site]:
    return sites_of(method.tree())


def places(site: Site) -> list[Place]:
    """The arguments of a call, those in a tuple or a list one by one, those with a name last; bounds; a quotient.

    Of a negative bound it is the number after the sign.
    """
    found: list[Place] = []
    if isinstance(site, ast.BinOp):
        return [Place(site, "")]
    if isinstance(site, ast.Subscript):
        parts = site.slice.elts if isinstance(site.slice, ast.Tuple) else [site.slice]
        for part in (p for p in parts if isinstance(p, ast.Slice)):
            for key, bound in (("lower", part.lower), ("upper", part.upper)):
                if isinstance(bound, ast.UnaryOp):
                    found.append(Place(bound, "operand"))
                elif bound is not None:
                    found.append(Place(part, key))
        return found
    for i, argument in enumerate(site.args):
        inner = argument.elts if isinstance(argument, (ast.Tuple, ast.List)) else None
        found += [Place(site.args, i)] if inner is None else [Place(inner, k) for k in range(len(inner))]
    return found + [Place(keyword, "value") for keyword in site.keywords if keyword.arg]


def original_class(kind: type) -> type:
    """The user's class behind one that `give_attribute_` made; any other is its own."""
    found: type = vars(kind).get(_ORIGINAL, kind)
    return found


def method_of(kind: type, name: str) -> Method | None:
    """A method of a class, or a function that its methods call.

    None if it is neither, its source is not there or not what runs, or a method has no first argument of its own, which
    is the module.
    """
    base = original_class(kind)
    function = next((vars(k)[name] for k in base.__mro__ if name in vars(k)), None)
    if function is not None:
        method = _read(function) if isinstance(function, FunctionType) else None
        return method if method is not None and _positional(method.tree()) else None
    function, callers = functions_of(base).get(name, (None, ()))
    method = _read(function) if function is not None else None
    return replace(method, callers=callers) if method is not None else None


@cache
def functions_of(kind: type) -> dict[str, tuple[FunctionType, tuple[str, ...]]]:
    """The functions outside of a class that its methods call by name, and those that these call, each with callers."""
    base = original_class(kind)
    of_class = {
        name: f for k in base.__mro__[::-1] if not k.__module__.startswith(_TORCH) for name, f in vars(k).items()
    }
    waiting = [(name, f) for name, f in of_class.items() if isinstance(f, FunctionType)]
    found: dict[str, tuple[FunctionType, tuple[str, ...]]] = {}
    while waiting:
        caller, function = waiting.pop(0)
        for name in dict.fromkeys(n for code in _all_codes(function.__code__) for n in code.co_names):
            callee = function.__globals__.get(name)
            if name in of_class or not isinstance(callee, FunctionType) or callee.__name__ != name or name == caller:
                continue
            if callee.__code__.co_filename.startswith(NOT_USERS):
                continue
            known = found.get(name)
            if known is None:
                waiting.append((name, callee))
            if known is None or known[0] is callee:
                found[name] = callee, tuple(dict.fromkeys((*(known[1] if known else ()), caller)))
    return found


def is_local(name: str) -> bool:
    """Whether an attribute is one of those that stand for an argument of a call."""
    return _NAME.fullmatch(name) is not None


def method_named_in(name: str) -> str:
    """The method, or function, that an attribute stands for an argument in."""
    return name.removeprefix("size_in_").rsplit("_", 3)[0]


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


def noting(module: nn.Module, methods: Iterable[str], note: Callable[[str, str, Any], Any]) -> None:
    """Let a module hand all arguments of calls and bounds of slices in methods of its to a function.

    Args:
        module: a copy that is thrown away.
        methods: names of the methods, and of functions that they call.
        note: gets the method's name, the attribute's and the value, and returns the value.
    """
    found = [method for name in methods if (method := method_of(type(module), name)) is not None]
    edits = {method: partial(_tell_all, method) for method in found}
    for name, function in _edited(original_class(type(module)), edits, {_NOTE: note}).items():
        vars(module)[name] = MethodType(function, module)


def _tell_all(method: Method, tree: ast.FunctionDef) -> None:
    for number, site in enumerate(sites_of(tree)):
        for argument, place in enumerate(places(site)):
            names = [ast.Constant(method.name), ast.Constant(method.name_of(number, argument))]
            if not isinstance(place.value, ast.Starred):
                place.put(ast.Call(ast.Name(_NOTE, ast.Load()), [*names, place.value], []))


def _place(base: type, name: str) -> tuple[Method, int, int] | None:
    match = _NAME.fullmatch(name)
    method = method_of(base, match[1]) if match else None
    if match is None or method is None or method.checksum != match[4]:
        return None
    site, argument = int(match[2]), int(match[3])
    sites = method.sites()
    exists = site < len(sites) and argument < len(places(sites[site]))
    return (method, site, argument) if exists else None


@cache
def _reading(base: type, names: tuple[str, ...]) -> type:
    """The subclass whose methods read these attributes; one for all modules that read the same."""
    wanted: dict[Method, list[tuple[int, int, str]]] = {}
    for name in names:
        found = _place(base, name)
        assert found is not None, name
        wanted.setdefault(found[0], []).append((found[1], found[2], name))
    methods = _edited(base, {method: partial(_read_some, sites) for method, sites in wanted.items()}, {})
    own = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__,
           "__reduce_ex__": _reduced, _ORIGINAL: base, _NAMES: names}  # fmt: skip
    return type(base)(base.__name__, (base,), {**methods, **own})


def _read_some(wanted: Sequence[tuple[int, int, str]], tree: ast.FunctionDef) -> None:
    """Read some arguments from attributes of the first argument of the method."""
    sites, me = sites_of(tree), _positional(tree)[0].arg
    spots = [(places(sites[site])[argument], name) for site, argument, name in wanted]
    for place, name in spots:
        place.put(ast.Attribute(ast.Name(me, ast.Load()), name, ast.Load()))


def _edited(
    base: type, edits: Mapping[Method, Callable[[ast.FunctionDef], None]], more: Mapping[str, Any]
) -> dict[str, FunctionType]:
    """Methods with a changed syntax tree, by what they are called in a class, and those that call such functions.

    Args:
        base: the user's class.
        edits: what changes the tree of each method.
        more: further global variables, if any: then the methods see later changes of the others no more.
    """
    trees = {method.name: method.tree() for method in edits}
    methods = {method.name: method for method in edits}
    for method, edit in edits.items():
        edit(trees[method.name])
    waiting = list(edits)
    while waiting:  # a function that has become a method is called as one by all that call it
        callee = waiting.pop()
        for name in callee.callers:
            caller = method_of(base, name)
            if caller is None or caller.has_variable(callee.name):
                continue
            if name not in trees:
                trees[name], methods[name] = caller.tree(), caller
                waiting.append(caller)
            _call_as_method(trees[name], callee.name)
    found = {}
    for name, method in methods.items():
        variables = {**method.function.__globals__, **more} if more else method.function.__globals__
        found[_FUNCTION + name if method.callers else name] = _remade(method.function, trees[name], variables)
    return found


def _call_as_method(tree: ast.FunctionDef, name: str) -> None:
    me = _positional(tree)[0].arg
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        if isinstance(call.func, ast.Name) and call.func.id == name:
            method = ast.Attribute(ast.Name(me, ast.Load()), _FUNCTION + name, ast.Load())
            call.func = ast.copy_location(method, call.func)


def _positional(tree: ast.FunctionDef) -> list[ast.arg]:
    """The arguments of which the first is the module."""
    return tree.args.posonlyargs or tree.args.args


def _reduced(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    """For copying and pickling: the class is found by what it is made of."""
    kind = type(self)
    plain: tuple[Any, ...] = tuple(object.__reduce_ex__(self, max(protocol, 2)))
    return _blank, (vars(kind)[_ORIGINAL], vars(kind)[_NAMES]), *plain[2:]


def _blank(base: type, names: tuple[str, ...]) -> Any:
    return __newobj__(_reading(base, names))


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
    return method if same and not tree.decorator_list else None


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


def _all_codes(code: CodeType) -> Iterator[CodeType]:
    """The code, and all of what is defined in it."""
    yield code
    for inner in _codes(code):
        yield from _all_codes(inner)


def _codes(code: CodeType) -> Iterator[CodeType]:
    return (constant for constant in code.co_consts if isinstance(constant, CodeType))
