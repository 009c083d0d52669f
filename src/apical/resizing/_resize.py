"""`resize_`: the one function that changes a model's sizes. It plans, checks, and applies whole or not at all."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.errors import ResizeError
from apical.resizing._guards import check_arguments, check_matches, check_parameters, refuse_wrapped, unaveraged
from apical.resizing._indexing import TemplateMap, TensorIndex, gather, same_index, scatter_
from apical.resizing._install import Installation, lookup, retire_, whole_or_nothing
from apical.resizing._optimizer import (
    check_histories,
    group_orders,
    refuse_outer,
    rekey_,
    resized_state,
    restored_state,
)
from apical.resizing._report import ResizeReport, TensorChange
from apical.resizing._selection import Selection, check_selection
from apical.resizing._shards import alike, is_sharded, whole
from apical.resizing._stand_in import stand_in
from apical.resizing._store import DormantStore
from apical.structure import Keep, Structure
from apical.structure._cost import lies_in
from apical.structure._registry import module_refresh
from apical.structure._sizes import stated

_NO_STORE = (
    "what left it is not kept. Pass store=apical.DormantStore() to the resize that removes and the same store to the "
    "one that brings back, or build the model anew."
)

OTHER_STORE = (
    "Pass the store of the model's earlier resizes, or the structure of its present size, trace(model, example_inputs)."
)
_RESIZED = "If it was resized before, pass the DormantStore of that resize; else trace this model."


@dataclass(frozen=True)
class Move:
    """A tensor's way from the old to the new selection; an index of None means that it is absent."""

    name: str
    old: TensorIndex | None
    new: TensorIndex | None


@dataclass
class NewTensors:
    """What was computed for one model (the user's, or a copy of it) and waits to be installed."""

    namespace: str
    model: nn.Module
    tensors: dict[str, Tensor | None] = field(default_factory=dict)  # None: the tensor leaves with its block
    replaced: list[nn.Parameter] = field(default_factory=list)
    changes: list[TensorChange] = field(default_factory=list)


def resize_(
    model: nn.Module,
    structure: Structure,
    keep: Keep,
    skip: Iterable[str] = (),
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    store: DormantStore | None = None,
    *,
    copies: Sequence[nn.Module] = (),
    optimizer_state: Literal["carry", "reset"] = "carry",
) -> ResizeReport:
    """Resize a model in place to the kept positions, with everything that depends on their sizes.

    Weights, gradients, BatchNorm statistics and optimizer state follow their channels; module attributes
    (``out_channels``, ``hidden_size``, …) say the new sizes; a skipped block becomes ``nn.Identity`` in its parent
    (or, where it takes or gives more than one tensor, a module that gives what the block gave).
    Everything is computed and checked before the first change: after an error the model and optimizer are as before.
    Resized parameters are *new* ``nn.Parameter`` objects in the *same* optimizer, so that a loss computed before
    the resize may still be alive, and learning-rate schedulers and gradient scalers stay valid.

    Args:
        model: the model that was traced, unwrapped (not under DDP or ``torch.compile``).
        structure: what `apical.trace` returned for it.
        keep: sorted positions to keep, by group name, counted in the template; groups not named keep everything.
        skip: names of the blocks to leave out.
        optimizer: the optimizer (or several, in the same order at every call) that trains the model.
        store: keeps what leaves, so that a later call can bring it back bit-identical. Without a store, what leaves
            is lost, and the model cannot be resized again by this structure.
        copies: other models of the same class and shape to resize alike, such as an exponential moving average
            (``torch.optim.swa_utils.AveragedModel``).
        optimizer_state: ``"carry"`` refuses optimizer state that is not shaped like its parameter (Adafactor's
            factored moments); ``"reset"`` drops it and names it in the report.

    Returns:
        What was changed.

    Raises:
        ResizeError: if ``keep`` or ``skip`` is not a possible choice, the model does not fit the structure, is
            wrapped, on the meta device or on several devices, or the optimizer belongs to another model, or is new
            and its groups do not tell where the parameters of a returning block go.

    Example:
        >>> import torch, apical
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> structure = apical.trace(net, torch.zeros(1, 3))
        >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> report = apical.resize_(net, structure, {"0": [0, 3, 5]}, optimizer=sgd)
        >>> print(net[2])
        Linear(in_features=3, out_features=2, bias=True)
    """
    start = time.perf_counter()
    refuse_wrapped(model, ResizeError)
    if optimizer_state not in ("carry", "reset"):
        raise ResizeError(f"optimizer_state must be 'carry' or 'reset', got {optimizer_state!r}")
    # what is wrong with the arguments is refused before anything is computed
    check_arguments(structure, copies, ResizeError)
    optimizers = _check_types(optimizer, store)
    target = check_selection(structure, keep, skip)
    before = store.current(structure) if store is not None else Selection.full(structure)
    twins = [unaveraged(c) for c in copies]
    if any(t is model for t in twins) or len({id(t) for t in twins}) < len(twins):
        raise ResizeError("copies must be other models than the one that is resized, each given once")
    template = TemplateMap(structure)
    for twin, whose in [(model, "the model"), *((t, f"copy {i}") for i, t in enumerate(twins))]:
        check_matches(twin, template, before, whose, OTHER_STORE if store is not None else _RESIZED)
    check_parameters(model, optimizers, store)
    # the plan, then all new tensors aside, then the change
    resize = _Resize(template, before, target, store, optimizers, optimizer_state == "reset")
    serving = store.serving(optimizers) if store is not None else nullcontext()
    with torch.inference_mode(False), serving:  # parameters must be ordinary tensors wherever this is called from
        namespaces = ["", *(f"copy{i}/" for i in range(len(twins)))]
        prepared = [resize.prepare(ns, m) for ns, m in zip(namespaces, [model, *twins], strict=True)]
        attributes = resize.commit(prepared)
    if store is not None:
        store.bind(structure, target, floating_dtype(model))
    return ResizeReport(
        changed=tuple(prepared[0].changes),
        dropped=tuple(sorted(target.skip - before.skip)),
        restored=tuple(sorted(before.skip - target.skip)),
        attributes=attributes,
        reset=tuple(dict.fromkeys(resize.reset)),
        sizes={name: len(kept) for name, kept in target.keep.items()},
        seconds=time.perf_counter() - start,
    )


