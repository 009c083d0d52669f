"""A model that is restructured together with its optimizers and copies, and what units and blocks are born with."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext

from torch import Tensor, nn
from torch.optim import Optimizer

from apical.errors import ConfigError
from apical.growth._components import Components
from apical.growth._method import Choice
from apical.growth._observer import GateObserver, directions
from apical.resizing import DormantStore, Shard, resize_
from apical.resizing._guards import check_arguments, check_copy, check_matches, unaveraged
from apical.resizing._indexing import TemplateMap
from apical.resizing._selection import Selection
from apical.resizing._sharding import Sharding
from apical.resizing._shards import fill_, scale_
from apical.structure import ChannelGroup, Keep, Structure
from apical.structure._cost import lies_in

SMALL = 0.1  # what newborns are multiplied with that cannot begin as zero; one that is multiplied with itself, twice


class GrowingModel:
    """A model, what trains it, what is copied from it, and what of it is dormant.

    Attributes:
        store: what is dormant; None after `release`.
        fixed: names of the parameters that nothing trains.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: tuple[Optimizer, ...],
        copies: Sequence[nn.Module],
        structure: Structure,
        shard: Shard | None,
    ) -> None:
        check_arguments(structure, copies, ConfigError)
        if shard is not None and copies:
            raise ConfigError("copies of a sharded model cannot be resized yet: leave out copies, or shard")
        self.model = model
        self.optimizers = optimizers
        self.copies = tuple(copies)
        self.store: DormantStore | None = DormantStore()
        self.fixed = fixed_parameters(model, optimizers)
        self._structure = structure
        self._template = TemplateMap(structure)
        self._sharding = None if shard is None else Sharding(shard)
        if self._sharding is not None:
            self._sharding.try_out(model)

    # ---- what there is ---------------------------------------------------------------------------------------------

    @property
    def selection(self) -> Selection:
        """The present network."""
        if self.store is None or self.store.selection is None:
            raise ConfigError("this Grower has finished and keeps no state; ask for it before finish()")
        return self.store.selection

    @property
    def sharded(self) -> bool:
        """Whether the model is divided among processes."""
        return self._sharding is not None

    def settle(self) -> DormantStore:
        """Bring a sharded model to rest, so that its tensors can be read and resized."""
        if self._sharding is not None:
            self._sharding.settle()
        if self.store is None:
            raise ConfigError(
                "this Grower has finished: its dormant weights are released; make a new one to grow again"
            )
        return self.store

    def untrained(self) -> list[str]:
        """Names of the parameters that want a gradient and that no optimizer holds now."""
        fixed = fixed_parameters(self.model, self.optimizers)
        return [name for name, p in self.model.named_parameters() if p.requires_grad and name in fixed]

    def observers(self, components: Components, shifts: bool) -> list[GateObserver]:
        """What reads the gate products of the present network, one for each optimizer."""
        size, first_block = components.values.numel(), components.num_units
        return [
            GateObserver(
                self.model, self._template, self.selection, directions(o.param_groups), size, first_block, shifts
            )
            for o in self.optimizers
        ]

    # ---- what changes ----------------------------------------------------------------------------------------------

    def follow(self, choice: Choice, components: Components, preserving: bool) -> None:
        """Become another network, with births prepared."""
        if self.settle().selection is not None:
            self._prepare_births(choice, components, preserving)
        self.resize(choice.keep, choice.skip)

    def resize(self, keep: Keep, skip: Iterable[str]) -> None:
        """Resize the model, the state of its optimizers and its copies."""
        store, s = self.settle(), self._sharding
        with nullcontext() if s is None else s.taken_apart(self.model, self.optimizers, store):
            resize_(self.model, self._structure, keep, skip, self.optimizers, store, copies=self.copies)

    def _prepare_births(self, choice: Choice, components: Components, preserving: bool) -> None:
        born: dict[str, list[int]] = {}
        first: dict[str, list[int]] = {}
        for i, group in enumerate(self._structure.groups):
            part = components.entries(i)
            live, lived = components.live[part], components.lived[part]
            born[group.name] = [u for u in choice.keep[group.name] if not live[u]]
            first[group.name] = [u for u in born[group.name] if not lived[u]]
        lived_blocks: Tensor = components.lived[components.blocks]
        unborn = [b.name for b, lived in zip(self._structure.blocks, lived_blocks.tolist(), strict=True) if not lived]
        self.fixed = fixed_parameters(self.model, self.optimizers, self.fixed)
        prepare_births_(self.settle(), self._structure, born, first, unborn, preserving, self.fixed)

    def add_copy(self, model: nn.Module) -> None:
        """Resize another copy of the present model with it; see `apical.Grower.add_copy`."""
        store = self.settle()
        check_copy(model, ConfigError)
        if self.sharded:
            raise ConfigError("copies of a sharded model cannot be resized yet: it has none that add_copy could add")
        known = [unaveraged(c) for c in (self.model, *self.copies)]
        if any(unaveraged(model) is other for other in known):
            raise ConfigError("this is the model itself, or a copy that is resized already; add each copy once")
        advice = "Make the copy of the model as it is now: copy.deepcopy(model)."
        check_matches(unaveraged(model), self._template, self.selection, "the copy", advice)
        store.add_copy(len(self.copies))
        self.copies = (*self.copies, model)

    def release(self) -> None:
        """Forget what is dormant; a sharded model becomes a plain one, whole on every process."""
        self.store = None
        if self._sharding is not None:
            self._sharding.end(self.model, self.optimizers)
            self._sharding = None


