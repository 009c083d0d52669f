"""The dormant store: what is absent from the model, kept at full size so that it can come back."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical._checks import changed_since, shown
from apical.errors import ConfigError, ResizeError
from apical.resizing._indexing import TensorIndex, scatter_
from apical.resizing._selection import Selection
from apical.resizing._shards import alike, is_sharded, whole
from apical.structure import Structure


class DormantStore:
    """Keeps the values of absent channels, units and blocks, with optimizer state and copies.

    One store serves one model: pass the same object to every `resize_` of it.

    Optimizer state comes back to the optimizer that left it. Which one that is, is told by the object and its position
    among the optimizers; in a store that was loaded or copied by the class and the position, until the next resize.
    When another optimizer comes to that position, the state that the former one left is dropped, and what returns
    begins without state, as everything in a new optimizer does.

    Args:
        device: where the values wait, for instance ``"cpu"`` to free accelerator memory; by default they stay on
            the device of their tensor.

    Attributes:
        selection: what is present in the model now; None before the first resize.

    Raises:
        ConfigError: there is no such device, or it holds no values.

    Example:
        >>> import torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        >>> structure = apical.trace(net, torch.zeros(1, 3))
        >>> before = net[0].weight.detach().clone()
        >>> store = apical.DormantStore()
        >>> _ = apical.resize_(net, structure, {"0": [0, 2]}, store=store)
        >>> net[0].out_features
        2
        >>> _ = apical.resize_(net, structure, {}, store=store)
        >>> torch.equal(net[0].weight, before)
        True
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        self.device = _device(device)
        self.selection: Selection | None = None
        self.dtype: torch.dtype | None = None
        self._structure: Structure | None = None
        self._full: dict[str, Tensor] = {}
        self._other: dict[str, Any] = {}  # optimizer state that is not shaped like its parameter (step counts)
        self._retired: dict[int, weakref.ref[nn.Parameter]] = {}
        self.modules: dict[str, nn.Module] = {}  # absent blocks by namespace and path
        self.order: dict[str, list[str]] = {}  # parameter names by "optimizer/group", absent ones included
        self._optimizers: dict[int, weakref.ref[Optimizer]] = {}  # by position; not known after a load or a copy
        self._classes: dict[int, str] = {}  # their classes

    def current(self, structure: Structure) -> Selection:
        """What the model holds now, in terms of ``structure``."""
        if not isinstance(structure, Structure):
            raise ResizeError(f"structure must be the Structure that apical.trace returned, got {shown(structure)}")
        if self._structure is not None and self._structure is not structure and self._structure != structure:
            raise ResizeError("this DormantStore belongs to another structure; use one store per traced model")
        return self.selection if self.selection is not None else Selection.full(structure)

    def bind(self, structure: Structure, selection: Selection, dtype: torch.dtype) -> None:
        """Note what the model holds after a resize, and its floating-point type."""
        self._structure, self.selection, self.dtype = structure, selection, dtype

    def is_of(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether ``order`` was recorded with these optimizers, and no others."""
        recorded = {key.partition("/")[0] for key in self.order if "/" in key}
        return recorded == {str(i) for i in range(len(optimizers))} and all(
            self._knows(i, o) for i, o in enumerate(optimizers)
        )

    def _knows(self, position: int, optimizer: Optimizer) -> bool:
        """Whether what is kept under this position is this optimizer's (or nothing is)."""
        if position in self._optimizers:
            return self._optimizers[position]() is optimizer
        return self._classes.get(position, type(optimizer).__name__) == type(optimizer).__name__

    @contextmanager
    def serving(self, optimizers: Sequence[Optimizer]) -> Iterator[None]:
        """A resize with these optimizers: the state of others in their positions is dropped, unless it fails."""
        full, other = self._full, self._other
        dropped = tuple(f"optimizer{i}/" for i, o in enumerate(optimizers) if not self._knows(i, o))
        if dropped:
            self._full = {k: v for k, v in full.items() if not k.startswith(dropped)}
            self._other = {k: v for k, v in other.items() if not k.startswith(dropped)}
        try:
            yield
        except BaseException:
            self._full, self._other = full, other
            raise
        for i, optimizer in enumerate(optimizers):
            self._optimizers[i], self._classes[i] = weakref.ref(optimizer), type(optimizer).__name__

    def __getstate__(self) -> dict[str, Any]:
        """A copy goes with copies of the optimizers and parameters, which are known by their objects."""
        return {**vars(self), "_optimizers": {}, "_retired": {}}

    def full(self, key: str) -> Tensor | None:
        """The full-size values under a key, if any were stored."""
        return self._full.get(key)

    def hold(self, key: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The full-size buffer under a key, made of zeros if there is none yet."""
        device = self.device or like.device
        if key not in self._full:
            self._full[key] = torch.zeros(shape, dtype=like.dtype, device=device)
        # the model may have been cast or moved since, or the store loaded from a file to the host
        self._full[key] = alike(self._full[key].to(device, like.dtype), like)
        return self._full[key]

    def put(self, key: str, shape: tuple[int, ...], index: TensorIndex, part: Tensor) -> Tensor:
        """Write a live part to its place in the full-size buffer under a key; returns all of that, not divided."""
        full = self.hold(key, shape, part)
        if not is_sharded(full):
            scatter_(full, index, whole(part))
            return full
        gathered = whole(full)
        scatter_(gathered, index, whole(part))
        self._full[key] = alike(gathered, full)
        return gathered

    def divide(self, like: Tensor) -> None:
        """Keep of all values the part only that this process would hold of a parameter that is sharded."""
        self._full = {k: alike(v, like) if v.dim() else v for k, v in self._full.items()}
        for parked in self.modules.values():
            for module in parked.modules():
                for leaf, p in module._parameters.items():
                    if p is not None and p.dim() and not is_sharded(p):
                        module._parameters[leaf] = nn.Parameter(alike(p.detach(), like), p.requires_grad)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The full-size values whose key starts with ``prefix``."""
        return {k: v for k, v in self._full.items() if k.startswith(prefix)}

    def named(self, name: str) -> list[Tensor]:
        """The full-size values of a parameter or buffer: the model's and those of its copies."""
        return [v for k, v in self._full.items() if k == name or (k.startswith("copy") and k.partition("/")[2] == name)]

    def add_copy(self, position: int) -> None:
        """Let a copy of the model that was made just now have, of what is absent, what the model has.

        Args:
            position: of the copy, in the ``copies`` of `resize_`.
        """
        own = {k: v for k, v in self._full.items() if not k.startswith(("copy", "optimizer"))}
        self._full |= {f"copy{position}/{k}": v.clone() for k, v in own.items()}
        blocks = {k: v for k, v in self.modules.items() if not k.startswith("copy")}
        self.modules |= {f"copy{position}/{k}": copy.deepcopy(v) for k, v in blocks.items()}

    def moments(self, name: str) -> list[Tensor]:
        """The full-size optimizer state that is shaped like a parameter."""
        return [v for k, v in self._full.items() if k.startswith("optimizer") and k.split("/")[1] == name]

    def keep_other(self, key: str, value: dict[str, Any]) -> None:
        """Remember optimizer state of an absent parameter that has no positions."""
        self._other[key] = copy.deepcopy(value)

    def other(self, key: str) -> dict[str, Any] | None:
        """Optimizer state of an absent parameter that has no positions."""
        return copy.deepcopy(self._other.get(key))

    def retire(self, parameter: nn.Parameter) -> None:
        """Note that the model no longer holds this parameter object."""
        self._retired[id(parameter)] = weakref.ref(parameter)

    def has_retired(self, parameter: nn.Parameter) -> bool:
        """Whether the object is one that the model held before a resize."""
        known = self._retired.get(id(parameter))
        return known is not None and known() is parameter

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers that restore the store's values (`load_state_dict`)."""
        return {
            "full": {k: v.clone() for k, v in self._full.items()},
            "other": copy.deepcopy(self._other),
            "order": {k: list(v) for k, v in self.order.items()},
            "optimizers": dict(self._classes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put saved values back; the model must have been resized to the saved selection with this store before.

        They wait on the store's device; if none was given, where they were loaded to, and from the next resize that
        writes to them on the device of their tensor.

        Raises:
            ResizeError: a value has another shape than the tensor of the traced model that it belongs to, or what is
                said of the optimizers' parameters are no names.
            CheckpointError: this is no saved store, or a damaged one. Whatever is raised, nothing was loaded.
        """
        mend = "Nothing of it was loaded; build anew what was resized for it"
        with changed_since("the saved dormant store", mend):
            if not all(isinstance(name, str) for names in state["order"].values() for name in names):
                raise ResizeError("the saved store's order of parameters holds something else than names")
            self._check_shapes(state["full"])
            full = {k: v.to(self.device, copy=True) for k, v in state["full"].items()}
            other = copy.deepcopy(state["other"])
            order = {k: list(v) for k, v in state["order"].items()}
            classes = dict(state.get("optimizers", {}))  # older states do not say
        # only now that all could be read
        self._full, self._other, self.order, self._optimizers, self._classes = full, other, order, {}, classes

    def _check_shapes(self, full: Mapping[str, Tensor]) -> None:
        if self._structure is None:
            return
        for key, value in full.items():
            spec = self._structure.tensors.get(key.split("/")[1] if "/" in key else key)
            if spec is None or tuple(value.shape) != tuple(spec.shape):
                expected = "a tensor of the traced model" if spec is None else f"{tuple(spec.shape)}"
                raise ResizeError(f"{key} of the saved store has shape {tuple(value.shape)}, expected {expected}")


def _device(given: Any) -> torch.device | None:
    if given is None:
        return None
    with suppress(RuntimeError, TypeError):
        device = torch.device(given)
        if device.type != "meta" and not isinstance(given, int):
            return device
    raise ConfigError(f"device must be one that holds values, such as 'cpu', or None; got {shown(given)}")
