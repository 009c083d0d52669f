"""What a training will cost, before it begins: `apical.growth.Plan` says which networks, here each is priced."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from apical.budget import Budget, DeviceTable
from apical.growth import Grower, Plan
from apical.growth._plan import plan_on_paper
from apical.recipes import RunConfig
from apical.recipes._task_kind import Described, Facts, task_kind
from apical.resizing import resize_
from apical.resizing._selection import Selection, first_units
from apical.resizing._traffic import traffic
from apical.runs._divisor import require_divisor
from apical.runs._prices import Conditions, totals
from apical.structure import Structure
from apical.structure._analyse import propose
from apical.structure._running import analysis_copy, make_traceable_
from apical.timing._clock import batch_of, seconds
from apical.training._amp import assumed_amp
from apical.training._learner import autocast, in_memory_format, put_in_safe_order_
from apical.training._optimizer import build_optimizer
from apical.training._results import describe_device

FURTHER = 1.25  # a network is timed if it has so many times the MACs of the last one


@dataclass(frozen=True)
class Planned:
    """A training that has been planned."""

    config: RunConfig  # how it is trained
    name: str  # of the model
    model: nn.Module  # the full one
    example: tuple[Tensor, ...]  # the arguments of a call with one example
    structure: Structure  # of the model
    plan: Plan  # its networks

    @property
    def on_paper(self) -> bool:
        """Whether the model is on the meta device and cannot be run."""
        return any(p.is_meta for p in self.model.parameters())

    def network(self, epoch: int) -> nn.Module:
        """The network of an epoch, from 0, as a model of its own."""
        model = copy.deepcopy(self.model)
        keep = _first(self.structure, self.plan.epochs[epoch].widths)
        resize_(model, self.structure, keep, self.plan.skipped)
        return model


@dataclass(frozen=True)
class Prices:
    """A record per epoch as `Conditions.record` makes it, that of the whole model, and the sums.

    What was not asked for is None: the memory of a plan without it.
    """

    epochs: list[dict[str, Any]]
    dense: dict[str, Any]
    totals: dict[str, Any]


def data_facts(
    config: RunConfig, images: int | None = None, classes: int | None = None, shape: tuple[int, ...] | None = None
) -> tuple[int, Facts]:
    """Number of training examples of an epoch, and what the model must know about the data.

    Args:
        config: the run.
        images: training examples, where they are not known: images, or windows of ``data.bptt`` tokens.
        classes: number of classes, or size of the vocabulary.
        shape: of an image, channels first; those of a segmentation are ``data.crop`` large.
    """
    return task_kind(config.task).foreseen(config.data, config.training, Described(images, classes, shape))


def plan_recipe(config: RunConfig, facts: Mapping[str, Any]) -> Planned:
    """Plan a recipe's training.

    Raises:
        ConfigError: a setting is measured where a run trains.
        BudgetError: the budget cannot be met.
    """
    torch.manual_seed(config.training.seed)
    kind = task_kind(config.task)
    return plan_model(config, kind.template(config.model, facts), kind.example(facts, torch.device("cpu")))


def plan_model(config: RunConfig, model: nn.Module, example: tuple[Tensor, ...]) -> Planned:
    """Plan the training of any model.

    Args:
        config: how it is trained; its own model is not built.
        model: the full one, which is not changed. On the meta device it has no weights and takes no memory; then no
            dry run confirms what can go: the rules alone say it.
        example: the arguments of a call with one example, on the model's device.

    Raises:
        ConfigError: a setting is measured where a run trains.
        BudgetError: the budget cannot be met.
        TraceError: the model cannot be analysed.
    """
    require_divisor(config)
    if any(p.is_meta for p in model.parameters()):
        twin = analysis_copy(model)
        make_traceable_(twin)
        structure = propose(twin, example, {})
        plan = plan_on_paper(model, structure, Budget.of(config.budget), config.training.epochs, config.growth)
        return Planned(config, config.model.name, model, example, structure, plan)
    grown = copy.deepcopy(model)
    optimizer = build_optimizer(grown, config.training.optimizer)
    grower = Grower(grown, optimizer, example, config.budget, config.training.epochs, config=config.growth)
    return Planned(config, config.model.name, model, example, grower.structure, grower.plan())


def price(
    planned: Planned,
    samples: int,
    *,
    processes: int = 1,
    table: DeviceTable | None = None,
    memory: bool = False,
    sharded: bool = False,
    link_gb_per_s: float | None = None,
) -> Prices:
    """What each epoch costs.

    Args:
        planned: by `plan_recipe` or `plan_model`.
        samples: training examples of an epoch.
        processes: how many train together.
        table: measured step times of this model.
        memory: whether to say what a process holds. Each network is run once for what its backward pass needs; where
            the model has no weights, this is left out.
        sharded: whether the model is divided among the processes (``fully_shard``), not copied to each.
        link_gb_per_s: what a process receives over the network, in 10⁹ bytes a second.

    Returns:
        Beside what `Conditions.record` says, each epoch has `restructure_bytes`, which every process receives to
        become that network from the one before (0 where each holds the whole model), and `restructure_seconds`. The
        totals have `restructurings`, both summed, and `start_memory_bytes` and `restructure_memory_bytes`: before the
        model is divided, and at most while it changes, activations not counted.
    """
    plan, training = planned.plan, planned.config.training
    structure = planned.structure
    seen: dict[int, int] = {}  # bytes of activations, by MACs
    if memory and not planned.on_paper:
        seen[plan.full_macs] = activation_bytes(planned.model, planned.example, planned.config)
        for epoch, network in enumerate(plan.epochs):
            if network.macs not in seen:
                seen[network.macs] = activation_bytes(planned.network(epoch), planned.example, planned.config)
    slots = 1 if training.optimizer.name == "sgd" else 2
    copies = int(training.ema_decay is not None)
    conditions = Conditions(samples, training.batch_size, processes, 2 + slots + copies, sharded, table)
    kept = [_first(structure, e.widths) for e in plan.epochs]
    chosen = [Selection({name: tuple(units) for name, units in k.items()}, frozenset(plan.skipped)) for k in kept]
    moves = traffic(structure, [chosen[0], *chosen], slots)
    at_work = [_at_work(structure, e.widths, plan.skipped) if sharded else 0 for e in plan.epochs]
    records = [
        conditions.record(
            i, e.macs, e.num_params, activations=seen.get(e.macs, 0), dormant=moves[-1].dormant, at_work=whole
        )
        for i, (e, whole) in enumerate(zip(plan.epochs, at_work, strict=True), 1)
    ]
    dense = conditions.record(
        1, plan.full_macs, plan.full_params, activations=seen.get(plan.full_macs, 0), dormant=0,
        at_work=_at_work(structure, {}, ()) if sharded else 0,
    )  # fmt: skip
    received = [round(4 * m.gathered * (processes - 1) / processes) if sharded else 0 for m in moves]
    for record, sent in zip(records, received, strict=True):
        record["restructure_bytes"] = sent
        record["restructure_seconds"] = None if link_gb_per_s is None else sent / (1e9 * link_gb_per_s)
    sums = totals(records, dense) | {
        "restructurings": sum(m.renewed > 0 for m in moves),
        "restructure_bytes": sum(received),
        "restructure_seconds": None if link_gb_per_s is None else sum(received) / (1e9 * link_gb_per_s),
        "start_memory_bytes": 4 * (plan.full_params + moves[0].dormant + plan.epochs[0].num_params),
        "restructure_memory_bytes": max(
            conditions.held_bytes(e.num_params, moves[-1].dormant, whole)
            + 4 * (-(-m.renewed // (processes if sharded else 1)) + (m.at_once if sharded else 0))
            for e, whole, m in zip(plan.epochs, at_work, moves, strict=True)
        ),
    }
    if not memory:
        for part in (*records, dense, sums):
            part |= {name: None for name in part if name.endswith("memory_bytes")}
    return Prices(records, dense, sums)


def _first(structure: Structure, widths: Mapping[str, int]) -> dict[str, list[int]]:
    """The first units of each group."""
    return first_units({group.name: range(group.size) for group in structure.groups}, widths)


def _at_work(structure: Structure, widths: Mapping[str, int], skipped: Sequence[str]) -> int:
    """Parameters that are whole at a time where every block and the rest are divided on their own.

    The rest stays whole within a step; of the blocks one is at work, and the next one is being fetched.
    """
    there = [block.name for block in structure.blocks if block.name not in skipped]
    everything = structure.num_params(widths, skipped)
    blocks = [everything - structure.num_params(widths, [*skipped, name]) for name in there]
    return structure.num_params(widths, [*skipped, *there]) + 2 * max(blocks, default=0)


def measure_table(planned: Planned, device: torch.device, batch: int) -> DeviceTable:
    """Time training steps of the networks of a plan, and of the whole model.

    The networks are those of the growth itself, since a thin one with wide residual streams takes longer
    than one of as many MACs that is narrow everywhere.
    """
    config, example = planned.config, planned.example
    whole = _time_step(copy.deepcopy(planned.model).to(device), example, config, device, batch)
    points, known = [(float(planned.plan.full_macs), whole)], 0.0
    for epoch, network in enumerate(planned.plan.epochs):
        if network.macs >= FURTHER * known:
            known = float(network.macs)
            points.append((known, _time_step(planned.network(epoch).to(device), example, config, device, batch)))
    points.sort()
    distinct = [point for i, point in enumerate(points) if i == 0 or point[0] > points[i - 1][0]]
    return DeviceTable(describe_device(device), planned.name, batch, tuple(distinct))


def _time_step(
    model: nn.Module, example: tuple[Tensor, ...], config: RunConfig, device: torch.device, batch: int
) -> float:
    """Median seconds of a training step."""
    optimizer = build_optimizer(model, config.training.optimizer)
    training = put_in_safe_order_(model, config.training)
    inputs = batch_of(example, batch, device, task_kind(config.task).batch_dim)
    inputs = tuple(in_memory_format(x, training) for x in inputs)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _loss(model, inputs, config).backward()
        optimizer.step()

    step()  # warms up
    return statistics.median(seconds(step, device=device) for _ in range(5))


def _loss(model: nn.Module, inputs: tuple[Tensor, ...], config: RunConfig) -> Tensor:
    """A number that depends on every output; the true loss costs next to nothing beside the network."""
    with autocast(assumed_amp(config.training, inputs[0].device), inputs[0].device):
        outputs = model(*inputs)
    tensors = [x for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    return torch.stack([x.float().square().mean() for x in tensors]).sum()


def activation_bytes(model: nn.Module, example: tuple[Tensor, ...], config: RunConfig) -> int:
    """Bytes that autograd keeps of a training step, for each example of two."""
    model = copy.deepcopy(model).train()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = _loss(model, batch_of(example, 2, torch.device("cpu"), task_kind(config.task).batch_dim), config)
    del loss
    return sum(kept.values()) // 2
