"""Carrying optimizer state through a resize, and re-keying the same optimizer object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from apical.errors import ResizeError
from apical.resizing._store import DormantStore

FOREIGN = ""  # stands for a parameter that is not the model's in a recorded order
Transfer = Callable[[str, Tensor], Tensor | None]  # (key, live part) -> resized part, None if the parameter leaves


def resized_state(
    optimizer: Optimizer, name: str, old: nn.Parameter, key: str, transfer: Transfer, reset: list[str], may_reset: bool
) -> dict[str, Any] | None:
    """The state of one parameter after the resize: what is shaped like the parameter follows it, counts stay.

    Raises:
        ResizeError: for state of another shape (factored moments, histories), unless it may be reset.
    """
    state = optimizer.state.get(old)
    if not state:
        return None
    result: dict[str, Any] = {}
    for entry, value in state.items():
        if isinstance(value, Tensor) and value.shape == old.shape and value.dim() > 0:
            moved = transfer(f"{key}/{entry}", value)
            if moved is not None:
                result[entry] = moved
        elif (
            value is None or isinstance(value, (int, float, bool)) or (isinstance(value, Tensor) and value.numel() == 1)
        ):
            result[entry] = value
        elif may_reset:
            reset.append(name)
            return {}
        else:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ResizeError(
                f"{type(optimizer).__name__} keeps {entry!r} for {name} as {what}, which does not follow the channels "
                f"of a parameter of shape {tuple(old.shape)}. Use an optimizer whose state is shaped like its "
                "parameter (SGD, Adam, AdamW, RMSprop, …), or pass optimizer_state='reset' to drop this state."
            )
    return result


def restored_state(key: str, entries: Mapping[str, Tensor], other: dict[str, Any] | None) -> dict[str, Any] | None:
    """State of a parameter that comes back with its block."""
    if other is None:
        return None
    return {**other, **{entry.removeprefix(key + "/"): value for entry, value in entries.items()}}


def check_histories(optimizer: Optimizer, moving: Sequence[str], may_reset: bool) -> bool:
    """Whether the optimizer keeps a history over all parameters at once (LBFGS), which must then be dropped.

    Raises:
        ResizeError: if it does, some of its parameters change, and it may not be reset.
    """
    found = [entry for state in optimizer.state.values() for entry, v in state.items() if isinstance(v, (list, dict))]
    if not found or not moving:
        return False
    if not may_reset:
        raise ResizeError(
            f"{type(optimizer).__name__} keeps {found[0]!r} as a history over all parameters at once, which does not "
            f"follow the channels of {moving[0]}. Use an optimizer whose state is shaped like its parameter (SGD, "
            "Adam, AdamW, RMSprop, …), or pass optimizer_state='reset' to drop this state."
        )
    return True


def rekey_(
    optimizer: Optimizer,
    index: int,
    old_names: Mapping[int, str],
    new: Mapping[str, nn.Parameter | None],
    states: Mapping[str, dict[str, Any] | None],
    store: DormantStore | None,
) -> None:
    """Install new parameters in the same optimizer: ``new`` maps names to them (None: the parameter leaves)."""
    if hasattr(optimizer, "_numel_cache"):  # LBFGS counts its parameters once
        optimizer._numel_cache = None
    for g, group in enumerate(optimizer.param_groups):
        named = [(old_names.get(id(p)), p) for p in group["params"]]
        order = _order(store, f"{index}/{g}", [n or FOREIGN for n, _ in named])
        labels = _labels(named, group)
        for name, old in named:
            if name is not None and name in new:
                optimizer.state.pop(old, None)
        present = {n: p for n, p in named if n is not None}
        present.update({n: p for n, p in new.items() if n in order and p is not None})
        leaving = {n for n, p in new.items() if p is None}
        entries: list[tuple[str | None, nn.Parameter]]
        if set(present) - {n for n, _ in named}:  # something comes back: rebuild in the template's order
            foreign = [p for n, p in named if n is None]
            entries = []
            for n in order:
                if n == FOREIGN and foreign:
                    entries.append((None, foreign.pop(0)))
                elif n in present and n not in leaving:
                    entries.append((n, present[n]))
            entries += [(None, p) for p in foreign]
        else:
            entries = [(n, present[n] if n is not None else p) for n, p in named if n not in leaving]
        group["params"][:] = [p for _, p in entries]
        if labels is not None:
            group["param_names"][:] = [labels.get(n if n is not None else id(p), n) for n, p in entries]
        for name, parameter in entries:
            if name is not None and name in new and states.get(name) is not None:
                optimizer.state[parameter] = states[name]


def _labels(named: Sequence[tuple[str | None, nn.Parameter]], group: Mapping[str, Any]) -> dict[str | int, str] | None:
    """The optimizer's own names by the model's, or by identity for parameters that the model does not have."""
    if "param_names" not in group:
        return None
    return {n if n is not None else id(p): label for (n, p), label in zip(named, group["param_names"], strict=True)}


def _order(store: DormantStore | None, key: str, names: Sequence[str]) -> list[str]:
    if store is None:
        return list(names)
    return store.order.setdefault(key, list(names))
