"""Changes anywhere in a tree of dicts, lists and tensors, such as a checkpoint."""

from __future__ import annotations

import copy
from typing import Any

import torch
from hypothesis import strategies as st

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 2**40), st.floats(), st.text(max_size=3),
    st.sampled_from([[], {}, [1], {"a": 1}, torch.zeros(0), torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64),
                     torch.full((3, 6), float("nan")), torch.zeros(1).expand(2**20, 2**20)]),
)  # fmt: skip
CHANGES = st.tuples(st.integers(0, 10**6), st.sampled_from(["replace", "delete", "cut", "retype", "repeat"]), VALUES)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything in a tree; a loader's state is the user's own object."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    if path[-1:] == ("loader",):
        return []
    return [found for key in keys for found in [(*path, key), *places(tree[key], (*path, key))]]


def change(tree: Any, where: int, how: str, value: Any) -> None:
    """Change one place: another value, none, half of a tensor, another type, or the neighbour's value.

    Args:
        tree: changed in place.
        where: which of the places, counted round and round.
        how: one of the ways of `CHANGES`.
        value: the other value, also where the way fits tensors only and the place holds none.
    """
    found = places(tree)
    if not found:
        return
    *parents, key = found[where % len(found)]
    box = tree
    for parent in parents:
        box = box[parent]
    old = box[key]
    if isinstance(old, torch.Tensor) and old.numel() > 10**7:  # it was put there before, and is stored as one number
        how = "replace"
    if how == "delete":
        del box[key]
    elif how == "repeat":
        others = list(box.values()) if isinstance(box, dict) else box
        box[key] = copy.deepcopy(others[where // 7 % len(others)])
    elif how == "replace" or not isinstance(old, torch.Tensor):
        box[key] = copy.deepcopy(value)
    elif how == "cut":
        box[key] = old.reshape(-1)[: old.numel() // 2].clone()
    else:
        box[key] = old.to(torch.float64 if old.dtype != torch.float64 else torch.int8)
