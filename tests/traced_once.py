"""For tests of what happens around a network: each network is traced once, not once a run.

Where tracing itself is tested, it is never replaced. `make test-all` traces anew each time.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from apical.resizing import trace as traced_anew
from apical.structure import Call, Structure

_KNOWN: dict[str, tuple[Structure, Any]] = {}  # with what a key names by its address, so that it lives on


def _kind(value: Any) -> Any:
    """A tensor without its numbers."""
    return (value.shape, value.dtype, value.device, value.requires_grad) if isinstance(value, Tensor) else value


def _described(model: nn.Module) -> list[Any]:
    """All modules with what they state about themselves, and all tensors, those that are shared by their first name."""
    tensors = list(model.state_dict(keep_vars=True).items())
    first = {id(tensor): name for name, tensor in reversed(tensors)}
    stated = []
    for path, module in model.named_modules():
        public = {name: _kind(value) for name, value in vars(module).items() if name[0] != "_" and name != "training"}
        stated.append((path, id(type(module)), type(module), public))
    return [repr(model), stated, [(name, _kind(tensor), first[id(tensor)]) for name, tensor in tensors]]


def traced_once(
    model: nn.Module, example_inputs: Any, example_kwargs: Any = None, *, streams: Any = "keep", **options: Any
) -> Structure:
    """`apical.trace`, remembered by all modules, tensors but for their numbers, and arguments of the call."""
    if options:
        return traced_anew(model, example_inputs, example_kwargs, streams=streams, **options)
    call = Call.of(example_inputs, example_kwargs)
    described = _described(model)
    key = f"{streams}, {described}, {pytree.tree_map(_kind, (call.args, call.kwargs))}"
    if key not in _KNOWN:
        _KNOWN[key] = traced_anew(model, example_inputs, example_kwargs, streams=streams), described
    return _KNOWN[key][0]


def trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What of apical traces while it runs takes remembered structures, until the test ends."""
    for name, module in list(sys.modules.items()):
        user = name.startswith("apical.") and not name.startswith("apical.resizing")
        if user and vars(module).get("trace") is traced_anew:
            monkeypatch.setattr(module, "trace", traced_once)
