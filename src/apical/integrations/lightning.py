"""A callback for Lightning's Trainer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

try:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}. Install it with: pip install 'apical[integrations]'", name=error.name
    ) from error

from apical.budget import Budget
from apical.errors import ConfigError
from apical.growth import Grower
from apical.structure import Call, ExampleInputs


class GrowthCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Grows a part of a LightningModule while `Trainer.fit` trains it.

    The network shrinks to its seed when fitting starts and is restructured at the end of every training epoch, before
    checkpoints are written. A run that is resumed with ``fit(..., ckpt_path=...)`` goes on with the network it had.

    Args:
        example_inputs: arguments of one call of the network, on the CPU; MACs are priced at this call.
        budget: what the final network may cost.
        module: name of the LightningModule's attribute that holds the network.
        epochs: number of training epochs; the Trainer's ``max_epochs`` if None.
        options: further arguments of `apical.Grower`, such as ``divisor=8`` or ``copies=[average]``.

    Attributes:
        grower: the Grower, from the start of fitting on.

    Raises:
        ConfigError: when fitting starts: there is no such attribute, the number of epochs is not known, or the Trainer
            runs several processes.

    Example: see examples/lightning_callback.py.
    """

    def __init__(
        self,
        example_inputs: ExampleInputs,
        budget: Budget | str,
        *,
        module: str = "model",
        epochs: int | None = None,
        **options: Any,
    ) -> None:
        self._inputs = Call.of(example_inputs)
        self._budget = budget
        self._module = module
        self._epochs = epochs
        self._options = options
        self.grower: Grower | None = None
        self._saved: dict[str, Any] | None = None
        self._weights: dict[str, Tensor] = {}
        self._hook: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before a checkpoint is loaded: its weights are kept aside until the network has their shapes."""
        if stage != "fit" or self.grower is not None:
            return
        if trainer.world_size > 1:
            raise ConfigError(
                f"GrowthCallback was given a Trainer with {trainer.world_size} processes, whose wrapper would keep the "
                "parameters that a restructuring replaces; use devices=1, or `apical train`, or the loop of "
                "docs/guides/data-parallel.md"
            )
        self._hook = self._network(pl_module).register_load_state_dict_pre_hook(self._set_aside)

    def _set_aside(self, network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, own in network.state_dict().items():
            if prefix + name in state:
                self._weights[name] = state[prefix + name]
            state[prefix + name] = own
        for name in [n for n in state if n.startswith(prefix) and n[len(prefix) :] not in network.state_dict()]:
            self._weights[name[len(prefix) :]] = state.pop(name)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the Grower, or bring it back to where a checkpoint had it."""
        if self.grower is not None:
            return
        self._hook.remove()
        epochs = self._epochs or trainer.max_epochs
        if not epochs or epochs < 1:
            raise ConfigError(f"the number of epochs is not known: max_epochs={trainer.max_epochs}; pass epochs=")
        network = self._network(pl_module)
        device = next(network.parameters()).device
        inputs = self._inputs.to(device)
        self.grower = Grower(network, trainer.optimizers, inputs, self._budget, epochs, **self._options)
        if self._saved is not None:
            self.grower.load_state_dict(self._saved)
            network.load_state_dict(self._weights)
        self._saved = None
        self._weights = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restructures; `macs_fraction` and `params_fraction` of the epoch are logged."""
        assert self.grower is not None
        record = self.grower.end_epoch()
        pl_module.log_dict({name: float(record[name]) for name in ("macs_fraction", "params_fraction")})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the network final."""
        if self.grower is not None and self.grower.epoch >= self.grower.epochs:
            self.grower.finish()

    def state_dict(self) -> dict[str, Any]:
        """The growth, in tensors and plain containers."""
        running = self.grower is not None and self.grower.store is not None
        return {"growth": self.grower.state_dict()} if running and self.grower is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until the optimizers exist."""
        self._saved = state_dict.get("growth")

    def _network(self, pl_module: LightningModule) -> nn.Module:
        network = getattr(pl_module, self._module, None)
        if not isinstance(network, nn.Module):
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise ConfigError(
                f"{type(pl_module).__name__} has no module {self._module!r}; pass module=, one of {names}"
            )
        return network
