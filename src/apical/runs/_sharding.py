"""Runs whose processes divide the model among them (FSDP2): what is divided, how it is kept, what cannot be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from apical.errors import ConfigError
from apical.growth import load_sharded, save_sharded
from apical.growth._sharded_checkpoint import damage
from apical.resizing import Shard
from apical.training import PartsIO, Processes, TrainingConfig
from apical.training._config import resolve_device


def refuse_unshardable(method: str, able: Sequence[str], team: Processes) -> None:
    """Refuse a run that cannot divide its model, before anything is read or built."""
    if method not in able:
        raise ConfigError(
            f"method {method} cannot divide its model among processes; expected one of {', '.join(able)} with --shard "
            "(training.shard=true). Leave it out: each process then holds the whole model."
        )
    if team.count == 1:
        raise ConfigError(
            "--shard (training.shard=true) divides the model among several processes, and this is one alone. Start it "
            "as torchrun --nproc-per-node N -m apical train ..., or leave it out in a new run."
        )


def sharder(training: TrainingConfig) -> Shard | None:
    """What divides a run's model: each layer of its lists and sequences by itself, then what is left; None if nothing.

    A layer's weights are gathered while it computes, and let go after it.
    """
    if not training.shard:
        return None

    def shard(model: nn.Module) -> None:
        from torch.distributed.device_mesh import init_device_mesh  # slow to import
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(resolve_device(training.device).type, (torch.distributed.get_world_size(),))
        for layer in layers_of(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    return shard


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The outermost members of a model's lists and sequences that have parameters which nothing else has.

    Example:
        >>> block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> model = nn.Sequential(nn.Sequential(block, nn.Identity()), nn.Linear(2, 1))
        >>> [type(layer).__name__ for layer in layers_of(model)]
        ['Sequential', 'Linear']
    """
    users: dict[int, int] = {}  # how many modules hold a parameter
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                users[id(parameter)] = users.get(id(parameter), 0) + 1

    def found(module: nn.Module) -> list[nn.Module]:
        layers = []
        for child in module.children():
            own = list(child.parameters())
            callable_ = not isinstance(child, (nn.ModuleList, nn.ModuleDict))
            listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and callable_
            if listed and own and all(users[id(parameter)] == 1 for parameter in own):
                layers.append(child)
            else:
                layers += found(child)
        return layers

    return found(model)


PARTS = PartsIO(save_sharded, load_sharded, damage)
