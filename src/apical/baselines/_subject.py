"""What a comparator works on: the model with its optimizer and copies, its structure, and what of it is present."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical._checks import shown
from apical.errors import CheckpointError, ConfigError
from apical.resizing import DormantStore, resize_, trace
from apical.resizing._guards import SHRUNK, check_arguments, check_matches, refuse_shrunk
from apical.resizing._indexing import TemplateMap
from apical.resizing._install import lookup
from apical.resizing._optimizer import check_kinds
from apical.resizing._selection import Selection
from apical.resizing._smaller_runs import check_smaller_runs
from apical.structure import Call, ChannelGroup, ExampleInputs, Keep, ParamSlice, Structure


class Subject:
    """The model under comparison. All comparators resize it, price it and save its shape in this one way.

    Args:
        model: the full-size model; it is resized in place.
        optimizer: its optimizer; None for none.
        example_inputs: arguments of one call with one example: a tensor, a tuple, or a dict of keyword arguments.
        copies: further models to resize alike.
        structure: of the model, if it is known already.

    Attributes:
        selection: what is present now.

    Raises:
        ConfigError: the optimizer is none, or the model was made smaller before and no structure is given.
        ResizeError: the optimizer's state cannot follow channels.
        TraceError: the model cannot be analysed.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> subject = Subject(net, None, torch.zeros(1, 3))
        >>> subject.resize_({"0": [1, 5]})
        >>> net[0].out_features, subject.record()["macs_fraction"]
        (2, 0.25)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        example_inputs: ExampleInputs,
        copies: Sequence[nn.Module] = (),
        structure: Structure | None = None,
    ) -> None:
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"optimizer must be a torch.optim.Optimizer or None, got {shown(optimizer)}; the order is "
                "model, optimizer, example_inputs"
            )
        if optimizer is not None:
            check_kinds([optimizer])
        if structure is None:
            refuse_shrunk(model)
        self.structure = trace(model, example_inputs) if structure is None else structure
        check_arguments(self.structure, copies, ConfigError)
        if structure is not None:
            check_smaller_runs(model, structure, Call.of(example_inputs))
        self.model, self.optimizer, self._copies = model, optimizer, tuple(copies)
        self.selection = Selection.full(self.structure)
        self._template = TemplateMap(self.structure)
        self._store: DormantStore | None = DormantStore()
        self._rows: dict[tuple[str, ParamSlice], Rows | None] = {}  # of the present network

    def resize_(self, keep: Keep, skip: Iterable[str] = ()) -> None:
        """Resize model, optimizer and copies; what leaves waits, and comes back as it was."""
        if self._store is None:
            raise ConfigError("what this comparator removed is released, it cannot change the network again")
        resize_(self.model, self.structure, keep, skip, self.optimizer, self._store, copies=self._copies)
        assert self._store.selection is not None
        self.selection = self._store.selection
        if self.selection != Selection.full(self.structure):
            SHRUNK.add(self.model)
        self._rows.clear()

    def check_shapes(self) -> None:
        """Refuse a model that somebody else has resized.

        Raises:
            ResizeError: naming what has another shape.
        """
        advice = "Only its comparator may resize it; build model, optimizer and comparator anew."
        check_matches(self.model, self._template, self.selection, "the model", advice)

    def record(self) -> dict[str, Any]:
        """Cost, widths and blocks of the present network."""
        return network_record(self.structure, self.selection.keep, sorted(self.selection.skip))

    def rows(self, group: ChannelGroup, parts: Iterable[ParamSlice]) -> list[Rows]:
        """Where the present units of a group lie in some of its members; absent tensors and buffers are left out."""
        return [rows for part in parts if (rows := self._rows_of(group.name, part)) is not None]

    def _rows_of(self, group: str, part: ParamSlice) -> Rows | None:
        if (group, part) not in self._rows:
            self._rows[group, part] = self._find_rows(group, part)
        return self._rows[group, part]

    def _find_rows(self, group: str, part: ParamSlice) -> Rows | None:
        if not self._template.present(part.tensor, self.selection):
            return None
        tensor = lookup(self.model, self._template.live_names(part.tensor, self.selection)[0])
        if not isinstance(tensor, nn.Parameter):
            return None
        positions = self._template.positions(part, group, self.selection)
        return Rows(part.tensor, tensor, part.dim, positions.to(tensor.device))

    def release(self) -> None:
        """Forget what was removed: the network keeps its shape from now on."""
        self._store = None
        self._rows.clear()

    def state_dict(self) -> dict[str, Any]:
        """The present shape, and the values that wait, in tensors and plain containers."""
        return {
            "groups": {group.name: group.size for group in self.structure.groups},
            "keep": {name: list(kept) for name, kept in self.selection.keep.items()},
            "skip": sorted(self.selection.skip),
            "store": {} if self._store is None else self._store.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resize to a saved shape; load the state dicts of model and optimizer after this.

        Raises:
            CheckpointError: the state belongs to another model, or this network keeps its shape and the state has
                another; nothing has changed then.
        """
        own = {group.name: group.size for group in self.structure.groups}
        if state.get("groups") != own:
            raise CheckpointError(
                f"the saved state belongs to another model: its channel groups are {state.get('groups')}, those of "
                f"this model {own}"
            )
        mine = self.state_dict()
        if self._store is None and any(state[name] != mine[name] for name in ("keep", "skip")):
            raise CheckpointError(
                f"the saved network has the shape {state['keep']} without {state['skip']}, this one {mine['keep']} "
                f"without {mine['skip']}: another budget or divisor"
            )
        if self._store is None:
            return
        self.resize_(state["keep"], state["skip"])
        if not state["store"]:
            self.release()
        else:
            self._store.load_state_dict(state["store"])


class Rows:
    """The part of a parameter that belongs to each of a group's present units.

    Attributes:
        name: of the parameter in the template.
        tensor: the live parameter.
        dim: the dimension that the units share out.
        index: positions along it  # (units, positions per unit)
    """

    def __init__(self, name: str, tensor: nn.Parameter, dim: int, index: Tensor) -> None:
        self.name, self.tensor, self.dim, self.index = name, tensor, dim, index

    def of(self, values: Tensor) -> Tensor:
        """The units' parts of a tensor that is shaped like the parameter  # (units, elements of one)"""
        return values.detach().index_select(self.dim, self.index.reshape(-1)).movedim(self.dim, 0).reshape(
            len(self.index), -1
        )  # fmt: skip

    @torch.no_grad()
    def scale_(self, factors: Tensor) -> None:
        """Multiply the part of every unit by its factor, in place  # (units,)"""
        vector = torch.ones(self.tensor.shape[self.dim], dtype=self.tensor.dtype, device=self.tensor.device)
        per_unit = factors.to(vector).repeat_interleave(self.index.shape[1])
        vector[self.index.reshape(-1)] = per_unit
        shape = [-1 if d == self.dim else 1 for d in range(self.tensor.dim())]
        self.tensor.mul_(vector.view(shape))


def network_record(structure: Structure, keep: Mapping[str, Any], skip: Iterable[str] = ()) -> dict[str, Any]:
    """Cost, widths and blocks of a choice of kept positions (or their number) by group name, and skipped blocks.

    Widths are those of the groups that are there, not of those inside skipped blocks.

    Example:
        >>> import torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> record = network_record(apical.trace(net, torch.zeros(1, 3)), {"0": range(4)})
        >>> record["macs"], record["macs_fraction"], record["widths"]
        (20, 0.5, {'0': 4})
    """
    skipped = list(skip)
    macs, num_params = structure.macs(keep, skipped), structure.num_params(keep, skipped)
    return {
        "macs": macs,
        "num_params": num_params,
        "macs_fraction": macs / max(1, structure.macs()),
        "params_fraction": num_params / max(1, structure.num_params()),
        "widths": structure.widths(keep, skipped),
        "blocks": len(structure.blocks) - len(skipped),
        "skipped": skipped,
    }