class _Resize:
    """One resize: moves are planned from indices, tensors prepared aside, and only then installed."""

    def __init__(self, template: TemplateMap, before: Selection, after: Selection, store: DormantStore | None,
                 optimizers: Sequence[Optimizer], may_reset: bool) -> None:  # fmt: skip
        self.template, self.before, self.after, self.store = template, before, after, store
        self.optimizers, self.may_reset = optimizers, may_reset
        self.specs = template.structure.tensors
        self.reset: list[str] = []
        self.forgetful: list[Optimizer] = []  # those whose state is dropped as a whole
        self.moves = list(self._moves())
        self.states: list[dict[str, dict[str, Any] | None]] = [{} for _ in optimizers]

    def _moves(self) -> Iterator[Move]:
        for name in self.specs:
            was, is_ = (self.template.present(name, s) for s in (self.before, self.after))
            old = self.template.index(name, self.before) if was else None
            new = self.template.index(name, self.after) if is_ else None
            if (old is None) != (new is None) or (old is not None and new is not None and not same_index(old, new)):
                yield Move(name, old, new)

    # ---- preparing ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, namespace: str, model: nn.Module) -> NewTensors:
        """Compute every new tensor, gradient and optimizer state; nothing of the model changes."""
        result = NewTensors(namespace, model)
        if not namespace and self.optimizers:
            self._check_histories(model)
        for move in self.moves:
            live = None if move.old is None else lookup(model, self.template.live_names(move.name, self.before)[0])
            value = self._transfer(namespace + move.name, live, move)
            if value is None:
                result.tensors[move.name] = None
            else:
                reference = live if live is not None else self._waiting(namespace, move.name)
                if live is None and self.store is not None and value.dtype == self.store.dtype:
                    value = value.to(floating_dtype(model))  # the model may have been cast since the block left
                result.tensors[move.name] = self._dress(value, reference, live, move)
                if live is not None and value.shape != live.shape:
                    result.changes.append(TensorChange(move.name, tuple(live.shape), tuple(value.shape)))
            if isinstance(live, nn.Parameter) and value is not None:  # those of a block that leaves stay its own
                result.replaced.append(live)
            if self.specs[move.name].is_parameter and not namespace:
                self._prepare_states(move, live, result.tensors[move.name])
        return result

    def _waiting(self, namespace: str, name: str) -> Tensor | None:
        """The tensor object of an absent block, for its flags (requires_grad, memory format, device)."""
        for key, module in (self.store.modules if self.store else {}).items():
            block = key.removeprefix(namespace)
            if key == namespace + block and name.startswith(block + "."):
                return lookup(module, name[len(block) + 1 :])
        return None

    def _transfer(self, key: str, live: Tensor | None, move: Move) -> Tensor | None:
        """Put the live part of a tensor into the store and take the new part out (None if it leaves)."""
        if self.store is None:
            if live is None or move.old:
                raise ResizeError(f"{move.name} cannot come back: {_NO_STORE}")
            return None if move.new is None else alike(gather(whole(live.detach()), move.new), live)
        stored = (
            self.store.full(key)
            if live is None
            else self.store.put(key, self.specs[move.name].shape, move.old or {}, live.detach())
        )
        if move.new is None:
            return None
        if stored is None:
            raise ResizeError(
                f"{move.name} cannot come back: this store never held it. Pass the store that was passed when it left."
            )
        part = gather(whole(stored), move.new)
        return part if live is None else alike(part.to(live.device), live)

    def _dress(self, value: Tensor, reference: Tensor | None, live: Tensor | None, move: Move) -> Tensor:
        """Give a new tensor what its predecessor had: device, memory format, shared memory, gradient, flags."""
        if reference is not None:
            value = alike(value.to(reference.device), reference)
            for layout, rank in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
                if is_sharded(reference):
                    break  # divided by rows, so that there is no other layout
                if reference.dim() == rank and reference.is_contiguous(memory_format=layout):
                    value = value.contiguous(memory_format=layout) if not reference.is_contiguous() else value
            if reference.device.type == "cpu" and not is_sharded(reference) and reference.is_shared():
                value = value.share_memory_()  # for processes that are started later: those that run hold the old one
        if not self.specs[move.name].is_parameter:
            return value
        parameter = nn.Parameter(value, requires_grad=reference.requires_grad if reference is not None else True)
        if reference is not None:
            vars(parameter).update(vars(reference))
        if live is not None and live.grad is not None:
            sparse, grad = live.grad.is_sparse, live.grad.to_dense() if live.grad.is_sparse else live.grad
            full = torch.zeros(self.specs[move.name].shape, dtype=grad.dtype, device=grad.device)
            scatter_(full, move.old or {}, whole(grad))
            grad = alike(gather(full, move.new or {}), grad)
            parameter.grad = grad.to_sparse(live.grad.sparse_dim()) if sparse else grad
        return parameter

    def _check_histories(self, model: nn.Module) -> None:
        moving = {m.name for m in self.moves}
        names = {id(p): n for n, p in model.named_parameters() if n in moving}
        self.forgetful = []
        for optimizer in self.optimizers:
            own = [names[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in names]
            if check_histories(optimizer, own, self.may_reset):
                self.reset.extend(own)
                self.forgetful.append(optimizer)

    def _prepare_states(self, move: Move, live: Tensor | None, new: Tensor | None) -> None:
        for i, optimizer in enumerate(self.optimizers):
            if optimizer in self.forgetful:
                continue
            key = f"optimizer{i}/{move.name}"
            if isinstance(live, nn.Parameter):
                moved = resized_state(optimizer, move.name, live, key, lambda k, v: self._transfer(k, v, move),
                                      self.reset, self.may_reset)  # fmt: skip
                if move.new is None and moved is not None and self.store is not None:
                    self.store.keep_other(key, moved)
                self.states[i][move.name] = moved
            elif self.store is not None and new is not None:
                entries = {k.removeprefix(key + "/"): alike(gather(whole(full), move.new or {}).to(new.device), new)
                           for k, full in self.store.below(key + "/").items()}  # fmt: skip
                self.states[i][move.name] = restored_state(optimizer, entries, self.store.other(key))

    # ---- installing ----------------------------------------------------------------------------------------------

    def commit(self, prepared: Sequence[NewTensors]) -> dict[str, int]:
        """Install what was prepared; if anything raises, undo it all and raise `ResizeError`."""
        canonical = {alias: name for name, spec in self.specs.items() for alias in (name, *spec.aliases)}
        live = {canonical[n]: p for n, p in prepared[0].model.named_parameters() if n in canonical}
        old_names = {id(p): n for n, p in live.items()}
        tensors = prepared[0].tensors.items()
        new_parameters = {n: t for n, t in tensors if t is None or isinstance(t, nn.Parameter)}
        leaving = [p for n, p in live.items() if n in prepared[0].tensors]
        # the order of parameters in the optimizers' groups, with those that are away at the place where they left
        orders = group_orders(self.optimizers, live, new_parameters, self.store)
        # from here on the model changes; each change notes how it is undone
        with whole_or_nothing() as install:
            for new in prepared:
                self._swap_blocks(new, install)
                self._install(new, install)
            attributes, *_ = [self._set_attributes(new.model, install) for new in prepared]
            for i, optimizer in enumerate(self.optimizers):
                install.optimizer(optimizer)
                if optimizer in self.forgetful:
                    optimizer.state.clear()
                rekey_(optimizer, i, old_names, new_parameters, self.states[i], orders)
        if self.store is not None:
            if self.optimizers:
                self.store.order = orders
            for parameter in leaving:
                self.store.retire(parameter)
        for new in prepared:
            for parameter in new.replaced:
                retire_(parameter)
        return attributes

    def _swap_blocks(self, new: NewTensors, install: Installation) -> None:
        known = {block.name: block for block in self.template.structure.blocks}
        for block in sorted(self.after.skip - self.before.skip):
            for path, returns in known[block].modules.items():
                module = install.module(new.model, path, stand_in(returns, new.model.get_submodule(path)))
                if self.store is not None:
                    key = new.namespace + path
                    self.store.modules[key] = module
                    install.on_undo(partial(self.store.modules.__delitem__, key))
        for block in sorted(self.before.skip - self.after.skip):
            if self.store is None:
                raise ResizeError(f"block {block} cannot come back: {_NO_STORE}")
            for path in known[block].modules:
                key, waiting = new.namespace + path, self.store.modules
                module = waiting.pop(key)
                install.on_undo(partial(waiting.__setitem__, key, module))
                install.module(new.model, path, module)

    def _install(self, new: NewTensors, install: Installation) -> None:
        for name, tensor in new.tensors.items():
            if tensor is not None:
                for alias in self.template.live_names(name, self.after):
                    install.tensor(new.model, alias, tensor)
        returned = self.template.structure.left_out(self.before.skip - self.after.skip)
        for name, spec in self.specs.items():  # parameters that a returning block shares with the rest
            inside = [n for n in (name, *spec.aliases) if any(lies_in(n, b) for b in returned)]
            if spec.aliases and inside and name not in new.tensors:
                source = lookup(new.model, self.template.live_names(name, self.before)[0])
                for alias in inside:
                    install.tensor(new.model, alias, source)

    def _set_attributes(self, model: nn.Module, install: Installation) -> dict[str, int]:
        groups = self.template.structure.groups
        full, sizes = [g.size for g in groups], [len(self.after.keep[g.name]) for g in groups]
        found: dict[str, int] = {}
        for spec in self.template.structure.attributes:
            if self.template.absent(spec.module, self.after):
                continue
            module, value = model.get_submodule(spec.module), spec.axis.length(sizes)
            says = stated(module, spec.attribute)
            if says is None and all(sizes[group] == full[group] for group, _ in spec.axis.counts):
                continue  # in the module's code, which is right as it is
            if says != value:
                install.attribute(module, spec.attribute, value)
                found[f"{spec.module}.{spec.attribute}".lstrip(".")] = value
        for path in self._touched_modules():
            module = model.get_submodule(path)
            refresh = module_refresh(module)
            if refresh is not None:
                install.attributes_changed_by(module, refresh)
        return found

    def _touched_modules(self) -> list[str]:
        """Paths of the modules that hold a resized tensor, and of their parents."""
        paths: dict[str, None] = {}
        for move in self.moves:
            path = move.name
            while path and move.new is not None:
                path = path.rpartition(".")[0]
                if not self.template.absent(path, self.after):
                    paths[path] = None
        return list(paths)


def _check_types(optimizer: Any, store: Any) -> list[Optimizer]:
    """The optimizers as a list, once every argument is of its type."""
    if store is not None and not isinstance(store, DormantStore):
        raise ResizeError(f"store must be an apical.DormantStore, got {type(store).__name__}")
    listed = [optimizer] if isinstance(optimizer, Optimizer) else optimizer if optimizer is not None else []
    if not isinstance(listed, (list, tuple)) or not all(isinstance(o, Optimizer) for o in listed):
        raise ResizeError(f"optimizer must be a torch optimizer or a list of them, got {type(optimizer).__name__}")
    refuse_outer(listed)
    return list(listed)


def floating_dtype(model: nn.Module) -> torch.dtype:
    """The type of the first floating-point parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
