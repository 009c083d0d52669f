"""Refusing models that cannot be resized in place, before anything changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakSet

import torch
from torch import Tensor, nn

from apical._checks import shown
from apical.errors import ApicalError, ConfigError, ResizeError
from apical.resizing._indexing import TemplateMap
from apical.resizing._selection import Selection
from apical.resizing._store import DormantStore
from apical.structure import Structure

WRAPPERS = {
    "DistributedDataParallel": "pass ddp.module, and wrap it again after the resize",
    "DataParallel": "pass the inner .module",
    "FullyShardedDataParallel": "sharded parameters cannot be resized in place",
    "OptimizedModule": (
        "pass the model from before torch.compile (model._orig_mod), and compile it again after a resize"
    ),
    "ScriptModule": "pass the Python module that was scripted",
    "RecursiveScriptModule": "pass the Python module that was scripted",
}

SHARDED = "pass the plain model, and what shards it to a Grower: shard=fully_shard, or a function that calls it"

AVERAGES = frozenset({"AveragedModel", "ModelEmaV2", "ModelEmaV3"})  # torch's, timm's; each keeps a model in `.module`

SHRUNK: WeakSet[nn.Module] = WeakSet()  # models that a Grower, a comparator or a saved folder has made smaller


def check_arguments(structure: object, copies: object, error: type[ApicalError]) -> None:
    """Raise unless a structure is one, and copies are a list of modules."""
    if not isinstance(structure, Structure):
        raise error(f"structure must be the Structure that apical.trace returned, got {shown(structure)}")
    if not isinstance(copies, (list, tuple)):
        around = ": write copies=[…] around it" if isinstance(copies, nn.Module) else ""
        raise error(f"copies must be a list of modules, got {shown(copies)}{around}")
    for copy in copies:
        check_copy(copy, error)


def check_copy(copy: object, error: type[ApicalError]) -> None:
    """Raise unless something is a module, as a copy of a model is."""
    if not isinstance(copy, nn.Module):
        raise error(f"a copy of the model must be a torch.nn.Module, got {shown(copy)}")


def unaveraged(model: nn.Module) -> nn.Module:
    """The model that an average of weights keeps; any other as it is."""
    averaged = AVERAGES & {kind.__name__ for kind in type(model).__mro__}
    found = model.module if averaged else model
    assert isinstance(found, nn.Module)
    return found


def refuse_wrapped(model: nn.Module, error: type[ApicalError]) -> None:
    """Raise for wrapped models, models without parameters, on the meta device, or on several devices."""
    if not isinstance(model, nn.Module):
        raise error(f"expected a torch.nn.Module, got {type(model).__name__}")
    if unaveraged(model) is not model:
        raise error(
            f"the model is wrapped in {type(model).__name__}: pass its .module, which holds the averaged weights"
        )
    for name, module in model.named_modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}
        advice = SHARDED if "FSDPModule" in kinds else WRAPPERS.get(type(module).__name__)
        if advice:
            raise error(f"{name or 'the model'} is wrapped in {type(module).__name__}: {advice}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if not tensors:
        raise error(
            f"{type(model).__name__} has no parameters, so nothing in it can change its size; pass the whole model"
        )
    lazy = [n for n, t in tensors if isinstance(t, (nn.UninitializedParameter, nn.UninitializedBuffer))]
    if lazy:
        raise error(f"{lazy[0]} is not initialised yet (lazy module): run one forward pass first")
    meta = [n for n, t in tensors if t.is_meta]
    if meta:
        raise error(f"{meta[0]} is on the meta device and holds no values: materialise the model first")
    devices: dict[torch.device, str] = {}
    for name, tensor in tensors:
        devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        shown = ", ".join(f"{n} on {d}" for d, n in devices.items())
        raise error(f"the model is spread over several devices ({shown}); move it to one with model.to(device)")


def refuse_shrunk(model: nn.Module) -> None:
    """Refuse a model of which a part is gone, where the largest network is meant.

    Raises:
        ConfigError: a Grower, a comparator or `apical.load` has made it smaller.
    """
    if model in SHRUNK:
        raise ConfigError(
            "an earlier Grower, comparator or apical.load has already shrunk this model, which would now be taken for "
            "the largest network. Build the model anew (in a notebook, run its cell again), or pass "
            "structure=apical.trace(model, example_inputs) if its present size is meant to be the largest."
        )


def check_matches(model: nn.Module, template: TemplateMap, selection: Selection, whose: str, advice: str) -> None:
    """Raise unless the model's tensors have the shapes that the selection says."""
    problems = misfits(model, template, selection)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ResizeError(f"{whose} does not fit the structure: {'; '.join(problems[:3])}{more}. {advice}")


def misfits(model: nn.Module, template: TemplateMap, selection: Selection) -> list[str]:
    """Tensors of a model that the selection does not know, or that are missing or of another shape."""
    live = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    known = {alias for name, spec in template.structure.tensors.items() for alias in (name, *spec.aliases)}
    problems = [f"{name} is new since it was traced" for name, t in live.items()
                if name not in known and isinstance(t, nn.Parameter)]  # fmt: skip
    first: dict[int, str] = {}  # the name in the structure of every tensor, by its identity
    for name in template.structure.tensors:
        expected = template.shape(name, selection)
        present = template.live_names(name, selection)
        problems += _other_sharing(live, present, name, first)
        for alias in present:
            if alias not in live:
                problems.append(f"{alias} is missing (expected shape {expected})")
            elif tuple(live[alias].shape) != expected:
                problems.append(f"{alias} has shape {tuple(live[alias].shape)}, expected {expected}")
    return problems


def check_parameters(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], store: DormantStore | None) -> None:
    """Raise for parameters with hooks, which a new parameter would lose, and for optimizers of other models."""
    for name, parameter in model.named_parameters():
        if getattr(parameter, "_backward_hooks", None) or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise ResizeError(f"{name} has hooks on the tensor itself, which a resized parameter would lose: remove "
                              "them before the resize and register them again after it")  # fmt: skip
    own = {id(p) for p in model.parameters()} if optimizers else set()
    if len({id(o) for o in optimizers}) < len(optimizers):
        raise ResizeError("the same optimizer was passed twice")
    for optimizer in optimizers:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if held and not any(id(p) in own for p in held):
            raise ResizeError(
                f"the {type(optimizer).__name__} passed as optimizer holds none of the model's parameters: it belongs "
                "to another model, or was made before the model was changed or moved"
            )
        if store is not None and any(store.has_retired(p) for p in held):
            raise ResizeError(
                f"the {type(optimizer).__name__} passed as optimizer missed an earlier resize: it holds parameters "
                "that are no longer the model's. Pass the optimizer to every resize_, or make a new one now."
            )


def _other_sharing(live: Mapping[str, Tensor], names: Sequence[str], key: str, first: dict[int, str]) -> list[str]:
    """What a tensor's names share otherwise than when the model was traced."""
    problems = []
    for name in names:
        tensor, held = live.get(name), live.get(names[0])
        if tensor is None or held is None or not isinstance(tensor, nn.Parameter):
            continue
        other = first.setdefault(id(tensor), key)
        if other != key:
            problems.append(f"{name} shares its weight with {other} since it was traced")
        elif tensor is not held and tensor.untyped_storage().data_ptr() != held.untyped_storage().data_ptr():
            problems.append(f"{name} does not share its weight with {names[0]} any more")
    return problems
