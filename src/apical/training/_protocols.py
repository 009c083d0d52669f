"""What the loop asks of a growth method and of a data loader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer


@runtime_checkable
class GrowthMethod(Protocol):
    """What `apical.Grower` and every baseline provide."""

    def end_epoch(self) -> Mapping[str, Any]:
        """End an epoch, restructure model, optimizer and copies in place, and say what the epoch was like.

        Returns:
            The record of the epoch that just ended, in plain numbers, strings, lists and dicts. `macs`, `num_params`,
            `macs_fraction` and `params_fraction` (both against the full-size model), `widths` (group name -> width, of
            the groups that are there), `blocks` and `skipped` describe the network that the epoch *trained*, at its end
            if it changed within it; `mean_macs` is then the mean over its steps. What the restructuring changed may
            follow under other names. All are optional, and unknown names are written to the history as they are.
        """
        ...

    def finish(self) -> None:
        """Make the model final: gates folded, dormant weights released."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The state between two epochs: tensors and plain containers only, so that no pickle is ever read."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, and restructure model, optimizer and copies in place to its shapes."""
        ...


@runtime_checkable
class StepwiseMethod(GrowthMethod, Protocol):
    """A method that may restructure between two steps of an epoch."""

    def end_step(self, state: Any = None) -> Any:
        """End an optimizer step, and restructure model, optimizer and copies in place if it is time.

        Args:
            state: the recurrent state that the model hands on to the next step; None if there is none.

        Returns:
            The state as the network, which may have changed, takes it.
        """
        ...


@runtime_checkable
class FreezingMethod(GrowthMethod, Protocol):
    """A method that says when the network will not change any more."""

    @property
    def frozen(self) -> bool:
        """Whether all further epochs train the network that is there now."""
        ...


MethodFactory = Callable[[nn.Module, Optimizer, Sequence[nn.Module]], GrowthMethod]
"""Builds the method from (model, optimizer, copies). The copies, such as the moving average of the weights (a
`torch.optim.swa_utils.AveragedModel`), must be resized together with the model."""


class Loader(Protocol):
    """Batches of (inputs, targets). Its state between two epochs decides the order of the next one."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The generator's state, and whatever else the next epoch depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        ...


@runtime_checkable
class DescribedLoader(Loader, Protocol):
    """A loader that says what it holds."""

    def contents(self) -> Mapping[str, Any]:
        """Plain values by which another data set is told apart: the number of samples, a digest of labels and names."""
        ...


class PlainMethod:
    """The method that changes nothing: ordinary training of the model as it is."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def end_epoch(self) -> dict[str, Any]:
        """The number of parameters, and nothing else."""
        return {"num_params": sum(p.numel() for p in self._model.parameters()), "params_fraction": 1.0}

    def finish(self) -> None:
        """Nothing to do."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
