"""One call of a model, in all the ways in which people write it down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from apical.errors import TraceError


@dataclass(frozen=True)
class Call:
    """The arguments of one call.

    Attributes:
        args: positional ones.
        kwargs: those given by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(example_inputs: ExampleInputs, example_kwargs: Mapping[str, Any] | None = None) -> Call:
        """The call that a user's example inputs stand for.

        Args:
            example_inputs: a tensor (the only argument), a tuple or list of positional arguments, a dict of keyword
                arguments (a tokenizer's batch is one), or a call already.
            example_kwargs: further keyword arguments.

        Raises:
            TraceError: it is something else.

        Example:
            >>> Call.of((1, 2)), Call.of({"a": 1}, {"b": 2})
            (Call(args=(1, 2), kwargs={}), Call(args=(), kwargs={'a': 1, 'b': 2}))
        """
        named = {} if example_kwargs is None else example_kwargs
        if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named):
            raise TraceError(
                "example_kwargs must be a dict of the model's keyword arguments by their names, got "
                f"{type(named).__name__}" + (f" with keys {list(named)[:3]}" if isinstance(named, Mapping) else "")
            )
        more = dict(named)
        if isinstance(example_inputs, Call):
            return Call(example_inputs.args, {**example_inputs.kwargs, **more})
        if isinstance(example_inputs, Tensor):
            return Call((example_inputs,), more)
        if isinstance(example_inputs, (tuple, list)):
            return Call(tuple(example_inputs), more)
        if isinstance(example_inputs, Mapping) and all(isinstance(name, str) for name in example_inputs):
            return Call((), {**example_inputs, **more})
        advice = "; pass torch.from_numpy(…)" if type(example_inputs).__module__ == "numpy" else ""
        raise TraceError(
            "example_inputs must be a tensor or a tuple of the model's arguments, or a dict of its keyword arguments, "
            f"got {type(example_inputs).__name__}{advice}"
        )

    def check_values(self) -> None:
        """Refuse tensors with which nothing can be compared: empty batches, and values that are not numbers.

        Infinite values pass, since masks of attention hold them; so do empty tensors beside others, such as a cache.

        Raises:
            TraceError: naming the argument.
        """
        leaves = pytree.tree_flatten_with_path((self.args, dict(self.kwargs)))[0]
        tensors = [(path, value) for path, value in leaves if isinstance(value, Tensor)]
        for path, value in tensors:
            shape = tuple(value.shape)
            if not value.numel() and (shape[0] == 0 or all(not other.numel() for _, other in tensors)):
                raise TraceError(
                    f"{_where(path)} has no element, its shape is {shape}: nothing can be compared on it. Pass one "
                    "ordinary batch, of one example or more."
                )
            if value.is_floating_point() and value.device.type != "meta" and bool(value.isnan().any()):
                raise TraceError(
                    f"{_where(path)} holds {int(value.isnan().sum())} values that are not numbers (NaN), of "
                    f"{value.numel()}: outputs cannot be compared on it. Pass an ordinary batch, or "
                    f"torch.randn{shape}."
                )

    def tensors(self) -> list[Tensor]:
        """All tensors in the arguments, in their order."""
        return [v for v in pytree.tree_leaves((self.args, dict(self.kwargs))) if isinstance(v, Tensor)]

    def map(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with every tensor changed by a function."""
        args, kwargs = pytree.tree_map(
            lambda v: change(v) if isinstance(v, Tensor) else v, (self.args, dict(self.kwargs))
        )
        return Call(args, kwargs)

    def to(self, device: torch.device | str) -> Call:
        """The call with its tensors on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def run(self, model: Callable[..., Any]) -> Any:
        """What the model returns."""
        return model(*self.args, **self.kwargs)


def _where(path: Sequence[Any]) -> str:
    """The argument in which a tensor lies: ``example_inputs[0]``, ``example_inputs['mask']``."""
    return f"example_inputs{pytree.keystr(tuple(path[1:]))}"


ExampleInputs: TypeAlias = "Tensor | Sequence[Any] | Mapping[str, Any] | Call"
