"""What a block gives back while it is left out: its first input, or zeros, in the containers that it returns."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Returned:
    """One node of what a stand-in returns; pure data.

    Attributes:
        kind: ``"input"`` (an argument as it is), ``"zeros"`` (zeros like an argument), ``"value"`` (a plain constant),
            ``"tuple"``, ``"list"``, ``"dict"``, or ``"record"`` (a named tuple, or a dataclass that is a dictionary
            like the outputs of transformers).
        position: of the argument among the positional ones; None if it was passed by keyword only.
        name: of the argument's parameter; None if it has none.
        value: the constant, or the record's type as ``"module:qualified name"``.
        keys: of a dict, or the fields of a record.
        items: what a container holds.
    """

    kind: str
    position: int | None = None
    name: str | None = None
    value: bool | int | float | str | None = None
    keys: tuple[str, ...] = ()
    items: tuple[Returned, ...] = field(default=())

    def build(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What is returned to a caller that gives these arguments."""
        if self.kind in ("input", "zeros"):
            given = self._argument(args, kwargs)
            if self.kind == "input":
                return given
            # what made the argument keeps a gradient, of zero: data-parallel training waits for it
            return given * 0 if torch.is_grad_enabled() and given.requires_grad else torch.zeros_like(given)
        if self.kind == "value":
            return self.value
        items = [item.build(args, kwargs) for item in self.items]
        if self.kind in ("tuple", "list"):
            return tuple(items) if self.kind == "tuple" else items
        named = dict(zip(self.keys, items, strict=True))
        return named if self.kind == "dict" else record_type(str(self.value))(**named)

    def _argument(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.position is not None and self.position < len(args):
            return args[self.position]
        if self.name is not None and self.name in kwargs:
            return kwargs[self.name]
        raise TypeError(f"the block that is left out needs its argument {self.name or self.position}")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-serialisable copy, without what is at its default."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        defaults = {"position": None, "name": None, "value": None, "keys": (), "items": ()}
        kept = {k: v for k, v in plain.items() if k == "kind" or v != defaults[k]}
        return kept | ({"items": [item.to_dict() for item in self.items]} if self.items else {})

    @staticmethod
    def from_dict(data: Any, depth: int = 0) -> Returned:
        """The inverse of `to_dict`, also of `dataclasses.asdict`; ``data`` need not be trusted.

        Raises:
            ValueError: it describes nothing that a stand-in can return.
        """
        keys = tuple(data.get("keys", ()))
        items = tuple(Returned.from_dict(item, depth + 1) for item in data.get("items", ()))
        made = Returned(data["kind"], data.get("position"), data.get("name"), data.get("value"), keys, items)
        whole = isinstance(made.position, int) and not isinstance(made.position, bool) and made.position >= 0
        sound = (
            depth < 8
            and (made.position is None or whole)
            and isinstance(made.name, (str, type(None)))
            and isinstance(made.value, PLAIN)
            and all(isinstance(key, str) for key in keys)
            and (made.kind in ("tuple", "list") or len(keys) == len(items))
        )
        arguments = made.kind in ("input", "zeros") and (made.position is not None or made.name is not None)
        if not sound or not (arguments or made.kind in ("value", "tuple", "list", "dict", "record")):
            raise ValueError(f"no stand-in returns {data!r}")
        if made.kind == "record":
            record_type(str(made.value))
        return made


def record_type(name: str) -> type[Any]:
    """A named tuple or dataclass dictionary that some imported module holds; nothing is imported for it.

    Raises:
        ValueError: there is no such type.
    """
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type) or not is_record(found):
        raise ValueError(f"{name} is no named tuple or dataclass dictionary of an imported module")
    return found


def is_record(cls: type[Any]) -> bool:
    """Whether it holds named items and nothing else."""
    return (issubclass(cls, tuple) and hasattr(cls, "_fields")) or (
        issubclass(cls, dict) and dataclasses.is_dataclass(cls)
    )


@dataclass(frozen=True)
class Argument:
    """An argument of one call of a block."""

    value: Any
    position: int | None
    name: str | None


def returned(output: Any, arguments: Sequence[Argument], tolerance: float) -> Returned | None:
    """How a block whose gate is zero made its output from its arguments.

    A tensor is the first argument that has its values, else zeros like the first argument of its shape if it is zero;
    others (attention weights, which nobody reads where a block is proposed) become None.

    Returns:
        None if no tensor of the output comes from an argument, or the output is no nest of plain containers.
    """
    return _described(output, arguments, lambda value: _of_tensor(value, arguments, tolerance))


def returned_zeros(output: Any, arguments: Sequence[Argument], shape: tuple[int, ...]) -> Returned:
    """How one of several modules that leave together hands zeros on: zeros in the place of every tensor of its output.

    They are shaped like the first argument of this shape, else like the first tensor: that comes from a module before
    it, whose stand-in has given zeros of this shape.

    Args:
        output: of a call.
        arguments: of the same call.
        shape: of what the last of the modules returns.

    Raises:
        ValueError: no argument is a tensor, or the output is no nest of plain containers.
    """
    tensors = [a for a in arguments if isinstance(a.value, Tensor)]
    like = next((a for a in tensors if tuple(a.value.shape) == shape), tensors[0] if tensors else None)
    zeros = Returned("zeros", like.position, like.name) if like is not None else None
    made = None if zeros is None else _described(output, arguments, lambda _: zeros)
    if made is None:
        raise ValueError("it takes or returns no tensor")
    return made


def _described(output: Any, arguments: Sequence[Argument], of_tensor: Callable[[Tensor], Returned]) -> Returned | None:
    """What is returned in the place of an output; None if no tensor of it comes from an argument."""
    found: list[Returned] = []

    def describe(value: Any) -> Returned:
        if isinstance(value, Tensor):
            made = of_tensor(value)
            found.extend([made] if made.kind != "value" else [])
            return made
        for argument in arguments:  # a cache that is handed on
            if value is argument.value and not isinstance(value, PLAIN):
                return Returned("input", argument.position, argument.name)
        if isinstance(value, PLAIN):
            return Returned("value", value=value)
        if type(value) in (tuple, list):
            return Returned("tuple" if type(value) is tuple else "list", items=tuple(describe(v) for v in value))
        if type(value) is dict:
            return Returned("dict", keys=tuple(map(str, value)), items=tuple(describe(v) for v in value.values()))
        if is_record(type(value)):
            fields = getattr(value, "_fields", None)
            named = dict(value.items() if fields is None else zip(fields, value, strict=True))
            name = f"{type(value).__module__}:{type(value).__qualname__}"
            record_type(name)
            return Returned("record", None, None, name, tuple(named), tuple(describe(v) for v in named.values()))
        raise ValueError(f"it returns a {type(value).__name__}")

    made = describe(output)
    return made if found else None


def _of_tensor(value: Tensor, arguments: Sequence[Argument], tolerance: float) -> Returned:
    alike = [a for a in arguments if isinstance(a.value, Tensor) and a.value.shape == value.shape]
    for argument in alike:
        if value is argument.value:  # handed on, such as a bias that all blocks share
            return Returned("input", argument.position, argument.name)
    for argument in alike:
        scale = argument.value.abs().max().item() if value.is_floating_point() and value.numel() else 0.0
        scale = scale if math.isfinite(scale) else 0.0  # of masks with infinities
        if torch.allclose(value, argument.value.to(value.dtype), rtol=0.0, atol=tolerance * scale):
            return Returned("input", argument.position, argument.name)
    if alike and not value.any():
        return Returned("zeros", alike[0].position, alike[0].name)
    return Returned("value")
