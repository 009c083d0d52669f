"""The integers in which a module says how large it is: its attributes, and items of plain objects that it holds.

An item has the path to it as its name: ``config.num_heads`` in an object or a dict, ``sizes.0`` in a tuple or a list.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn

HEAD_ATTRIBUTES = ("num_heads", "n_head", "n_heads", "heads", "nhead", "num_attention_heads", "num_kv_heads",
                   "num_key_value_heads", "n_kv_heads")  # fmt: skip
WIDTH_ATTRIBUTES = ("attn_dim", "inner_dim", "all_head_size", "attention_dim", "inner_width", "attn_width")

SIZE_ATTRIBUTES = (
    "in_channels", "out_channels", "groups", "in_features", "out_features", "num_features", "num_channels",
    "num_groups", "num_parameters", "embedding_dim", "input_size", "hidden_size", "proj_size",
    *HEAD_ATTRIBUTES, *WIDTH_ATTRIBUTES,
)  # fmt: skip
OWN_SIZES = "_apical_sizes"  # where a resized module names further attributes of its own that state a size
DEEPEST = 2  # ``config.attention.num_heads``


def stated_sizes(module: nn.Module) -> dict[str, int]:
    """The integer attributes in which a module says how large it is."""
    names = dict.fromkeys((*SIZE_ATTRIBUTES, *vars(module).get(OWN_SIZES, ())))
    return {name: v for name in names if _is_size(v := stated(module, name))}


def stated(module: nn.Module, name: str) -> Any:
    """A plain attribute, also of an object that the module holds (``config.num_heads``); None if it is not there."""
    value: Any = module
    for part in name.split("."):
        value = _items(value).get(part)
    return value


def integers(module: nn.Module) -> dict[str, int]:
    """All public integers of a module, its own before those of what it holds."""
    found: dict[str, int] = {}
    level = {name: value for name, value in _items(module).items() if not name.startswith("_")}
    for _ in range(DEEPEST + 1):
        found.update({name: value for name, value in level.items() if _is_size(value)})
        held = {name: value for name, value in level.items() if not isinstance(value, (nn.Module, Tensor))}
        level = {
            f"{name}.{part}": item
            for name, value in held.items()
            for part, item in _items(value).items()
            if not part.startswith("_")
        }
    return found


def with_size(holder: Any, name: str, value: int) -> Any:
    """A copy of what a module holds, with another integer at a path; the rest is shared."""
    part, _, inner = name.partition(".")
    old = _items(holder)[part]
    new = with_size(old, inner, value) if inner else value
    if isinstance(holder, (tuple, list)):
        items = [new if i == int(part) else item for i, item in enumerate(holder)]
        make = getattr(holder, "_make", type(holder))  # of a named tuple
        return make(items)
    other = copy.copy(holder)
    if isinstance(holder, dict):
        other[part] = new
    else:
        object.__setattr__(other, part, new)  # also of a frozen dataclass
    return other


def _items(holder: Any) -> Mapping[str, Any]:
    """What an object holds, by the parts of a path that lead there."""
    if isinstance(holder, (tuple, list)):
        return {str(i): item for i, item in enumerate(holder)}
    if isinstance(holder, dict):
        return {key: item for key, item in holder.items() if isinstance(key, str) and key.isidentifier()}
    if isinstance(holder, ModuleType) or (callable(holder) and not isinstance(holder, nn.Module)):
        return {}
    slots = {field.name: getattr(holder, field.name, None) for field in fields(holder)} if is_dataclass(holder) else {}
    return {**getattr(holder, "__dict__", {}), **slots}


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
