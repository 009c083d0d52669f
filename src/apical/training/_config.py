"""How to train: frozen dataclasses, checked when they are built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from apical._checks import LARGEST, build, check
from apical.errors import ConfigError
from apical.training._processes import processes


@dataclass(frozen=True)
class OptimizerConfig:
    """The user's optimizer.

    Attributes:
        name: `"sgd"` or `"adamw"`.
        lr: peak learning rate, positive.
        momentum: SGD momentum, or AdamW's beta1; in [0, 1).
        nesterov: Nesterov momentum; SGD only.
        weight_decay: at least 0.
        decay_vectors: whether one-dimensional parameters (norms, biases) are decayed too.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_vectors: bool = True

    def __post_init__(self) -> None:
        check(
            "optimizer",
            {
                f"name={self.name!r}, expected 'sgd' or 'adamw'": self.name in ("sgd", "adamw"),
                f"lr={self.lr}, expected a positive number": self.lr > 0,
                f"momentum={self.momentum}, expected a number in [0, 1)": 0 <= self.momentum < 1,
                f"weight_decay={self.weight_decay}, expected at least 0": self.weight_decay >= 0,
                "nesterov=True needs name='sgd' and a positive momentum": not self.nesterov
                or (self.name == "sgd" and self.momentum > 0),
            },
        )


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the epochs, as a factor of the optimizer's `lr`.

    Attributes:
        name: `"cosine"`, `"poly"`, `"step"`, `"constant"`, or `"decay"`: constant, then multiplied by `gamma` at
            every epoch.
        warmup_epochs: length of the linear rise from 0, in epochs, fractions allowed.
        milestones: epochs at which the step schedule multiplies by `gamma`.
        gamma: factor of the step and decay schedules, in (0, 1].
        constant_epochs: epochs before the decay schedule's first decrease.
    """

    name: Literal["cosine", "poly", "step", "constant", "decay"] = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    constant_epochs: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        known = ("cosine", "poly", "step", "constant", "decay")
        check(
            "schedule",
            {
                f"name={self.name!r}, expected one of {known}": self.name in known,
                f"warmup_epochs={self.warmup_epochs}, expected at least 0": self.warmup_epochs >= 0,
                f"gamma={self.gamma}, expected a number in (0, 1]": 0 < self.gamma <= 1,
                f"milestones={self.milestones}, expected rising epochs": list(self.milestones)
                == sorted(set(self.milestones)),
                f"constant_epochs={self.constant_epochs}, expected at least 0": self.constant_epochs >= 0,
                "name='step' needs milestones": self.name != "step" or bool(self.milestones),
            },
        )


@dataclass(frozen=True)
class TrainingConfig:
    """Everything the training loop needs to know, and nothing about how a network grows.

    Attributes:
        epochs: number of passes over the training set, at least 1.
        batch_size: images per step in all processes together; the loaders read it, the loop does not.
        optimizer: the optimizer.
        schedule: the learning rate over time.
        amp: autocast dtype: `"none"`, `"bfloat16"` or `"float16"` (which brings a GradScaler); `"auto"` measures a
            step in float32 and in bfloat16 before the run, and takes the faster one.
        channels_last: whether weights and images use the channels-last memory format.
        label_smoothing: of the training loss, in [0, 1).
        clip_grad_norm: largest norm of all gradients together; None for no clipping.
        ema_decay: decay per step of an exponential moving average of the weights, which is then what is evaluated and
            kept; None for none.
        seed: seed of everything random.
        device: `"auto"`, `"cpu"`, `"cuda"`, `"cuda:1"`, ...
        sync_batchnorm: whether batch norms see the batches of all processes, so that their number changes nothing.
        compile: whether training steps run through torch.compile, from the moment that the method says that the network
            is final; at once for methods that do not say.
        deterministic: whether only deterministic algorithms may run. Runs on a CPU repeat bit for bit either way.
        eval_every: epochs between two evaluations; the last epoch is always evaluated.
        process_timeout_s: of several processes, seconds that one waits for another before all end with a word about
            which one is lost; None for torch's own (30 minutes on a CPU, 10 on CUDA). It must cover the slowest
            evaluation.
        shard: whether the processes divide the model among them (FSDP2) instead of holding it whole each.

    Example:
        >>> config = TrainingConfig(epochs=10, optimizer=OptimizerConfig(lr=0.05))
        >>> TrainingConfig.from_mapping(config.to_mapping()) == config
        True
        >>> TrainingConfig(epochs=0, batch_size=0)
        Traceback (most recent call last):
        apical.errors.ConfigError: training: epochs=0, expected at least 1; batch_size=0, expected at least 1
    """

    epochs: int = 1
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    amp: Literal["none", "bfloat16", "float16", "auto"] = "none"
    channels_last: bool = False
    label_smoothing: float = 0.0
    clip_grad_norm: float | None = None
    ema_decay: float | None = None
    seed: int = 0
    device: str = "auto"
    sync_batchnorm: bool = True
    compile: bool = False
    deterministic: bool = False
    eval_every: int = 1
    process_timeout_s: float | None = None
    shard: bool = False

    def __post_init__(self) -> None:
        known = ("none", "bfloat16", "float16", "auto")
        check(
            "training",
            {
                f"epochs={self.epochs}, expected at least 1": self.epochs >= 1,
                f"epochs={self.epochs}, expected at most {LARGEST}": self.epochs <= LARGEST,
                f"batch_size={self.batch_size}, expected at least 1": self.batch_size >= 1,
                f"amp={self.amp!r}, expected one of {known}": self.amp in known,
                f"label_smoothing={self.label_smoothing}, expected a number in [0, 1)": 0 <= self.label_smoothing < 1,
                f"clip_grad_norm={self.clip_grad_norm}, expected a positive number": self.clip_grad_norm is None
                or self.clip_grad_norm > 0,
                f"ema_decay={self.ema_decay}, expected a number in (0, 1)": self.ema_decay is None
                or 0 < self.ema_decay < 1,
                f"seed={self.seed}, expected a number in [0, 2^63)": 0 <= self.seed < 2**63,
                f"eval_every={self.eval_every}, expected at least 1": self.eval_every >= 1,
                f"process_timeout_s={self.process_timeout_s}, expected at least 1": self.process_timeout_s is None
                or self.process_timeout_s >= 1,
                "shard=true divides no moving average of the weights, expected ema_decay=none": not self.shard
                or self.ema_decay is None,
                "shard=true with compile=true, expected one of them": not (self.shard and self.compile),
                "shard=true with channels_last=true, expected channels_last=false": not (
                    self.shard and self.channels_last
                ),
                "shard=true with amp='float16', expected 'none', 'bfloat16' or 'auto'": not self.shard
                or self.amp != "float16",
                f"schedule.warmup_epochs={self.schedule.warmup_epochs}, expected fewer than epochs={self.epochs}": (
                    self.schedule.warmup_epochs < max(self.epochs, 1)
                ),
            },
        )

    def to_mapping(self) -> dict[str, Any]:
        """The config as plain containers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> TrainingConfig:
        """The config of `to_mapping`, read back.

        Raises:
            ConfigError: a key is unknown or a value has the wrong type.
        """
        return build(cls, mapping, "training")


def resolve_device(name: str) -> torch.device:
    """The device that a config's `device` names; `"auto"` takes the first CUDA device if there is one.

    Of several processes on a machine, each takes a CUDA device of its own.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: got {name!r}; expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    team = processes()
    if team.count > 1 and device.type == "cuda":
        if ":" in name:
            raise ConfigError(f"device: got {name!r} for {team.count} processes; expected 'cuda': each takes its own")
        name = f"cuda:{team.local_rank}"
        device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: got {name!r}, but this machine has {torch.cuda.device_count()} CUDA devices that torch can use; "
            "choose device=cpu or auto, or install a CUDA build of torch"
        )
    return device
