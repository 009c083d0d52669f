"""What a run is: one complete, typed, immutable record that JSON can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from apical._checks import build
from apical.budget import Budget
from apical.errors import ConfigError
from apical.growth import GrowthConfig
from apical.recipes._tasks import task_kind
from apical.training import TrainingConfig


@dataclass(frozen=True)
class ModelConfig:
    """The full-size model.

    Attributes:
        name: a function or class of `apical.models` (``"resnet20"``), ``"torchvision:NAME"``, ``"timm:NAME"``, or
            ``"package.module:callable"`` for one of your own.
        options: its keyword arguments; the numbers of classes and of image channels are taken from the data.
        initial_weights: a file with a state_dict to start from (.safetensors, or .pt without anything but tensors);
            None starts from scratch.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    initial_weights: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("model: name is empty; expected for example 'resnet20' or 'torchvision:resnet50'")


@dataclass(frozen=True)
class DataConfig:
    """The images, and what is done to them before the model sees them.

    Attributes:
        path: a folder in any known layout (looked up here, then below the data root), ``"digits"`` or ``"synthetic"``.
        image_size: height and width of the model's input in pixels; None keeps the size as stored.
        resize: shorter side to which photographs are scaled before `image_size` is cut out; None scales directly.
        channels: 1 or 3; None as stored (3 for photographs).
        validation_fraction: share of the training images that is held out and evaluated on after each epoch, in
            [0, 1); the test images are then read once, at the end. With 0 the test images are evaluated on after
            each epoch, for the record only: nothing in a run is decided by them.
        crop_padding: training images are padded by so many pixels and cut out at random; 0 for none.
        flip: training images are mirrored at random.
        random_resized_crop: a random box of training images is scaled to the input size.
        crop_scale: least area of that box, as a fraction of the image.
        limit: at most so many training and so many test images, chosen at random; None for all.
        memory_gb: images are decoded once and kept on the device if they need no more; else they are read from files
            in each epoch.
        workers: processes that read and decode files.
    """

    path: str
    image_size: int | None = None
    resize: int | None = None
    channels: int | None = None
    validation_fraction: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    random_resized_crop: bool = False
    crop_scale: float = 0.08
    limit: int | None = None
    memory_gb: float = 4.0
    workers: int = 4

    def __post_init__(self) -> None:
        rules = {
            f"image_size={self.image_size}, expected at least 1": self.image_size is None or self.image_size >= 1,
            f"resize={self.resize}, expected at least image_size={self.image_size}": self.resize is None
            or (self.image_size is not None and self.resize >= self.image_size),
            f"channels={self.channels}, expected 1 or 3": self.channels in (None, 1, 3),
            f"validation_fraction={self.validation_fraction}, expected a number in [0, 1)": (
                0 <= self.validation_fraction < 1
            ),
            f"crop_padding={self.crop_padding}, expected at least 0": self.crop_padding >= 0,
            f"crop_scale={self.crop_scale}, expected a number in (0, 1]": 0 < self.crop_scale <= 1,
            "random_resized_crop needs an image_size": not self.random_resized_crop or self.image_size is not None,
            f"limit={self.limit}, expected at least 2": self.limit is None or self.limit >= 2,
            f"memory_gb={self.memory_gb}, expected at least 0": self.memory_gb >= 0,
            f"workers={self.workers}, expected at least 0": self.workers >= 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigError("data: " + "; ".join(broken))


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Seed and device are in `training`; `--seed` sets those of training and growth.

    Attributes:
        recipe: the name of the recipe that this came from.
        model: the largest network that is acceptable.
        data: what it learns from: the data settings of the task, for classification a `DataConfig`.
        training: how it is trained.
        budget: what the final network may cost, as `apical.Budget` reads it.
        growth: how it grows; other methods read `divisor` and `seed` at most.
        method: a name in `methods()`: ``"grown"``, ``"dense"``, ``"uniform"``, …
        method_options: the method's own settings, by name; ``--set method.prune_at=0.6`` sets one.
        task: the kind of problem: ``"classification"``, …

    Example:
        >>> config = RunConfig("mine", ModelConfig("resnet20"), DataConfig("digits"), TrainingConfig(), "50% macs")
        >>> RunConfig.from_mapping(config.to_mapping()) == config
        True
    """

    recipe: str
    model: ModelConfig
    data: Any
    training: TrainingConfig
    budget: str
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    method: str = "grown"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classification"

    def __post_init__(self) -> None:
        Budget(self.budget)
        kind = task_kind(self.task).data
        if not isinstance(self.data, kind):
            raise ConfigError(f"data: a {self.task} run needs a {kind.__name__}, got {type(self.data).__name__}")

    def to_mapping(self) -> dict[str, Any]:
        """Plain containers, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> RunConfig:
        """The config of `to_mapping`, read back.

        Raises:
            ConfigError: a key is missing or unknown, or a value has the wrong type.
            BudgetError: the budget cannot be read.
        """
        if not isinstance(mapping, Mapping):
            raise ConfigError(f"config: expected a mapping, got a {type(mapping).__name__}")
        missing = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory and f.name not in mapping]
        if missing:
            raise ConfigError(f"config: {', '.join(missing)} missing; expected what an apical run writes")
        parts = dict(mapping)
        data = task_kind(str(parts.get("task", "classification"))).data
        for name, kind in (("model", ModelConfig), ("data", data), ("growth", GrowthConfig)):
            if name in parts:
                parts[name] = build(kind, parts[name], name)
        parts["training"] = TrainingConfig.from_mapping(parts["training"])
        return build(cls, parts, "config")

    def with_seed(self, seed: int) -> RunConfig:
        """The same run with another seed, of training and growth."""
        return dataclasses.replace(
            self,
            training=dataclasses.replace(self.training, seed=seed),
            growth=dataclasses.replace(self.growth, seed=seed),
        )

    def with_epochs(self, epochs: int) -> RunConfig:
        """The same run, longer or shorter: warm-up, milestones and decay move in proportion."""
        schedule, factor = self.training.schedule, epochs / self.training.epochs
        milestones = sorted({max(1, round(milestone * factor)) for milestone in schedule.milestones})
        constant = schedule.constant_epochs * factor
        before, after = ceil(self.training.epochs - schedule.constant_epochs), ceil(epochs - constant)
        decays = schedule.name == "decay" and after > 0  # so many times; steeper ones, if fewer, end at the same rate
        schedule = dataclasses.replace(
            schedule,
            warmup_epochs=schedule.warmup_epochs * factor,
            milestones=tuple(milestones),
            constant_epochs=constant,
            gamma=schedule.gamma ** (before / after) if decays else schedule.gamma,
        )
        return dataclasses.replace(self, training=dataclasses.replace(self.training, epochs=epochs, schedule=schedule))
