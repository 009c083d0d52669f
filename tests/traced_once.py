"""For tests of what happens around a network: each network is traced once, not once a run.

Where tracing itself is tested, it is never replaced. `make test-all` traces anew each time.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
from torch import nn
from torch.utils import _pytree as pytree

from apical.resizing import trace as traced_anew
from apical.structure import Call, Structure

_KNOWN: dict[object, Structure] = {}


def traced_once(
    model: nn.Module, example_inputs: Any, example_kwargs: Any = None, *, streams: Any = "keep", **options: Any
) -> Structure:
    """`apical.trace`, remembered by the modules, the shapes of all tensors, and the arguments of the call."""
    if options:
        return traced_anew(model, example_inputs, example_kwargs, streams=streams, **options)
    call = Call.of(example_inputs, example_kwargs)
    inputs, form = pytree.tree_flatten((call.args, call.kwargs))
    tensors = [*model.state_dict(keep_vars=True).items(), *enumerate(inputs)]
    kinds = [(name, getattr(t, "shape", t), getattr(t, "dtype", ""), getattr(t, "device", "")) for name, t in tensors]
    key = (type(model), repr(model), streams, str(form), str(kinds))
    if key not in _KNOWN:
        _KNOWN[key] = traced_anew(model, example_inputs, example_kwargs, streams=streams)
    return _KNOWN[key]


def trace_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What of apical traces while it runs takes remembered structures, until the test ends."""
    for name, module in list(sys.modules.items()):
        user = name.startswith("apical.") and not name.startswith("apical.resizing")
        if user and vars(module).get("trace") is traced_anew:
            monkeypatch.setattr(module, "trace", traced_once)
