"""Carrying optimizer state through a resize, and re-keying the same optimizer object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from apical.errors import ResizeError
from apical.resizing._store import DormantStore

FOREIGN = ""  # stands for a parameter that is not the model's in a recorded order
NO_GROUP = "none"  # the key, in place of "optimizer/group", of the parameters that no optimizer holds
_OR_RESET = "; resize_(…, optimizer_state='reset') drops this state, a Grower cannot."
UNFIT = {"LBFGS": "one history over all parameters", "Adafactor": "moments of rows and columns"}  # by class name
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
        if _follows(value, old):
            moved = transfer(f"{key}/{entry}", value)
            if moved is not None:
                result[entry] = moved
        elif _stays(value):
            result[entry] = value
        elif may_reset:
            reset.append(name)
            return {}
        else:
            raise _misfit(optimizer, name, old, entry, value)
    return result


def check_kinds(optimizers: Sequence[Optimizer]) -> None:
    """Raise for optimizers of which it is known before their first step that a resize cannot carry their state.

    Raises:
        ResizeError: for LBFGS and Adafactor, whichever library they come from, and where `refuse_outer` does.
    """
    refuse_outer(optimizers)
    for optimizer in optimizers:
        for kind in type(optimizer).__mro__:
            if kind.__name__ in UNFIT:
                raise ResizeError(
                    f"{type(optimizer).__name__} keeps {UNFIT[kind.__name__]}, which does not follow the channels of a "
                    "parameter. Use an optimizer whose state is shaped like its parameter (SGD, Adam, AdamW, RMSprop, "
                    f"…){_OR_RESET}"
                )


def refuse_outer(optimizers: Sequence[Optimizer]) -> None:
    """Raise for an optimizer that steps through another one, as SAM does, whose state would be left behind.

    Raises:
        ResizeError: if the inner one, with a state of its own for the same parameters, was not given.
    """
    for outer in optimizers:
        held = {id(p) for group in outer.param_groups for p in group["params"]}
        for attribute, inner in vars(outer).items():
            if not isinstance(inner, Optimizer) or inner.state is outer.state or any(inner is o for o in optimizers):
                continue
            if any(id(p) in held for group in inner.param_groups for p in group["params"]):
                name, kind = type(outer).__name__, type(inner).__name__
                raise ResizeError(
                    f"{name} steps through another optimizer, its {attribute} ({kind}), whose state a resize of "
                    f"{name} would leave behind. Pass that one: optimizer={name.lower()}.{attribute}; your loop goes "
                    f"on to use {name}."
                )


def check_state(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Raise if a resize could not carry the state that an optimizer keeps now, as after its first step.

    Raises:
        ResizeError: for state of another shape, or a history over all parameters.
    """
    check_histories(optimizer, list(names.values()), may_reset=False)
    for parameter, state in optimizer.state.items():
        for entry, value in state.items():
            if id(parameter) in names and not _follows(value, parameter) and not _stays(value):
                raise _misfit(optimizer, names[id(parameter)], parameter, entry, value)


def _follows(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0


def _stays(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, bool)) or (isinstance(value, Tensor) and value.numel() == 1)


def _misfit(optimizer: Optimizer, name: str, parameter: Tensor, entry: str, value: Any) -> ResizeError:
    what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    return ResizeError(
        f"{type(optimizer).__name__} keeps {entry!r} for {name} as {what}, which does not follow the channels "
        f"of a parameter of shape {tuple(parameter.shape)}. Use an optimizer whose state is shaped like its "
        f"parameter (SGD, Adam, AdamW, RMSprop, …){_OR_RESET}"
    )


def restored_state(
    optimizer: Optimizer, entries: Mapping[str, Tensor], other: dict[str, Any] | None
) -> dict[str, Any] | None:
    """State of a parameter that comes back with its block: ``entries`` have its shape, ``other`` has no positions.

    The parameter's device does not tell where ``other`` belongs: Adam's step is on the host, unless Adam is fused or
    capturable. So it goes where the other parameters have the same entry, and stays where it is if none has it.
    """
    if other is None:
        return None
    result = {**other, **entries}
    for entry, value in other.items():
        peers = (state.get(entry) for state in optimizer.state.values())
        peer = next((p for p in peers if isinstance(p, Tensor)), None)
        if isinstance(value, Tensor) and peer is not None and entry not in entries:
            result[entry] = value.to(peer.device)
    return result


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
            f"Adam, AdamW, RMSprop, …){_OR_RESET}"
        )
    return True


