"""A model under ``fully_shard``: taken apart before a resize, and sharded anew after it.

``fully_shard`` (FSDP2) changes modules in place: their class, some attributes, their hooks. It has no undo, so this
takes back what it changed. Parameters stay divided throughout; `resize_` gathers one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical._checks import shown
from apical.errors import ApicalError, ConfigError
from apical.resizing._shards import alike, is_sharded, sharded_dims, whole
from apical.resizing._store import DormantStore

FSDP = "torch.distributed.fsdp"
Shard = Callable[[nn.Module], object]


class Sharding:
    """Shards a model by a function of the user's, and takes this back.

    Args:
        shard: calls ``fully_shard`` on parts of a plain model and on the model itself; it is called after every resize
            and sees parameters on the meta device.

    Raises:
        ConfigError: it is no function, or this PyTorch is too old.
    """

    def __init__(self, shard: Shard) -> None:
        if not callable(shard):
            raise ConfigError(f"shard must be a function of a model, such as fully_shard; got {shown(shard)}")
        if torch.__version__ < "2.7":
            raise ConfigError(f"a model that `fully_shard` divides needs PyTorch 2.7 or newer, got {torch.__version__}")
        self._shard = shard
        self._changed: list[tuple[nn.Module, type[nn.Module], frozenset[str]]] = []  # with class and new attributes

    @contextmanager
    def taken_apart(self, model: nn.Module, optimizers: Sequence[Optimizer], store: DormantStore) -> Iterator[None]:
        """While entered, the model is made of plain modules, whose parameters may be divided among processes."""
        self.settle()
        self._undo()
        try:
            yield
        finally:
            self._apply(model, optimizers, store)

    def settle(self) -> None:
        """Let the modules hold divided parameters again: after an evaluation some are still gathered."""
        for module, kind, _ in self._changed:
            divided: Any = module
            if type(module) is not kind:  # one that `fully_shard` was called on
                divided.reshard()

    def end(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        """Make the model a plain one that is whole on every process, with the state of its optimizers."""
        self.settle()
        self._undo()
        old = {id(p): p for p in model.parameters()}
        new = {key: _gathered(p) for key, p in old.items()}
        for module in model.modules():
            for leaf, p in module._parameters.items():
                if p is not None:
                    module._parameters[leaf] = new[id(p)]
        for optimizer in optimizers:
            _swap(optimizer, old, new)

    def _undo(self) -> None:
        for module, kind, added in self._changed:
            if type(module) is not kind:
                module.__class__ = kind
            for name in added:
                vars(module).pop(name, None)
            _remove_hooks(module)
            _forget(module)
        self._changed = []

    def try_out(self, model: nn.Module) -> None:
        """Call the function on a plain model, and take that back: what fails is told before anything changes.

        Raises:
            ConfigError: it fails, or divides nothing, or along another dimension than the first.
        """
        self._call(model)
        self._undo()

    def _apply(self, model: nn.Module, optimizers: Sequence[Optimizer], store: DormantStore) -> None:
        old, new = {id(p): p for p in model.parameters()}, dict[int, nn.Parameter]()
        for module, leaf, p, twin in self._call(model):
            if id(p) not in new:
                new[id(p)] = _divided(p, twin)
            module._parameters[leaf] = new[id(p)]
        for optimizer in optimizers:
            _swap(optimizer, old, new)
        store.divide(next(p for p in new.values() if is_sharded(p)))

    def _call(self, model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter, Tensor | None]]:
        """Call the function on the model with empty parameters in place of its own, which are put back.

        Returns:
            Module, name, parameter, and its empty twin, which is divided as the parameter is to be.
        """
        modules = [(m, type(m), frozenset(vars(m))) for m in model.modules()]
        empty = {
            id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device="meta"), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        slots = [(m, leaf, p) for m, _, _ in modules for leaf, p in m._parameters.items() if p is not None]
        for module, leaf, p in slots:
            module._parameters[leaf] = empty[id(p)]
        divided = False
        try:
            self._shard(model)
            twins: list[Tensor | None] = [module._parameters[leaf] for module, leaf, _ in slots]
            _check_divided([twin for twin in twins if twin is not None and is_sharded(twin)])
            divided = True
        except ApicalError:
            raise
        except Exception as error:
            raise ConfigError(
                f"shard failed ({type(error).__name__}: {error}): it is called with the model, whose parameters are on "
                "the meta device meanwhile, and is to call torch.distributed.fsdp.fully_shard on it"
            ) from error
        finally:
            self._changed = [(m, kind, frozenset(vars(m)) - names) for m, kind, names in modules]
            for module, leaf, p in slots:
                module._parameters[leaf] = p
            if not divided:
                self._undo()
        return [(*slot, twin) for slot, twin in zip(slots, twins, strict=True)]


def _check_divided(divided: Sequence[Tensor]) -> None:
    if not divided:
        raise ConfigError("shard did not shard anything: it is to call torch.distributed.fsdp.fully_shard")
    if any(set(sharded_dims(p).values()) != {0} for p in divided):
        raise ConfigError(
            "shard divides a parameter along another dimension than the first, which fully_shard allows for even "
            "sizes only; leave shard_placement_fn out"
        )


def _divided(parameter: nn.Parameter, like: Tensor | None) -> nn.Parameter:
    """The parameter, divided as its empty twin is."""
    if like is None or not is_sharded(like) or is_sharded(parameter):
        return parameter
    result = nn.Parameter(alike(parameter.detach(), like), requires_grad=parameter.requires_grad)
    vars(result).update({k: v for k, v in vars(parameter).items() if k not in vars(result)})
    if parameter.grad is not None:
        result.grad = alike(parameter.grad, like)
    return result


def _gathered(parameter: nn.Parameter) -> nn.Parameter:
    if not is_sharded(parameter):
        return parameter
    result = nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad)
    result.grad = None if parameter.grad is None else whole(parameter.grad)
    return result


def _swap(optimizer: Optimizer, old: dict[int, nn.Parameter], new: dict[int, nn.Parameter]) -> None:
    """Let an optimizer hold other parameters, and their state divided (or whole) as they are."""
    for group in optimizer.param_groups:
        group["params"][:] = [new.get(id(p), p) for p in group["params"]]
    for key, parameter in new.items():
        if parameter is old[key] or old[key] not in optimizer.state:
            continue
        state = optimizer.state.pop(old[key])
        optimizer.state[parameter] = {
            entry: _state_as(v, parameter) if isinstance(v, Tensor) and v.dim() and v.shape == parameter.shape else v
            for entry, v in state.items()
        }


def _state_as(value: Tensor, parameter: nn.Parameter) -> Tensor:
    return alike(value, parameter) if is_sharded(parameter) else whole(value)


def _remove_hooks(module: nn.Module) -> None:
    hooks: list[dict[int, Any]] = [v for k, v in vars(module).items() if "hooks" in k and isinstance(v, dict)]
    own = {key for found in hooks for key, hook in found.items() if _origin(hook).startswith(FSDP)}
    for found in hooks:
        for key in own & found.keys():
            del found[key]


def _origin(hook: Any) -> str:
    hook = getattr(hook, "hook", hook)  # load_state_dict wraps its hooks
    return str(getattr(hook, "__module__", ""))


def _forget(module: nn.Module) -> None:
    """Let torch forget that the module was sharded, else it refuses to do so again."""
    from torch.distributed._composable_state import _module_state_mapping  # there is no public way

    _module_state_mapping.pop(module, None)
