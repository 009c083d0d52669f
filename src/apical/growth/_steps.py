"""Watching the user's optimizers: once in every step, when the gradients are there that the step uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer

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
        self._hooks = [
            hook
            for i, optimizer in enumerate(optimizers)
            for hook in (
                optimizer.register_step_pre_hook(partial(self._before, i)),
                optimizer.register_step_post_hook(partial(self._after, i)),
            )
        ]

    def remove(self) -> None:
        """Leave the optimizers as they were."""
        for hook in self._hooks:
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
            self._stepped(index, optimizer)
