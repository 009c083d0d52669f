"""What learns: a model, and all that is restructured, saved and restored together with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from apical._memory_format import unsafe_in_channels_last
from apical.training._config import TrainingConfig, resolve_device
from apical.training._optimizer import build_optimizer
from apical.training._parallel import Replica
from apical.training._protocols import FreezingMethod, GrowthMethod, MethodFactory, PlainMethod, StepwiseMethod
from apical.training._restore import load_optimizer_, load_weights_
from apical.training._task import StreamTask, Task

AMP_DTYPES = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Learner:
    """What a training step changes, and what a growth method restructures."""

    config: TrainingConfig  # how it is trained
    task: Task  # loss and metrics
    device: torch.device  # where the model is
    model: nn.Module  # the user's own, which becomes smaller and larger
    replica: Replica  # the model as training calls it: compiled, or wrapped for several processes
    optimizer: Optimizer  # of the model's parameters
    average: AveragedModel | None  # moving average of the weights, if there is one
    scaler: torch.amp.GradScaler  # of the loss, for float16
    method: GrowthMethod  # restructures model, optimizer and average

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated: the averaged one, if there is one."""
        return self.model if self.average is None else self.average.module

    def compile_if_final(self) -> None:
        """From the next step on, calls the model through torch.compile if it will not change any more."""
        if self.config.compile:
            self.replica.set_compiled(not isinstance(self.method, FreezingMethod) or self.method.frozen)

    def end_step(self, where: str) -> None:
        """Let the method restructure between two steps, if it ever does."""
        if not isinstance(self.method, StepwiseMethod):
            return
        if isinstance(self.task, StreamTask):
            self.task.state = self.method.end_step(self.task.state)
        else:
            self.method.end_step()
        if self.replica.changed():
            apply_memory_format_(self.model, self.config)
            self.replica.refresh(where)
        self.compile_if_final()

    def end_epoch(self, where: str) -> dict[str, Any]:
        """Let the method restructure after an epoch; return what it says of the epoch."""
        record = dict(self.method.end_epoch())
        apply_memory_format_(self.model, self.config)
        self.replica.refresh(where)
        return record

    def finish(self) -> None:
        """Leave the plain, final model, with the averaged weights if they were averaged."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        self.method.finish()
        self.replica.finish()

    def state_dict(self) -> dict[str, Any]:
        """The states of all, by name: tensors and plain containers."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state, after a look at whether it fits.

        Raises:
            CheckpointError: weights or optimizer have other shapes or kinds.
        """
        self.method.load_state_dict(state["method"])  # restructures, so that everything below fits
        apply_memory_format_(self.model, self.config)
        load_weights_(self.model, state["model"], "the model")
        load_optimizer_(self.optimizer, state["optimizer"])
        if self.average is not None:
            load_weights_(self.average, state["average"], "the moving average")
        self.scaler.load_state_dict(state["scaler"])


class MovingAverage(AveragedModel):
    """torch's, which asks the device in every step how many there were; this one asks until there was one."""

    begun = False

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the weights of a step."""
        self.begun = self.begun or bool(self.n_averaged > 0)
        if not self.begun or self.multi_avg_fn is None:
            super().update_parameters(model)
            return
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for own, new in zip(_tensors(self.module), _tensors(model), strict=True):
            averages, values = by_dtype.setdefault(own.dtype, ([], []))
            averages.append(own.detach())
            values.append(new.detach())
        for averages, values in by_dtype.values():
            self.multi_avg_fn(averages, values, self.n_averaged)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def prepare_learner(model: nn.Module, factory: MethodFactory | None, config: TrainingConfig, task: Task) -> Learner:
    """A model on its device with an optimizer, an average and a method of its own."""
    device = resolve_device(config.device)
    model.to(device)
    config = put_in_safe_order_(model, config)
    replica = Replica(model, device, config.sync_batchnorm, config.shard)
    optimizer = build_optimizer(model, config.optimizer)
    average = None
    if config.ema_decay is not None:
        average = MovingAverage(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    copies = [] if average is None else [average]
    method = PlainMethod(model) if factory is None else factory(model, optimizer, copies)
    apply_memory_format_(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "float16")
    return Learner(config, task, device, model, replica, optimizer, average, scaler, method)


def autocast(config: TrainingConfig, device: torch.device) -> torch.autocast:
    """The autocast under which a config runs its model."""
    return torch.autocast(device.type, dtype=AMP_DTYPES[config.amp], enabled=config.amp != "none")


def put_in_safe_order_(model: nn.Module, config: TrainingConfig) -> TrainingConfig:
    """Put a model, which is on its device, into the order that the config asks for, unless that may damage memory.

    Returns:
        The config with the order that it is in.
    """
    config = replace(config, channels_last=False) if unsafe_in_channels_last(model) else config
    apply_memory_format_(model, config)
    return config


def in_memory_format(inputs: Tensor, config: TrainingConfig) -> Tensor:
    """Images in channels-last order if the config asks for it, anything else as it is."""
    images = config.channels_last and inputs.ndim == 4
    return inputs.contiguous(memory_format=torch.channels_last) if images else inputs


def apply_memory_format_(model: nn.Module, config: TrainingConfig) -> None:
    """Put four-dimensional weights into channels-last order if the config asks for it; values do not change."""
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
