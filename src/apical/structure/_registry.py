"""Registries through which operations and module types are taught to the tracer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from apical._checks import shown

OpRule = Callable[..., Any]
ModuleRefresh = Callable[[Any], None]

_OP_RULES: dict[str, OpRule] = {}
_MODULE_REFRESH: dict[type[nn.Module], ModuleRefresh] = {}


def register_op(*ops: str) -> Callable[[OpRule], OpRule]:
    """Register how channel identities pass through an operation.

    The decorated function gets the `Walk` and the node's arguments, with every tensor replaced by its value
    (`Value` or `ParamValue`), and returns the value, or a tuple of the values, of the results. An operation
    without a rule freezes every channel that enters it.

    Args:
        ops: names as ``"namespace::name"``, without the overload (``"aten::relu"``, ``"mylib::fused_norm"``).

    Raises:
        ValueError: if an operation has a rule already, or two are the same.
        TypeError: if a name is none.

    Example:
        >>> from apical.structure import register_op
        >>> @register_op("mylib::scaled_relu")
        ... def scaled_relu(walk, x, scale):
        ...     return x  # same shape, same channels, and zero where x is zero
    """

    if not ops or not all(isinstance(op, str) for op in ops):
        raise TypeError(f"register_op takes names of operations, such as 'aten::relu', got {shown(ops)}")
    if len(set(ops)) < len(ops):
        raise ValueError(f"register_op was given the same operation twice: {', '.join(ops)}")

    def decorate(rule: OpRule) -> OpRule:
        for op in ops:
            if op in _OP_RULES:
                raise ValueError(f"operation {op!r} has a rule already: {_OP_RULES[op].__qualname__}")
            _OP_RULES[op] = rule
        return rule

    return decorate


def register_module(module_type: type[nn.Module]) -> Callable[[ModuleRefresh], ModuleRefresh]:
    """Register how a module type (and its subclasses) restates its sizes after its tensors were resized.

    The decorated function gets a module whose parameters already have their new shapes, and sets the attributes
    that its ``forward`` reads. Standard modules and attributes with standard names (``out_channels``,
    ``num_heads``, …) need no registration.

    Raises:
        ValueError: if the type is registered already.
        TypeError: if it is no class of modules.

    Example:
        >>> from torch import nn
        >>> from apical.structure import register_module
        >>> class Mixer(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.up, self.slots = nn.Linear(4, 8), 8
        >>> @register_module(Mixer)
        ... def refresh_mixer(module):
        ...     module.slots = module.up.weight.shape[0]
    """

    if not (isinstance(module_type, type) and issubclass(module_type, nn.Module)):
        raise TypeError(f"register_module takes a class of modules, such as MyLayer, got {shown(module_type)}")

    def decorate(refresh: ModuleRefresh) -> ModuleRefresh:
        if module_type in _MODULE_REFRESH:
            raise ValueError(f"{module_type.__qualname__} is registered already")
        _MODULE_REFRESH[module_type] = refresh
        return refresh

    return decorate


def module_refresh(module: nn.Module) -> ModuleRefresh | None:
    """The function registered for the module's type, or for the nearest base class that has one."""
    for cls in type(module).__mro__:
        if cls in _MODULE_REFRESH:
            return _MODULE_REFRESH[cls]
    return None


def op_name(target: Any) -> str:
    """``"aten::add"`` for ``aten.add.Tensor`` and for the in-place ``aten.add_.Tensor``."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return getattr(target, "__name__", str(target))
    name: str = schema.name
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def op_rule(target: Any) -> OpRule | None:
    """The rule of an operation: a registered one, else that of elementwise operations if it is one."""
    rule = _OP_RULES.get(op_name(target))
    return _OP_RULES["pointwise"] if rule is None and is_pointwise(target) else rule


def is_pointwise(target: Any) -> bool:
    """Whether torch calls an operation elementwise, or the one of which it is the in-place form (``mish_``)."""
    if mutates_first_argument(target):
        plain = getattr(torch.ops.aten, op_name(target).removeprefix("aten::"), None)
        target = getattr(plain, target._overloadname, target)
    return torch.Tag.pointwise in getattr(target, "tags", ())


def mutates_first_argument(target: Any) -> bool:
    """Whether the operation writes into its first argument (``relu_``)."""
    schema = getattr(target, "_schema", None)
    if schema is None or not schema.arguments:
        return False
    alias = schema.arguments[0].alias_info
    return alias is not None and alias.is_write
