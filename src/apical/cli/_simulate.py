"""`apical simulate`: a growth run on paper."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apical._atomic import atomic_file
from apical._reading import read_text
from apical.errors import ConfigError

if TYPE_CHECKING:
    from apical.budget import DeviceTable
    from apical.runs._simulate import Simulation


@click.command("simulate")
@click.argument("recipe")
@click.option("--budget", help="What the final network may cost.")
@click.option("--epochs", type=click.IntRange(min=1), help="Length of training.")
@click.option("--model", help="Another model: torchvision:resnet152, package.module:callable, ...")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change any setting, as in apical train.")
@click.option("--images", type=click.IntRange(min=1), help="Training images of an epoch, if the data set is not known.")
@click.option("--classes", type=click.IntRange(min=1), help="Number of classes, likewise.")
@click.option("--input", "shape", metavar="CxHxW", help="Shape of an image, likewise.")
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="How many train together.")
@click.option("--device-table", type=click.Path(path_type=Path), help="Measured step times of this model, as JSON.")
@click.option("--measure", is_flag=True, help="Measure step times on this machine first (a few steps each).")
@click.option("--device", default="auto", show_default=True, help="What --measure measures.")
@click.option("--write-table", type=click.Path(path_type=Path), help="With --measure: keep the table in this file.")
@click.option("--memory/--no-memory", default=True, help="Run each network once for its activations.")
@click.option(
    "--every", type=click.IntRange(min=1), help="Show a row for every so many epochs.  [default: about twenty rows]"
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every epoch, instead of a table.")
def simulate_command(recipe: str, as_json: bool, every: int | None, **options: Any) -> None:
    """Walk through a recipe's growth without training: MACs, memory, communication and time of every epoch.

    The real Grower restructures the real model, on the CPU; no data is read. Seconds need step times measured on the
    device in question: --measure on this machine, or --device-table FILE from another one.

    \b
    Examples:
      apical simulate imagenet-resnet50 --processes 8
      apical simulate imagenet-resnet50 --model torchvision:resnet152 --no-memory
      apical simulate cifar10-resnet20 --measure --write-table this-machine.json
    """
    from apical.recipes import apply_settings, get_recipe
    from apical.runs._simulate import data_facts, simulate

    if options["write_table"] is not None and not options["measure"]:
        raise ConfigError("--write-table keeps what --measure measures; add --measure")
    if options["measure"] and options["device_table"] is not None:
        raise ConfigError("--measure and --device-table both give step times; choose one")
    named = {"epochs": "training.epochs", "budget": "budget", "model": "model.name"}
    settings = [f"{key}={options[name]}" for name, key in named.items() if options[name] is not None]
    config = get_recipe(recipe)
    if options["model"] is not None:  # the recipe's arguments are those of its own model
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, options={}))
    config = apply_settings(config, [*settings, *options["settings"]])
    images, facts = data_facts(config, options["images"], options["classes"], _shape(options["shape"]))
    table = _table(config, facts, options)
    found = simulate(config, images, facts, processes=options["processes"], table=table, memory=options["memory"])
    click.echo(json.dumps(vars(found), indent=2) if as_json else _text(found, recipe, table, every))


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--input {text}: expected channels x height x width, such as 3x224x224")
    return tuple(int(part) for part in parts)


def _table(config: Any, facts: Any, options: dict[str, Any]) -> DeviceTable | None:
    from apical.budget import DeviceTable
    from apical.runs._simulate import measure_table
    from apical.training._config import resolve_device

    if options["measure"]:
        share = -(-config.training.batch_size // options["processes"])
        table = measure_table(config, facts, resolve_device(options["device"]), share)
        if options["write_table"] is not None:
            _write_table(options["write_table"], json.dumps(table.to_dict(), indent=2) + "\n")
        return table
    path = options["device_table"]
    if path is None:
        return None
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"--device-table {path} cannot be read: {error}") from error
    table = DeviceTable.from_dict(content)
    if table.model != config.model.name:
        raise ConfigError(
            f"--device-table {path} holds step times of {table.model}, the run trains {config.model.name}"
        )
    return table


def _write_table(path: Path, text: str) -> None:
    try:
        with atomic_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--write-table {path} cannot be written: {error}") from error


_Column = tuple[str, Callable[[dict[str, Any]], float | None], str]
"""Heading, value of an epoch (None: not known), and its format."""
_ROWS = 20


def _columns(found: Simulation) -> list[_Column]:
    """Those of which something is known."""
    columns: list[_Column] = [
        ("epoch", lambda record: record["epoch"], "d"),
        ("MACs %", lambda record: 100 * record["macs"] / found.dense["macs"], ".1f"),
        ("params M", lambda record: record["num_params"] / 1e6, ".3f"),
        ("memory GiB", lambda record: _scaled(record["memory_bytes"], 2**-30), ".3f"),
        ("sent MB/step", lambda record: record["sent_bytes_per_step"] / 1e6 or None, ".2f"),
        ("step ms", lambda record: _scaled(record["step_seconds"], 1000), ".1f"),
        ("epoch s", lambda record: record["seconds"], ".1f"),
        ("restructure s", lambda record: record["restructure_seconds"], ".3f"),
    ]
    return [column for column in columns if any(column[1](record) is not None for record in found.epochs)]


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _table_lines(found: Simulation, every: int | None) -> list[str]:
    columns = _columns(found)
    step = every or max(1, -(-len(found.epochs) // _ROWS))
    last = len(found.epochs) - 1
    lines = ["  ".join(name for name, _, _ in columns)]
    for number, record in enumerate(found.epochs):
        if number % step == 0 or number == last:
            lines.append("  ".join(_cell(value(record), form).rjust(len(name)) for name, value, form in columns))
    if step > 1:
        lines.append(f"(every {step} epochs; --every 1 shows all {last + 1})")
    return lines


def _text(found: Simulation, recipe: str, table: DeviceTable | None, every: int | None) -> str:
    sums = found.totals
    lines = [f"{recipe}, on paper" + (f"; seconds on {table.device}, as measured" if table else "")]
    lines += [*_table_lines(found, every), "", f"In all {len(found.epochs)} epochs:"]
    lines.append(
        f"training: {sums['train_macs']:.3e} MACs, {100 * sums['train_macs_fraction']:.1f} % of the whole model's"
    )
    if any(record["sent_bytes_per_step"] for record in found.epochs):
        lines.append(f"gradients sent: {100 * sums['sent_fraction']:.1f} % of the whole model's")
    if sums["peak_memory_bytes"] is not None:
        lines.append(
            f"memory: {sums['peak_memory_bytes'] / 2**30:.3f} GiB at most, the whole model's "
            f"{sums['dense_memory_bytes'] / 2**30:.3f} GiB"
        )
    if sums["seconds"] is not None:
        lines.append(
            f"steps: {sums['seconds']:.1f} s, {100 * sums['seconds_fraction']:.1f} % of the whole model's "
            f"{sums['dense_seconds']:.1f} s"
        )
    lines.append(f"restructuring, measured here on the CPU: {sums['restructure_seconds']:.2f} s in all")
    return "\n".join(lines)
