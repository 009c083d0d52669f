"""`apical inspect`: what of a model can grow, and what it costs."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apical.cli._inputs import PATH, InputSpec, built, input_option, kwargs_option, waiting

if TYPE_CHECKING:
    from apical.structure import Structure


@click.command("inspect")
@click.argument("target", metavar="MODEL")
@input_option(
    "One example input; repeat it for several. Whole numbers are drawn from 0 to below VALUES (default 2). Models of "
    "apical, torchvision and timm that take images need none."
)
@kwargs_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--html",
    "page",
    type=PATH,
    metavar="FILE",
    help="Write a page instead: the module tree, in which a group shows all that belongs to it.",
)
def inspect_command(
    target: str, inputs: tuple[InputSpec, ...], kwargs: dict[str, Any], as_json: bool, page: Path | None
) -> None:
    """Show what of a model can grow and shrink, what is frozen and why, and what everything costs.

    MODEL is a name as for `apical train --model`: resnet20, torchvision:resnet50, timm:resnet18, or
    package.module:callable, a class or function that builds a model of your own (the current folder is searched, too).
    Nothing is trained.

    \b
    Examples:
      apical inspect resnet20 --html resnet20.html
      apical inspect torchvision:resnet50
      apical inspect apical.models:resnet50 --input 1x3x160x160
      apical inspect my_package.nets:Transformer --input 1x128:int64:32000 --kwargs '{"depth": 4}'

    Next: put `apical.Grower(model, optimizer, example_inputs=..., budget="50% macs", epochs=...)` around your own
    training loop, or start `apical train folder --data FOLDER --model MODEL`.
    """
    import torch

    from apical.errors import ConfigError
    from apical.recipes import recipes
    from apical.resizing import trace
    from apical.structure._training import UNREAD

    if target in recipes():
        raise ConfigError(f"{target} is a recipe, not a model; apical plan {target} shows its model's cost and what is "
                          f"frozen, apical train {target} --list-settings names the model")  # fmt: skip
    torch.manual_seed(0)
    model, example = built(target, kwargs, inputs)
    with waiting(f"tracing {target}"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", UNREAD)  # a note that is printed with the others
        structure = trace(model, example)
    if page is not None:
        from apical.reporting import write_architecture

        types = {name: type(module).__name__ for name, module in model.named_modules()}
        content = {**structure.to_dict(), **_costs(structure), "model": target, "types": types}
        click.echo(f"wrote {write_architecture(content, page)}")
    else:
        click.echo(json.dumps(summarise(structure, target), indent=2) if as_json else str(structure))


def _costs(structure: Structure) -> Mapping[str, Any]:
    """MACs and parameters of the whole and of the smallest network, and the share of the MACs of each group and block.

    That of a group is the share that goes with all of its units but one.
    """
    macs = structure.macs()
    ones, blocks = {group.name: 1 for group in structure.groups}, [block.name for block in structure.blocks]
    return {
        "macs": macs,
        "num_params": structure.num_params(),
        "least_macs": structure.macs(ones, blocks),
        "least_num_params": structure.num_params(ones, blocks),
        "group_shares": {name: 1 - structure.macs({name: 1}) / max(1, macs) for name in ones},
        "block_shares": {name: 1 - structure.macs(skip=[name]) / max(1, macs) for name in blocks},
    }


def summarise(structure: Structure, model: str) -> Mapping[str, Any]:
    """A structure in plain containers: groups, blocks and frozen parts with their share of the MACs."""
    costs = dict(_costs(structure))
    groups, blocks = costs.pop("group_shares"), costs.pop("block_shares")
    return {
        "model": model,
        **costs,
        "groups": [
            {"name": group.name, "role": group.role, "size": group.size, "macs_fraction": groups[group.name]}
            for group in structure.groups
        ],
        "blocks": [{"name": name, "macs_fraction": share} for name, share in blocks.items()],
        "frozen": [dataclasses.asdict(item) for item in structure.frozen],
        "notes": list(structure.notes),
    }
