"""What stands in for a skipped block, and finding out on a call what it must return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from apical.structure import Argument, Feeder, Returned, SkippableBlock, Structure
from apical.structure._returned import returned, returned_zeros


class AbsentWeight:
    """What a stand-in has in the place of a weight.

    Torch's transformer layers hand the weights of their modules to fused kernels, unless one of them is a stranger that
    overrides functions of torch. This is one that does nothing else; a parent may also change it in place (RWKV's
    rescales the weights of its blocks), which does nothing either.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not name.endswith("_"):
            raise AttributeError(f"a weight of a block that is left out has no {name}")
        return lambda *_args, **_kwargs: self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return NotImplemented


class StandIn(nn.Module):
    """Returns what a skipped block returns whose gate is zero, whatever arguments it is given.

    Plain attributes that the block's parent may read (``batch_first``, ``attention_type``), also of modules inside the
    block, are the block's; its parameters are None, as in layers without a bias, but for weights (`AbsentWeight`).

    Args:
        returns: what to return.
        replaced: the block.
    """

    def __init__(self, returns: Returned, replaced: nn.Module) -> None:
        super().__init__()
        self.returns = returns
        vars(self).update({k: v for k, v in _plain_attributes(replaced).items() if k != "returns"})
        vars(self).update(_absent(replaced))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The block's first input, or zeros, as the block would return them."""
        made = self.returns.build(args, kwargs)
        return _with_gradients(made, [*args, *kwargs.values()]) if torch.is_grad_enabled() else made


def _with_gradients(made: Any, arguments: Sequence[Any]) -> Any:
    """What is returned, with a gradient of zero for arguments that it was not made of.

    So what feeds a block beside its stream, such as a norm that its caller holds, keeps a gradient, for which
    data-parallel training waits.
    """
    leaves, tree = tree_flatten(made)
    given = {id(leaf) for leaf in leaves}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and any(leaf is a for a in arguments):
            for other in (a for a in arguments if isinstance(a, Tensor) and a.requires_grad and id(a) not in given):
                nothing = other.to(leaf.dtype) * 0
                leaves[i] = leaves[i] + (nothing if nothing.shape == leaf.shape else nothing.sum())
            break
    return tree_unflatten(leaves, tree)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What a module says about itself, and for each child a namespace of what that says."""
    own = vars(nn.Module())
    found = {name: value for name, value in vars(module).items() if name not in own and _plain(value)}
    for name, child in module._modules.items():
        if child is not None:
            found[name] = SimpleNamespace(**_absent(child), **_plain_attributes(child))
    return found


def _absent(module: nn.Module) -> dict[str, Any]:
    """What is in the place of a module's tensors."""
    weights = {name for name, value in module._parameters.items() if value is not None and name.endswith("weight")}
    return {name: AbsentWeight() if name in weights else None for name in [*module._parameters, *module._buffers]}


def _plain(value: Any) -> bool:
    """Whether an attribute may be shared by two modules: no tensor, module, function, or container of them."""
    if isinstance(value, (tuple, list)):
        return all(_plain(v) for v in value)
    return not isinstance(value, (Tensor, nn.Module, Mapping, set)) and not callable(value)


def stand_in(returns: Returned | None, replaced: nn.Module) -> nn.Module:
    """The module that takes a block's place: ``nn.Identity`` if the block maps one tensor to one tensor."""
    return nn.Identity() if returns is None else StandIn(returns, replaced)


def bind_blocks(
    structure: Structure, model: nn.Module, run: Callable[[nn.Module], object],
    gated: Callable[..., AbstractContextManager[nn.Module]], tolerance: float,
) -> Structure:  # fmt: skip
    """The structure whose blocks say what their stand-ins return; blocks that cannot say it stay, with a note.

    Every block is called once with its gate at zero, but for those of several modules, of which only shapes are asked.
    Neighbours are not at zero together, so that a block's input is told from that of the block before it.

    Args:
        structure: with proposed blocks.
        model: a testbed; it is not changed.
        run: calls it.
        gated: makes a copy in which the gates of some blocks are zero.
        tolerance: of comparing an output with an input.
    """
    found: dict[str, SkippableBlock] = {}
    problems: dict[str, str] = {}
    several = [b for b in structure.blocks if b.feeders]
    plain = [b for b in structure.blocks if not b.feeders]
    for zero, others in ((plain[::2], several), (plain[1::2], [])):
        if zero or others:
            with gated(model, structure, {}, tuple(b.name for b in zero)) as twin:
                _observe(twin, [*zero, *others], run, tolerance, found, problems)
    for block in structure.blocks:
        if block.name not in found:
            problems.setdefault(block.name, "it is not called as a module")
    return replace(
        structure,
        blocks=tuple(found[b.name] for b in structure.blocks if b.name in found),
        notes=(*structure.notes, *(f"block {name} stays: {why}" for name, why in problems.items())),
    )


def _observe(
    twin: nn.Module, blocks: Iterable[SkippableBlock], run: Callable[[nn.Module], object], tolerance: float,
    found: dict[str, SkippableBlock], problems: dict[str, str],
) -> None:  # fmt: skip
    """Run the model and write down what each block made of its arguments."""
    calls: dict[str, tuple[Any, list[Argument]]] = {}

    def note(
        block: SkippableBlock, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any
    ) -> None:
        given = _arguments(module, args, kwargs)
        try:
            if block.feeders:
                calls[block.name] = (out, given)
                found[block.name] = _several(block, calls)
                return
            made = returned(out, given, tolerance)
        except ValueError as problem:
            made, problems[block.name] = None, str(problem)
        if made is None:
            problems.setdefault(block.name, "with its gate at zero it returns neither an input nor zeros")
            return
        simple = len(args) == 1 and not kwargs and (made.kind, made.position) == ("input", 0)
        found[block.name] = replace(block, returns=None if simple else made)

    for block in blocks:
        for feeder in block.feeders:
            twin.get_submodule(feeder.name).register_forward_hook(
                lambda m, a, k, o, name=feeder.name: calls.update({name: (o, _arguments(m, a, k))}), with_kwargs=True
            )
        twin.get_submodule(block.name).register_forward_hook(
            lambda m, a, k, o, block=block: note(block, m, a, k, o), with_kwargs=True
        )
    with torch.no_grad():
        run(twin)


def _several(block: SkippableBlock, calls: Mapping[str, tuple[Any, list[Argument]]]) -> SkippableBlock:
    """The block of several modules whose stand-ins hand zeros of its output's shape on from the first to the last."""
    output, _ = calls[block.name]
    shape = next((tuple(t.shape) for t in tree_leaves(output) if isinstance(t, Tensor)), ())
    missing = [f.name for f in block.feeders if f.name not in calls]
    if missing:
        raise ValueError(f"{missing[0]} is not called as a module")
    made = {name: returned_zeros(*calls[name], shape) for name in block.modules}
    feeders = tuple(Feeder(f.name, made[f.name]) for f in block.feeders)
    return replace(block, returns=made[block.name], feeders=feeders)


def _arguments(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Argument]:
    """The arguments of a call, each with its position and name where both lead to it, in the signature's order."""
    try:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds]
    except (TypeError, ValueError):  # a forward that does not say its parameters
        names = []
    listed = [Argument(v, i, names[i] if i < len(names) else None) for i, v in enumerate(args)]
    for name, value in kwargs.items():
        listed.append(Argument(value, names.index(name) if name in names else None, name))
    return sorted(listed, key=lambda a: len(names) if a.position is None else a.position)
