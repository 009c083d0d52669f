"""Options that describe a model's call: its example inputs, and the arguments of what builds it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from apical.errors import ConfigError

if TYPE_CHECKING:
    from rich.status import Status
    from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
_EXAMPLE = "1x3x224x224, 8x128:int64:32000 or 4x16:bool"
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")


def waiting(what: str) -> Status:
    """Shows on a terminal, while the block runs, what takes long; elsewhere nothing."""
    from rich.console import Console

    return Console(stderr=True).status(f"{what} …")


@dataclass(frozen=True)
class InputSpec:
    """One example input: its shape, its dtype, and for whole numbers how many different values there are."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    values: int = 2

    @staticmethod
    def parse(text: str) -> InputSpec:
        """Read ``1x3x224x224``, ``8x128:int64`` or ``8x128:int64:32000``."""
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


def built(target: str, options: dict[str, Any], specs: tuple[InputSpec, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The model that a command names, and the arguments of a call: those of ``--input``, or one image as is usual."""
    from apical.recipes._model import call_builder, find_builder, usual_input

    build, implied = find_builder(target)
    model = call_builder(build, {**implied, **options}, target)
    if not specs:
        shape = usual_input(target, model, options)
        if shape is None:
            raise ConfigError(f"{target} needs an example: add --input, such as --input 1x3x32x32 or 1x128:int64:32000")
        specs = (InputSpec(shape),)
        click.echo(f"--input {'x'.join(map(str, shape))}, as {target} usually takes it", err=True)
    return model, tuple(spec.tensor() for spec in specs)


def parse_object(_ctx: click.Context, _param: click.Parameter, value: str) -> dict[str, Any]:
    """Read a JSON object of an option."""
    try:
        content = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise click.BadParameter(f"{value!r} is no JSON object; write for example '{{\"num_classes\": 10}}'")
    return content


def input_option(about: str) -> Callable[[F], F]:
    """The option ``--input``, with what its help says."""
    return click.option(
        "--input", "inputs", metavar="SHAPE[:DTYPE[:VALUES]]", multiple=True, callback=parse_inputs, help=about
    )


kwargs_option = click.option(
    "--kwargs", metavar="JSON", default="{}", callback=parse_object,
    help="Keyword arguments of MODEL's callable, as a JSON object.",
)  # fmt: skip
