"""`apical inspect`: what of a model can grow, and what it costs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from torch import Tensor

    from apical.structure import Structure

_EXAMPLE = "1x3x224x224, 8x128:int64:32000 or 4x16:bool"
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")


@dataclass(frozen=True)
class InputSpec:
    """One example input: its shape, its dtype, and for whole numbers how many different values there are."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    values: int = 2

    @staticmethod
    def parse(text: str) -> InputSpec:
        """Read ``1x3x224x224``, ``8x128:int64`` or ``8x128:int64:32000``.

        Raises:
            ValueError: it has another form; the message says which part.

        Example:
            >>> InputSpec.parse("8x128:int64:32000")
            InputSpec(shape=(8, 128), dtype='int64', values=32000)
        """
        sizes, *rest = text.strip().split(":")
        if not re.fullmatch(r"\d+(x\d+)*", sizes):
            raise ValueError(f"the shape {sizes!r} is not like 1x3x224x224")
        if len(rest) > 2:
            raise ValueError("more than shape, dtype and number of values")
        dtype = rest[0] if rest else "float32"
        if dtype not in _DTYPES:
            raise ValueError(f"the dtype {dtype!r} is none of {', '.join(_DTYPES)}")
        values = rest[1] if len(rest) > 1 else "2"
        if not values.isdecimal() or int(values) < 1:
            raise ValueError(f"{values!r} is no number of values; whole numbers are drawn from 0 up to below it")
        return InputSpec(tuple(int(size) for size in sizes.split("x")), dtype, int(values))

    def tensor(self) -> Tensor:
        """An example: normal noise, or uniform whole numbers."""
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            return torch.randn(self.shape).to(dtype)
        return torch.randint(0, 2 if dtype is torch.bool else self.values, self.shape).to(dtype)


def parse_inputs(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> tuple[InputSpec, ...]:
    """Read every `InputSpec` of a repeated option."""
    specs = []
    for value in values:
        try:
            specs.append(InputSpec.parse(value))
        except ValueError as error:
            raise click.BadParameter(f"{value!r}: {error}; write for example {_EXAMPLE}") from error
    return tuple(specs)


def _parse_object(_ctx: click.Context, _param: click.Parameter, value: str) -> dict[str, Any]:
    try:
        content = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise click.BadParameter(f"{value!r} is no JSON object; write for example '{{\"num_classes\": 10}}'")
    return content


@click.command("inspect")
@click.argument("target", metavar="MODEL")
@click.option(
    "--input",
    "inputs",
    metavar="SHAPE[:DTYPE[:VALUES]]",
    multiple=True,
    required=True,
    callback=parse_inputs,
    help="One example input; repeat it for several. Whole numbers are drawn from 0 to below VALUES (default 2).",
)
@click.option(
    "--kwargs",
    metavar="JSON",
    default="{}",
    callback=_parse_object,
    help="Keyword arguments of the callable, as a JSON object.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--html",
    "page",
    type=click.Path(path_type=Path),
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
      apical inspect resnet20 --input 1x3x32x32 --html resnet20.html
      apical inspect torchvision:resnet50 --input 1x3x224x224
      apical inspect my_package.nets:Transformer --input 1x128:int64:32000 --kwargs '{"depth": 4}'

    Next: put `apical.Grower(model, optimizer, example_inputs=..., budget="50% macs", epochs=...)` around your own
    training loop, or start `apical train folder --data FOLDER --model MODEL`.
    """
    import torch

    from apical.recipes._model import call_builder, find_builder
    from apical.resizing import trace

    torch.manual_seed(0)
    build, implied = find_builder(target)
    model = call_builder(build, {**implied, **kwargs}, target)
    structure = trace(model, tuple(spec.tensor() for spec in inputs))
    if page is not None:
        from apical.reporting import write_architecture

        types = {name: type(module).__name__ for name, module in model.named_modules()}
        content = {**structure.to_dict(), **_costs(structure), "model": target, "types": types}
        click.echo(f"wrote {write_architecture(content, page)}")
    else:
        click.echo(json.dumps(summarise(structure, target), indent=2) if as_json else str(structure))


def _costs(structure: Structure) -> Mapping[str, Any]:
    """MACs and parameters of the whole, and the share of the MACs that goes with each group and block."""
    macs = structure.macs()
    return {
        "macs": macs,
        "num_params": structure.num_params(),
        "group_shares": {g.name: 1 - structure.macs({g.name: 1}) / max(1, macs) for g in structure.groups},
        "block_shares": {b.name: 1 - structure.macs(skip=[b.name]) / max(1, macs) for b in structure.blocks},
    }


def summarise(structure: Structure, model: str) -> Mapping[str, Any]:
    """A structure in plain containers: groups, blocks and frozen parts with their share of the MACs."""
    macs = structure.macs()
    blocks = [block.name for block in structure.blocks]
    return {
        "model": model,
        "macs": macs,
        "num_params": structure.num_params(),
        "least_macs": structure.macs({group.name: 1 for group in structure.groups}, blocks),
        "least_num_params": structure.num_params({group.name: 1 for group in structure.groups}, blocks),
        "groups": [
            {
                "name": group.name,
                "role": group.role,
                "size": group.size,
                "macs_fraction": 1 - structure.macs({group.name: 1}) / max(1, macs),
            }
            for group in structure.groups
        ],
        "blocks": [{"name": name, "macs_fraction": 1 - structure.macs(skip=[name]) / max(1, macs)} for name in blocks],
        "frozen": [{"name": item.name, "size": item.size, "reason": item.reason} for item in structure.frozen],
        "notes": list(structure.notes),
    }
