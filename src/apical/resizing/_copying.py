"""Copies of a model that cost next to no memory, for running it with some of its tensors changed."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn


class WrittenParameter(nn.Parameter):
    """A parameter that the forward pass writes into (a count, a weight that is kept normalised): no copy shares it."""


def versions(model: nn.Module) -> dict[nn.Parameter, int]:
    """How often each parameter was written into, by it or by those that share its memory."""
    return {p: 0 if p.is_inference() else p._version for p in model.parameters()}


def keep_apart_(model: nn.Module, before: Mapping[nn.Parameter, int]) -> bool:
    """Let copies have their own of each parameter that was written into since; whether there are any."""
    now = versions(model)
    written = [p for p, version in before.items() if now[p] != version and type(p) is nn.Parameter]
    for parameter in written:
        parameter.__class__ = WrittenParameter
    return bool(written)


def sharing_copy(model: nn.Module, own: Collection[str] = ()) -> nn.Module:
    """A deep copy whose parameters share their memory with the model's, but for those that are named.

    Those of a class of their own are not shared either (`keep_apart_`).

    Buffers, which a forward pass may write into, are the copy's own. The parameters are other objects, so that the
    copy can be resized; only their values must be left alone.

    Args:
        model: any module.
        own: names of the parameters that the caller is going to write into.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 2)
        >>> twin = sharing_copy(net, own=["bias"])
        >>> [a.data_ptr() == b.data_ptr() for a, b in zip(net.parameters(), twin.parameters())]
        [True, False]
    """
    written = {id(p) for name, p in model.named_parameters(remove_duplicate=False) if name in own}
    known: dict[int, Any] = {
        id(p): _same_values(p) for p in model.parameters() if type(p) is nn.Parameter and id(p) not in written
    }
    modules = list(model.modules())
    ordinary = {id(m): state for m in modules if (state := _ordinary_state(m)) is not None}
    known |= {id(m): type(m).__new__(type(m)) for m in modules if id(m) in ordinary}
    for module in reversed(modules):  # children first
        if id(module) in ordinary:
            state = {name: _copied(value, known) for name, value in ordinary[id(module)].items()}
            known[id(module)].__setstate__(state)
        else:
            copy.deepcopy(module, known)
    return known[id(model)]  # type: ignore[no-any-return]


def _ordinary_state(module: nn.Module) -> dict[str, Any] | None:
    """The attributes of a module whose class leaves copying to Python; None if it has a way of its own."""
    if hasattr(type(module), "__deepcopy__") or type(module) in copyreg.dispatch_table:
        return None
    made: tuple[Any, ...] = (*module.__reduce_ex__(4), None)  # how to make it, of what, state
    ordinary = made[0] is vars(copyreg)["__newobj__"] and made[1] == (type(module),) and type(made[2]) is dict
    return made[2] if ordinary else None


def _copied(value: Any, known: dict[int, Any]) -> Any:
    """A deep copy; `copy.deepcopy` takes most of its time for the plain attributes and the dicts that modules have."""
    kind = type(value)
    if kind in _UNCHANGEABLE or (kind is tuple and all(type(item) in _UNCHANGEABLE for item in value)):
        return value
    if id(value) in known:
        return known[id(value)]
    if kind in (set, OrderedDict) and not value:
        return known.setdefault(id(value), kind())
    if kind is dict and all(type(key) is str for key in value):
        twin = known[id(value)] = {}
        for key, item in value.items():
            twin[key] = _copied(item, known)
        return twin
    return copy.deepcopy(value, known)


_UNCHANGEABLE = (bool, int, float, str, type(None))


def _same_values(parameter: nn.Parameter) -> nn.Parameter:
    twin = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    vars(twin).update(vars(parameter))
    return twin
