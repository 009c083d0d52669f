"""Installing tensors, modules and attributes: whole, or not at all. Parameters that have left the model say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.optim import Optimizer

from apical.errors import ResizeError
from apical.structure._local_sizes import give_attribute_, is_local
from apical.structure._sizes import OWN_SIZES, SIZE_ATTRIBUTES, with_size


class Installation:
    """A series of changes to a model and its optimizers; `undo` takes them back in reverse order."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def on_undo(self, step: Callable[[], None]) -> None:
        """Add a step that reverts a change made elsewhere."""
        self._undo.append(step)

    def undo(self) -> None:
        """Revert every change. No step runs code of the user's modules."""
        while self._undo:
            self._undo.pop()()

    def tensor(self, model: nn.Module, name: str, tensor: Tensor) -> None:
        """Install a parameter or buffer through the module, so that modules which cache theirs (nn.LSTM) notice."""
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf)
        self.on_undo(lambda: _put_back(module, leaf, old))
        setattr(module, leaf, tensor)
        if isinstance(module, nn.RNNBase) and tensor.is_cuda:
            module.flatten_parameters()

    def module(self, model: nn.Module, path: str, module: nn.Module) -> nn.Module:
        """Put a module in the place of another, which is returned; it takes over the other's training flag."""
        parent_path, _, child = path.rpartition(".")
        parent = model.get_submodule(parent_path)
        old = parent._modules[child]
        if old is None:
            raise ResizeError(f"{path} is not there")
        if module.training != old.training:  # else leave the modes inside the module as they are
            module.train(old.training)
        parent._modules[child] = module
        self.on_undo(lambda: parent._modules.update({child: old}))
        return old

    def attribute(self, module: nn.Module, name: str, value: int) -> None:
        """Set an integer attribute; one without a usual name is noted in the module, so that it can be saved.

        Of an object that the module holds (``config.num_heads``, ``sizes.0``), which others may hold too, it gets a
        copy. One that stands for a size in the module's code (`apical.structure._local_sizes`) is read there from now
        on.
        """

        def change(module: nn.Module) -> None:
            if is_local(name) and name not in vars(module):
                give_attribute_(module, name)
                vars(module)[name] = value
            holder, _, inner = name.partition(".")
            setattr(module, holder, with_size(getattr(module, holder), inner, value) if inner else value)
            noted = vars(module).get(OWN_SIZES, ())
            if name not in (*SIZE_ATTRIBUTES, *noted):
                vars(module)[OWN_SIZES] = (*noted, name)

        self.attributes_changed_by(module, change)

    def attributes_changed_by(self, module: nn.Module, change: Callable[[nn.Module], None]) -> None:
        """Run a function that may set any plain attribute of the module."""
        before, kind = dict(vars(module)), type(module)

        def restore() -> None:
            if type(module) is not kind:
                object.__setattr__(module, "__class__", kind)
            vars(module).clear()
            vars(module).update(before)

        self.on_undo(restore)
        change(module)

    def optimizer(self, optimizer: Optimizer) -> None:
        """Remember an optimizer's parameters and state as they are now."""
        groups = [(g, list(g["params"]), list(g["param_names"]) if "param_names" in g else None)
                  for g in optimizer.param_groups]  # fmt: skip
        state = dict(optimizer.state)

        def restore() -> None:
            for group, params, names in groups:
                group["params"][:] = params
                if names is not None:
                    group["param_names"][:] = names
            optimizer.state.clear()
            optimizer.state.update(state)

        self.on_undo(restore)


@contextmanager
def whole_or_nothing() -> Iterator[Installation]:
    """An installation that is undone if the block raises; the error becomes a `ResizeError`."""
    installation = Installation()
    try:
        yield installation
    except Exception as problem:
        installation.undo()
        raise ResizeError(
            "the resize failed half way and was undone; nothing changed in model and optimizer: "
            f"{type(problem).__name__}: {problem}"
        ) from problem
    except BaseException:  # an interrupt from the keyboard
        installation.undo()
        raise


def _put_back(module: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Like ``setattr``, but past any ``__setattr__`` of the user's."""
    tensors: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
    tensors[leaf] = tensor
    if isinstance(module, nn.RNNBase):
        module._flat_weights = [getattr(module, n, None) for n in module._flat_weights_names]


def lookup(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this name."""
    path, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), leaf)
    if not isinstance(tensor, Tensor):
        raise ResizeError(f"{name} is a {type(tensor).__name__}, not a tensor")
    return tensor


class RetiredParameter(nn.Parameter):
    """A parameter that a resize has replaced. Its values can be read; asking for its gradient is an error.

    Nothing trains it any more, so that clipping, logging or zeroing the gradients of a stored list of parameters would
    do nothing.
    """

    @property
    def grad(self) -> NoReturn:
        raise ResizeError(_HELD)

    @grad.setter
    def grad(self, _: Any) -> NoReturn:
        raise ResizeError(_HELD)


_HELD = (
    "this parameter is no longer the model's: apical put another in its place when it resized the model. A list of "
    "parameters that was made before, such as params = list(model.parameters()), holds the old ones, and so does an "
    "optimizer that apical was not told of. Ask for model.parameters() anew where you use them, for instance "
    "clip_grad_norm_(model.parameters(), 1.0); make every optimizer before the Grower, and give it all of them."
)


def retire_(parameter: nn.Parameter) -> None:
    """Let a parameter that has left the model say so; one of a class of its own stays as it is."""
    if type(parameter) is nn.Parameter:
        parameter.__class__ = RetiredParameter
