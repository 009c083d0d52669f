"""A recipe's growth on paper: the real Grower walks through its epochs without training, each network is priced."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apical.budget import DeviceTable, NetworkCost, Setting, project, totals
from apical.errors import ConfigError
from apical.growth import Grower
from apical.recipes import RunConfig
from apical.runs._divisor import require_divisor
from apical.recipes._task_kind import task_kind
from apical.training._amp import assumed_amp
from apical.training._learner import autocast
from apical.training._optimizer import build_optimizer
from apical.training._results import describe_device

KNOWN_DATA: dict[str, tuple[int, int, tuple[int, int, int]]] = {
    "imagenet": (1_281_167, 1000, (3, 224, 224)),
    "cifar10": (50_000, 10, (3, 32, 32)),
    "fashion-mnist": (60_000, 10, (1, 28, 28)),
    "digits": (1_437, 10, (1, 8, 8)),
}
"""Training images, classes and image shape of public data sets, so that a run can be simulated without its data."""
FURTHER = 1.25  # a network is timed if it has so many times the MACs of the last one


@dataclass(frozen=True)
class Simulation:
    """A run on paper: a record per epoch as `apical.budget.project` makes it, that of the whole model, and the sums.

    What was not asked for is None: the memory of a simulation without it.
    """

    epochs: list[dict[str, Any]]
    dense: dict[str, Any]
    totals: dict[str, Any]


def data_facts(
    config: RunConfig, images: int | None = None, classes: int | None = None, shape: tuple[int, ...] | None = None
) -> tuple[int, dict[str, Any]]:
    """Number of training images of an epoch, and what the model must know about the data.

    Raises:
        ConfigError: the recipe is no classification, its data is not known and not described, or a setting is measured
            where a run trains.
    """
    require_divisor(config, "a run on paper")
    if config.task != "classification":
        raise ConfigError(f"only classification can be simulated so far; {config.recipe} is {config.task}")
    known = KNOWN_DATA.get(str(config.data.path).rstrip("/").rsplit("/", 1)[-1])
    if known is None and None in (images, classes, shape):
        raise ConfigError(
            f"nothing is known of the data {config.data.path!r} (known: {', '.join(KNOWN_DATA)}); give --images, "
            "--classes and --input, such as --images 50000 --classes 10 --input 3x32x32"
        )
    number, count, size = known or (0, 0, (0, 0, 0))
    number, count = images or round(number * (1 - config.data.validation_fraction)), classes or count
    return number, {"classes": [str(i) for i in range(count)], "image_shape": list(shape or size)}


def simulate(
    config: RunConfig,
    images: int,
    facts: Mapping[str, Any],
    *,
    processes: int = 1,
    table: DeviceTable | None = None,
    memory: bool = True,
) -> Simulation:
    """Walks through a run's growth without training it.

    Nothing is measured, so widths keep the seed's proportions; costs follow the schedule as a trained run's do that
    changes the network after epochs. Restructuring is really done, and timed, on this machine's CPU.

    Args:
        config: the run; its method must be ``"grown"`` or another growth schedule of the Grower.
        images: training examples of an epoch.
        facts: what the model must know about the data.
        processes: how many train together.
        table: measured step times of this model.
        memory: whether to run each network once for what its backward pass needs.

    Raises:
        ConfigError: the table does not fit the batch.
        BudgetError: the budget cannot be met.
    """
    torch.manual_seed(config.training.seed)
    kind = task_kind(config.task)
    model, example = kind.template(config.model, facts), kind.example(facts, torch.device("cpu"))
    optimizer = build_optimizer(model, config.training.optimizer)
    whole = _activation_bytes(model, example, config) if memory else 0
    epochs = config.training.epochs
    grower = Grower(model, optimizer, example, config.budget, epochs, config=config.growth)
    networks, seen = [], {}
    for _ in range(epochs):
        shapes = tuple(p.shape for p in model.parameters())
        if shapes not in seen:
            seen[shapes] = _activation_bytes(model, example, config) if memory else 0
        started = time.perf_counter()
        record = grower.end_epoch()
        seconds = time.perf_counter() - started
        networks.append(NetworkCost(record["macs"], record["num_params"], seen[shapes], seconds))
    slots = 1 if config.training.optimizer.name == "sgd" else 2
    setting = Setting(
        images, config.training.batch_size, processes, slots, int(config.training.ema_decay is not None),
        _bytes_of(grower.store.state_dict()) if grower.store is not None else 0,
    )
    full = NetworkCost(grower.structure.macs(), grower.structure.num_params(), whole, 0.0)
    grower.finish()
    dense = project([full], Setting(**{**vars(setting), "dormant_bytes": 0}), table)[0]
    records = project(networks, setting, table)
    sums = totals(records, dense)
    if not memory:
        for part in (*records, dense, sums):
            part |= {name: None for name in part if name.endswith("memory_bytes")}
    return Simulation(records, dense, sums)


def measure_table(config: RunConfig, facts: Mapping[str, Any], device: torch.device, batch: int) -> DeviceTable:
    """Times training steps of the networks through which a recipe's model grows, and of the whole one.

    The networks are those of the growth itself, since a thin one with wide residual streams takes longer
    than one of as many MACs that is narrow everywhere.

    Args:
        config: whose model, optimizer and autocast.
        facts: what the model must know about the data.
        device: where.
        batch: examples a step.
    """
    kind = task_kind(config.task)
    torch.manual_seed(config.training.seed)
    model, example = kind.template(config.model, facts), kind.example(facts, torch.device("cpu"))
    whole = _time_step(copy.deepcopy(model).to(device), example, config, device, batch)
    optimizer = build_optimizer(model, config.training.optimizer)
    grower = Grower(model, optimizer, example, config.budget, config.training.epochs, config=config.growth)
    points = [(float(grower.structure.macs()), whole)]
    known = 0.0
    for _ in range(config.training.epochs):
        network = copy.deepcopy(model)
        macs = float(grower.end_epoch()["macs"])
        if macs >= FURTHER * known:
            known = macs
            points.append((macs, _time_step(network.to(device), example, config, device, batch)))
    grower.finish()
    points.sort()
    distinct = [point for i, point in enumerate(points) if i == 0 or point[0] > points[i - 1][0]]
    return DeviceTable(describe_device(device), config.model.name, batch, tuple(distinct))


def _time_step(
    model: nn.Module, example: tuple[Tensor, ...], config: RunConfig, device: torch.device, batch: int
) -> float:
    """Median seconds of a training step."""
    optimizer = build_optimizer(model, config.training.optimizer)
    inputs = torch.randn(batch, *example[0].shape[1:], device=device)
    if config.training.channels_last and inputs.ndim == 4:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    model.train()
    samples = []
    for step in range(7):
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        _loss(model, inputs, config).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if step > 1:
            samples.append(time.perf_counter() - started)
    return sorted(samples)[len(samples) // 2]


def _loss(model: nn.Module, inputs: Tensor, config: RunConfig) -> Tensor:
    with autocast(assumed_amp(config.training, inputs.device), inputs.device):
        outputs = model(inputs)
    return F.cross_entropy(outputs.float(), torch.zeros(len(inputs), dtype=torch.long, device=inputs.device))


def _activation_bytes(model: nn.Module, example: tuple[Tensor, ...], config: RunConfig) -> int:
    """Bytes that autograd keeps of a training step, for each example of two."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training = model.training
    model.train()
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(model, torch.randn(2, *example[0].shape[1:]), config)
    del loss
    model.train(training)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
    return sum(kept.values()) // 2


def _bytes_of(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, (list, tuple)) else ()
    return sum(_bytes_of(value) for value in values)
