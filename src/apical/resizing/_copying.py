"""Copies of a model that cost next to no memory, for running it with some of its tensors changed."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from torch import nn


def sharing_copy(model: nn.Module, own: Collection[str] = ()) -> nn.Module:
    """A deep copy whose parameters share their memory with the model's, but for those that are named.

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
    return copy.deepcopy(model, known)


def _same_values(parameter: nn.Parameter) -> nn.Parameter:
    twin = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    vars(twin).update(vars(parameter))
    return twin
