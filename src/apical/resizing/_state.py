"""Resizing a recurrent state, so that a stream of text or sound goes on through a change of the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from apical.errors import ResizeError
from apical.resizing._selection import Selection, check_selection
from apical.structure import Keep, StateSlice, Structure


@torch.no_grad()
def resize_state(state: Any, structure: Structure, before: Keep, after: Keep) -> Any:
    """A recurrent state of the network of ``before``, as the network of ``after`` takes it.

        h'_u = h_u for a unit u that was and is present,   h'_u = 0 for one that is new or returns

    So units that stay go on with their stream, and a newborn starts as it would at the beginning of one.

    Args:
        state: what the model returned as its state output: tensors in any nest of tuples, lists and dicts; a tuple
            of all of them, in the order of ``state_outputs``, if the model has several. None, or a nest without
            tensors, stays as it is.
        structure: what `apical.trace` returned; it knows the state if ``state_outputs`` were named, by the model's
            attribute or to `trace`.
        before: kept positions, by group name, of the network that returned the state; groups not named are whole.
        after: kept positions of the network that will read it.

    Returns:
        New tensors in the same containers, without gradient history; tensors in which no units lie are detached only.

    Raises:
        ResizeError: the structure knows no state, a tensor of it does not have the size that ``before`` says, or
            ``before`` or ``after`` is no possible choice.

    Example:
        >>> import torch, apical
        >>> from apical.models import LSTMLanguageModel
        >>> model = LSTMLanguageModel(vocab_size=20, embedding_size=4, hidden_sizes=(3,))
        >>> tokens = torch.zeros(5, 1, dtype=torch.long)
        >>> structure = apical.trace(model, tokens)
        >>> state = ((torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[4.0, 5.0, 6.0]]])),)
        >>> resize_state(state, structure, {}, {"layers.0": [0, 2]})
        ((tensor([[[1., 3.]]]), tensor([[[4., 6.]]])),)
    """
    if not pytree.tree_leaves(state) or state is None:  # None, or the empty state of a model without memory
        return state
    if not structure.states:
        raise ResizeError(
            "the structure knows of no recurrent state; trace the model with state_outputs=(...), the positions of the "
            "outputs that it takes back, or give the model's class an attribute state_outputs"
        )
    old, new = check_selection(structure, before, ()), check_selection(structure, after, ())
    by_leaf: dict[int, list[StateSlice]] = defaultdict(list)
    for part in structure.states:
        by_leaf[part.leaf].append(part)
    leaves, containers = pytree.tree_flatten(state)
    if max(by_leaf) >= len(leaves):
        raise ResizeError(
            f"the state has {len(leaves)} tensors, expected at least {max(by_leaf) + 1}: pass what the model returned "
            "as its state, and nothing else"
        )
    resized = [
        _resized(leaf, number, by_leaf.get(number, []), old, new) if isinstance(leaf, Tensor) else leaf
        for number, leaf in enumerate(leaves)
    ]
    return pytree.tree_unflatten(resized, containers)


def _resized(leaf: Tensor, number: int, parts: list[StateSlice], old: Selection, new: Selection) -> Tensor:
    """One tensor: the size of what is fixed in it follows from what it has."""
    if not parts:
        return leaf.detach()
    dim = parts[0].dim
    owned = {p: (part.group, u) for part in parts for u, positions in enumerate(part.positions) for p in positions}
    grown = sum(len(part.positions[u]) for part in parts for u in old.keep[part.group])
    fixed = [p for p in range(max(owned) + 1) if p not in owned]
    if leaf.dim() <= dim or leaf.shape[dim] != grown + len(fixed):
        raise ResizeError(
            f"tensor {number} of the state has shape {tuple(leaf.shape)}, expected {grown + len(fixed)} along "
            f"dimension {dim}: it does not come from the network of `before`. Resize a state after every change"
        )
    was, is_ = _present(owned, max(owned) + 1, old), _present(owned, max(owned) + 1, new)
    if was == is_:
        return leaf.detach()
    column = {position: i for i, position in enumerate(was)}
    source = torch.tensor([column.get(position, -1) for position in is_], device=leaf.device)
    result = leaf.detach().index_select(dim, source.clamp(min=0))
    born = [1] * leaf.dim()
    born[dim] = len(is_)
    return result.masked_fill(source.lt(0).view(born), 0)


def _present(owned: Mapping[int, tuple[str, int]], size: int, selection: Selection) -> list[int]:
    """Positions of the template that are there."""
    kept = {group: set(units) for group, units in selection.keep.items()}
    return [p for p in range(size) if p not in owned or owned[p][1] in kept[owned[p][0]]]