def group_orders(
    optimizers: Sequence[Optimizer],
    live: Mapping[str, nn.Parameter],
    new: Mapping[str, nn.Parameter | None],
    store: DormantStore | None,
) -> dict[str, list[str]]:
    """The parameter names of every group, by "optimizer/group", with absent ones at the place where they left.

    What the groups hold now counts: it may be more or less than at the last resize. An absent parameter keeps its group
    as long as the optimizers are the same. When others came, it goes to the group in which all that were with it are
    now; if there is no such group, or none is on record, to the group in which all of the model's parameters that
    require a gradient are.

    Args:
        optimizers: those that train the model.
        live: the model's parameters before the resize.
        new: what the resize installs (None: the parameter leaves).
        store: what it has in ``order`` is the record of the last resize.

    Raises:
        ResizeError: if a parameter that requires a gradient comes back and its group cannot be told.
    """
    names = {id(p): n for n, p in live.items()}
    orders = {f"{i}/{g}": [names.get(id(p), FOREIGN) for p in group["params"]]
              for i, optimizer in enumerate(optimizers) for g, group in enumerate(optimizer.param_groups)}  # fmt: skip
    where = {n: key for key, order in orders.items() for n in order if n != FOREIGN}
    orders[NO_GROUP] = [n for n in live if n not in where]
    where.update(dict.fromkeys(orders[NO_GROUP], NO_GROUP))
    same = store is not None and store.is_of(optimizers)
    for key, order in (store.order if store is not None else {}).items():
        together = {where[n] for n in order if n in where}
        target = key if same and key in orders else together.pop() if len(together) == 1 else None
        if target is not None:
            _insert_absent(orders[target], order, live)
    if optimizers:
        _place_unknown(orders, where, live, new, optimizers)
    return orders


def _place_unknown(
    orders: Mapping[str, list[str]],
    where: Mapping[str, str],
    live: Mapping[str, nn.Parameter],
    new: Mapping[str, nn.Parameter | None],
    optimizers: Sequence[Optimizer],
) -> None:
    """Add what comes back, requires a gradient and has no group yet to the group of all that require one."""
    known = {n for order in orders.values() for n in order}
    unknown = [n for n, p in new.items() if n not in live and n not in known and p is not None and p.requires_grad]
    if not unknown:
        return
    groups = {where[n] for n, p in live.items() if p.requires_grad}
    if len(groups) != 1:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        given = ", ".join(f"{type(o).__name__} (parameter groups: {len(o.param_groups)})" for o in optimizers)
        raise ResizeError(
            f"{unknown[0]}{more} comes back and requires a gradient, but its parameter group cannot be told: it left "
            f"under another optimizer or under none, and those that were with it are not together in one group of "
            f"{given}. Give a new optimizer the groups of the old one or one group of all parameters, or make it while "
            "all blocks are present."
        )
    orders[groups.pop()].extend(unknown)


def _insert_absent(order: list[str], recorded: Sequence[str], live: Mapping[str, nn.Parameter]) -> None:
    """Put the absent ones of ``recorded`` into ``order``, each behind the one that was before it."""
    if all(name == FOREIGN or name in live for name in recorded):
        return
    place = 0
    for name in recorded:
        if name in order[place:]:
            place = order.index(name, place) + 1
        elif name != FOREIGN and name not in live and name not in order:
            order.insert(place, name)
            place += 1


def rekey_(
    optimizer: Optimizer,
    index: int,
    old_names: Mapping[int, str],
    new: Mapping[str, nn.Parameter | None],
    states: Mapping[str, dict[str, Any] | None],
    orders: Mapping[str, Sequence[str]],
) -> None:
    """Install new parameters in the same optimizer: ``new`` maps names to them (None: the parameter leaves)."""
    if hasattr(optimizer, "_numel_cache"):  # LBFGS counts its parameters once
        optimizer._numel_cache = None
    for g, group in enumerate(optimizer.param_groups):
        named = [(old_names.get(id(p)), p) for p in group["params"]]
        labels = _labels(named, group)
        for name, old in named:
            if name is not None and name in new:
                optimizer.state.pop(old, None)
        foreign = iter([p for n, p in named if n is None])
        present: dict[str, nn.Parameter | None] = {**{n: p for n, p in named if n is not None}, **new}
        entries: list[tuple[str | None, nn.Parameter]] = []
        for name in orders[f"{index}/{g}"]:
            parameter = next(foreign) if name == FOREIGN else present.get(name)
            if parameter is not None:  # else it is absent
                entries.append((None if name == FOREIGN else name, parameter))
        group["params"][:] = [p for _, p in entries]
        if labels is not None:
            group["param_names"][:] = [labels.get(n if n is not None else id(p), n) for n, p in entries]
        for entry, parameter in entries:
            if entry is not None and entry in new and states.get(entry) is not None:
                optimizer.state[parameter] = states[entry]


def _labels(named: Sequence[tuple[str | None, nn.Parameter]], group: Mapping[str, Any]) -> dict[str | int, str] | None:
    """The optimizer's own names by the model's, or by identity for parameters that the model does not have."""
    if "param_names" not in group:
        return None
    return {n if n is not None else id(p): label for (n, p), label in zip(named, group["param_names"], strict=True)}