def prepare_births_(
    store: DormantStore,
    structure: Structure,
    born: Mapping[str, Sequence[int]],
    first_time: Mapping[str, Sequence[int]],
    unborn: Sequence[str],
    preserving: bool,
    fixed: Collection[str] = (),
) -> None:
    """Edit the dormant values of units and blocks that the next resize will bring into the network.

    Args:
        store: where they lie; only dormant positions are touched.
        structure: the template.
        born: units that will appear, by group.
        first_time: those of them that never lived before. Returning units keep their trained weights.
        unborn: blocks that have not lived before this resize. Their last affine is zero at birth, so nothing else
            inside them needs to be: were the readers within zero as well, none of them would ever get a gradient.
        preserving: whether newborns must leave the function unchanged.
        fixed: tensors that nothing trains. They keep their values, so that a newborn that only they read does change
            the function: were they zero, it would never be read at all, and never get a gradient.
    """
    for group in structure.groups:
        if born.get(group.name):
            _forget_momentum_(store, group, born[group.name])
        if preserving and first_time.get(group.name):
            for part in (group.readers or group.gate_site) if group.silent else group.members:
                if _within(structure, part.tensor, unborn) or _is_fixed(structure, part.tensor, fixed):
                    continue
                index = part.index[list(first_time[group.name])].reshape(-1)
                for full in store.named(part.tensor):
                    if group.silent:
                        fill_(full, part.dim, index, 0)
                    elif structure.tensors[part.tensor].is_parameter:
                        scale_(full, part.dim, index, SMALL)
    if preserving:
        for block in structure.blocks:
            if block.name in unborn:
                for name in block.gate_site:
                    if _is_fixed(structure, name, fixed):
                        continue
                    for full in store.named(name):
                        full.zero_()


def fixed_parameters(model: nn.Module, optimizers: Sequence[Optimizer], before: Collection[str] = ()) -> frozenset[str]:
    """Names of the parameters that nothing trains: they want no gradient, or no optimizer holds them.

    Args:
        model: as it is now.
        optimizers: the user's.
        before: what was found earlier, which counts for parameters that are not in the model at present.
    """
    live = dict(model.named_parameters(remove_duplicate=False))
    held = set().union(*(directions(o.param_groups) for o in optimizers))
    absent = [name for name in before if name not in live]
    return frozenset([*absent, *(n for n, p in live.items() if not p.requires_grad or id(p) not in held)])


def _is_fixed(structure: Structure, tensor: str, fixed: Collection[str]) -> bool:
    return any(name in fixed for name in (tensor, *structure.tensors[tensor].aliases))


def _within(structure: Structure, tensor: str, blocks: Sequence[str]) -> bool:
    names = (tensor, *structure.tensors[tensor].aliases)
    gone = structure.left_out(blocks)
    return all(any(lies_in(name, path) for path in gone) for name in names)


def _forget_momentum_(store: DormantStore, group: ChannelGroup, units: Sequence[int]) -> None:
    """Zero what optimizers know of units.

    Of Adam's mean of squares, too, so that newborns take steps of several learning rates at first, and catch up.
    """
    for part in group.members:
        index = part.index[list(units)].reshape(-1)
        for full in store.moments(part.tensor):
            fill_(full, part.dim, index, 0)
