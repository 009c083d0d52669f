"""Copies of a model that cost next to no memory, for running it with some of its tensors changed."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


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


def sharing_copy(model: nn.Module, own: Collection[str] = (), zeros: Collection[str] = ()) -> nn.Module:
    """A deep copy whose parameters share their memory with the model's, but for those that are named.

    Those of a class of their own are not shared either (`keep_apart_`).

    Buffers, which a forward pass may write into, are the copy's own. The parameters are other objects, so that the
    copy can be resized; only their values must be left alone.

    Args:
        model: any module.
        own: names of the parameters that the caller is going to write into.
        zeros: names of the parameters that are zero in the copy; all of them share one piece of memory.

    Example:
        >>> import torch
        >>> net = torch.nn.Linear(2, 2)
        >>> twin = sharing_copy(net, own=["bias"])
        >>> [a.data_ptr() == b.data_ptr() for a, b in zip(net.parameters(), twin.parameters())]
        [True, False]
    """
    named = list(model.named_parameters(remove_duplicate=False)) if own or zeros else []  # a walk takes its time
    written = {id(p) for name, p in named if name in own}
    known: dict[Any, Any] = {
        id(p): _same_values(p) for p in model.parameters() if type(p) is nn.Parameter and id(p) not in written
    }
    absent = list({id(p): p for name, p in named if name in zeros}.values())
    known |= _all_zero([p for p in absent if type(p) is nn.Parameter and _is_dense(p)])
    modules = list(model.modules())
    kinds = {kind for kind in set(map(type, modules)) if _is_ordinary(kind)}
    ordinary = {id(m) for m in modules if type(m) in kinds}
    known |= {id(m): type(m).__new__(type(m)) for m in modules if id(m) in ordinary}
    for module in reversed(modules):  # children first
        if id(module) in ordinary:
            state: dict[str, Any] = {}
            for name, value in (module.__getstate__() if _STATES else vars(module)).items():
                if type(value) in _UNCHANGEABLE:
                    state[name] = value
                elif name in _HOOKS and type(value) in (set, OrderedDict) and not value:
                    state[name] = type(value)()  # most of what a module has
                else:
                    state[name] = _copied(value, known)
            known[id(module)].__setstate__(state)
        else:
            copy.deepcopy(module, known)
    for parameter in absent:
        if type(parameter) is not nn.Parameter or not _is_dense(parameter):
            known[id(parameter)].detach().zero_()
    return known[id(model)]  # type: ignore[no-any-return]


def _is_ordinary(kind: type) -> bool:
    """Whether a class of modules leaves copying to Python: a new object gets a copy of the attributes."""
    ways = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__", "__getnewargs__")
    own = any(getattr(kind, way, None) is not getattr(nn.Module, way, None) for way in ways)
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    return not (own or slots or hasattr(kind, "__deepcopy__") or kind in copyreg.dispatch_table)


def _copied(value: Any, known: dict[Any, Any]) -> Any:
    """A deep copy; `copy.deepcopy` takes most of its time for the plain attributes, dicts and buffers of modules."""
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
            twin[key] = item if type(item) in _UNCHANGEABLE else _copied(item, known)
        return twin
    if kind is Tensor and not value.is_leaf:  # kept from a forward pass, such as attention weights to be shown
        return known.setdefault(id(value), value.detach().clone())
    if kind is Tensor and _is_plain(value):
        memory, copied = value.untyped_storage()._cdata, known.setdefault("torch", {})  # as torch notes what is shared
        if memory not in copied:
            known[id(value)] = twin = value.clone()
            copied[memory] = twin.untyped_storage()
            return twin
    return copy.deepcopy(value, known)


_STATES = hasattr(nn.Module, "__getstate__")  # not before Python 3.11
_UNCHANGEABLE = {bool, int, float, str, type(None)}
_HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, (set, OrderedDict)))


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor, without gradients, has its memory in its own order and to its end, as buffers have."""
    if tensor.requires_grad or tensor.layout != torch.strided or not tensor.is_contiguous() or vars(tensor):
        return False
    return not tensor.is_conj() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def _all_zero(parameters: Sequence[nn.Parameter]) -> dict[int, nn.Parameter]:
    """Parameters of zeros, all in one piece of memory, in the place of these, by their identity."""
    found: dict[int, nn.Parameter] = {}
    shared: dict[tuple[torch.dtype, torch.device], Tensor] = {}
    for p in sorted(parameters, key=lambda p: -p.numel()):
        memory = shared.setdefault((p.dtype, p.device), torch.zeros(p.numel(), dtype=p.dtype, device=p.device))
        found[id(p)] = _dressed(nn.Parameter(memory.as_strided(p.shape, p.stride()), requires_grad=p.requires_grad), p)
    return found


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements lie, in whatever order, in a piece of memory for as many as there are of them."""
    return sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)) < max(tensor.numel(), 1)


def _same_values(parameter: nn.Parameter) -> nn.Parameter:
    return _dressed(nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad), parameter)


def _dressed(twin: nn.Parameter, parameter: nn.Parameter) -> nn.Parameter:
    vars(twin).update(vars(parameter))
    return twin
