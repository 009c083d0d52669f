"""What is measured: gate products, from the gradients that the task loss leaves on the gate sites in every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.resizing._indexing import TemplateMap
from apical.resizing._install import lookup
from apical.resizing._selection import Selection
from apical.resizing._shards import is_sharded, own_part, start_of_part, sum_over_parts_


class GateObserver:
    """Inner products ⟨θ_eff, ∂L/∂θ_eff⟩ per component, for one network between two restructurings.

    The products of all gate sites are computed in one fused call and gathered into one vector, so that a step costs
    a dozen small kernels whatever the number of groups.

    Args:
        model: the live model.
        template: where the groups' members lie.
        selection: what is present.
        parameters: the parameters to watch, those of one optimizer, with their `directions`.
        entries: total number of components.
        first_block: index of the first block's component.
        shifts: whether the gate of a block multiplies the last shift (bias) of its branch, too. It adds a constant to
            the stream, which any later bias can take over.
    """

    def __init__(self, model: nn.Module, template: TemplateMap, selection: Selection, parameters: Mapping[int, int],
                 entries: int, first_block: int, shifts: bool = True) -> None:  # fmt: skip
        self._entries = entries
        self._tensors: list[nn.Parameter] = []
        self._dims: list[int] = []
        self._rising: list[int] = []  # which of the tensors the optimizer moves up the gradient
        self._place: dict[tuple[str, int], int] = {}  # (tensor, dim) -> offset in the concatenated products
        self._length = 0
        sources: list[Tensor] = []
        targets: list[Tensor] = []
        structure = template.structure
        offset = 0
        for group in structure.groups:
            kept = torch.tensor(selection.keep[group.name], device="cpu")
            for part in group.gate_site:
                start = self._watch(model, template, selection, parameters, part.tensor, part.dim)
                if start is not None:
                    positions = template.positions(part, group.name, selection)  # (units, positions per unit)
                    sources.append((start + positions).reshape(-1))
                    targets.append((offset + kept)[:, None].expand(positions.shape).reshape(-1))
            offset += group.size
        for i, block in enumerate(structure.blocks):
            scales = [name for name in block.gate_site if not name.endswith("bias")]
            for name in (
                (block.gate_site if shifts or not scales else scales) if block.name not in selection.skip else ()
            ):
                start = self._watch(model, template, selection, parameters, name, 0)
                if start is not None:
                    length = lookup(model, name).shape[0] if lookup(model, name).dim() else 1
                    sources.append(start + torch.arange(length, device="cpu"))
                    targets.append(torch.full((length,), first_block + i, device="cpu"))
        self._sharded = next((t for t in self._tensors if is_sharded(t)), None)
        device = self._tensors[0].device if self._tensors else torch.device("cpu")
        empty = torch.zeros(0, dtype=torch.long, device="cpu")
        self._sources = torch.cat([*sources, empty]).to(device)
        self._targets = torch.cat([*targets, empty]).to(device)

    def _watch(self, model: nn.Module, template: TemplateMap, selection: Selection, parameters: Mapping[int, int],
               name: str, dim: int) -> int | None:  # fmt: skip
        """Add a tensor to the concatenation; returns where its products start, None if it is not watched."""
        if not template.present(name, selection):
            return None
        tensor = lookup(model, template.live_names(name, selection)[0])
        if not isinstance(tensor, nn.Parameter) or not tensor.requires_grad or id(tensor) not in parameters:
            return None
        if (name, dim) not in self._place:
            self._place[(name, dim)] = self._length
            if parameters[id(tensor)] < 0:
                self._rising.append(len(self._tensors))
            self._tensors.append(tensor)
            self._dims.append(dim)
            self._length += tensor.shape[dim] if tensor.dim() else 1
        return self._place[(name, dim)]

    def entries(self) -> Tensor:
        """The components whose products are seen; one may be there several times."""
        return self._targets.cpu()

    @torch.no_grad()
    def products(self) -> Tensor | None:
        """⟨θ_eff, ∂L/∂θ_eff⟩ of every component  # (entries,) float32 or float64; None without gradients."""
        if not self._tensors or all(t.grad is None for t in self._tensors):
            return None
        grads = [t.grad if t.grad is not None else torch.zeros_like(t) for t in self._tensors]
        for i in self._rising:
            grads[i] = -grads[i]
        # of complex numbers the inner product takes one factor conjugated, and its real part is the derivative
        grads = [g.conj().resolve_conj() if g.is_complex() else g for g in grads]
        if self._sharded is None:
            parts = torch._foreach_mul([t.detach() for t in self._tensors], grads)
            found = torch.cat([_sum_to(p, d) for p, d in zip(parts, self._dims, strict=True)])
        else:
            found = self._sum_of_parts(grads, self._sharded)
        flat = found.index_select(0, self._sources)
        total = torch.zeros(self._entries, dtype=flat.dtype, device=flat.device)
        return add_at_(total, self._targets, flat)

    def _sum_of_parts(self, grads: Sequence[Tensor], sharded: Tensor) -> Tensor:
        """The products of tensors that are divided among processes: each adds up its part, and one sum is sent."""
        first = start_of_part(sharded, 0) == 0
        parts = torch._foreach_mul([own_part(t.detach()) for t in self._tensors], [own_part(g) for g in grads])
        vectors = []
        for tensor, part, dim in zip(self._tensors, parts, self._dims, strict=True):
            own = _sum_to(part, dim)
            vector = own.new_zeros(tensor.shape[dim] if tensor.dim() else 1)
            if is_sharded(tensor) or first:  # of what is not divided, all have the whole
                start = start_of_part(tensor, dim)
                vector[start : start + len(own)] = own
            vectors.append(vector)
        found = torch.cat(vectors)
        sum_over_parts_(found, sharded)
        return found


