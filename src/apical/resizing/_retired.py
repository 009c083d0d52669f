"""Parameters that have left the model: whoever still holds one must not go on with it in silence."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from apical.errors import ResizeError


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