class Round:
    """Products of one training step, where several optimizers have a part in it: a round in which each steps once."""

    def __init__(self, observers: Sequence[GateObserver]) -> None:
        self._observers = observers
        self._total: Tensor | None = None  # products of the running round
        self._stepped: set[int] = set()  # optimizers that stepped in it

    def observe(self, index: int, optimizer: Optimizer) -> Iterator[Tensor]:
        """Read the gradients of one optimizer's parameters, just before it steps.

        A fused optimizer under a GradScaler unscales inside its step: it is told by ``grad_scale``, and by
        ``found_inf`` that it will skip the step, which are followed here.

        Yields:
            The products of each round that has ended, NaN where the optimizer will skip the step  # (entries,)
        """
        if index in self._stepped:  # others did not step in the last round: a scaler skipped them, or they never do
            yield from self.end()
        products = self._observers[index].products()
        if products is not None:
            scale, found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
            if isinstance(scale, Tensor):
                products = products / scale.to(products).reshape(())
            if isinstance(found, Tensor):
                products = torch.where(found.to(products).reshape(()) > 0, torch.nan, products)
            self._total = products if self._total is None else self._total + products
        self._stepped.add(index)
        if len(self._stepped) == len(self._observers):
            yield from self.end()

    def end(self) -> Iterator[Tensor]:
        """End the round, if there is one: its products."""
        if self._total is not None:
            yield self._total
        self._total = None
        self._stepped.clear()


def add_at_(total: Tensor, targets: Tensor, values: Tensor) -> Tensor:
    """``total[targets[i]] += values[i]`` for all i, always in the same order.

    On CUDA `index_add_` adds in whatever order its threads come, so that processes which train one model together would
    get scores that differ in their last bits, and one day another network; accumulating `index_put_` sorts first.
    """
    if total.device.type == "cpu":
        return total.index_add_(0, targets, values)
    return total.index_put_((targets,), values, accumulate=True)


def _sum_to(product: Tensor, dim: int) -> Tensor:
    """Sum over all dimensions but one, in float32 at least; of complex numbers the real part  # (size of dim,)"""
    product = product.real if product.is_complex() else product
    dtype = torch.promote_types(product.dtype, torch.float32)
    if product.dim() <= 1:
        return product.reshape(-1).to(dtype)
    return product.sum([d for d in range(product.dim()) if d != dim], dtype=dtype)


def directions(groups: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """By identity of the parameters in an optimizer's groups: 1 if it moves them down the gradient, -1 if up it."""
    return {id(p): -1 if group.get("maximize") else 1 for group in groups for p in group["params"]}


Observe = Callable[[int, Optimizer], None]  # (number of the optimizer, optimizer)


class StepWatch:
    """Calls `observe` and `stepped` once in every step of every optimizer, until it is removed.

    Args:
        optimizers: the user's.
        observe: called once a step: before it, or, if the step computes its gradients itself by a closure, after the
            closure has been called for the first time.
        stepped: called after the step.

    Attributes:
        count: steps of all optimizers together so far; its user may set it back.
    """

    def __init__(self, optimizers: Sequence[Optimizer], observe: Observe, stepped: Observe) -> None:
        self.count = 0
        self._observe, self._stepped = observe, stepped
        self._inside: set[int] = set()
        self._before_hooks = [o.register_step_pre_hook(partial(self._before, i)) for i, o in enumerate(optimizers)]
        self._after_hooks = [o.register_step_post_hook(partial(self._after, i)) for i, o in enumerate(optimizers)]

    def remove(self) -> None:
        """Leave the optimizers as they were."""
        for hook in (*self._before_hooks, *self._after_hooks):
            hook.remove()

    def _before(
        self, index: int, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if index in self._inside:  # a step that calls the step of its base class may run the hooks of both
            return None
        self._inside.add(index)
        self.count += 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            self._observe(index, optimizer)
            return None
        waiting = [True]

        def observed() -> Any:
            loss = closure()
            if waiting:
                waiting.clear()
                self._observe(index, optimizer)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": observed}
        return (args[0], observed, *args[2:]), kwargs

    def _after(self, index: int, optimizer: Optimizer, *_: Any) -> None:
        if index in self._inside:
            self._inside.discard(index)
            # behind hooks that were registered meanwhile, which may clip gradients: what the step uses is read
            # (only if there are some: a compiled step is compiled anew for every other hook)
            if next(reversed(optimizer._optimizer_step_pre_hooks), None) != self._before_hooks[index].id:
                self._before_hooks[index].remove()
                self._before_hooks[index] = optimizer.register_step_pre_hook(partial(self._before, index))
            self._stepped(index, optimizer)
