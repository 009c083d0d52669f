"""`apical simulate`: a growth run on paper."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apical._atomic import atomic_file
from apical._reading import read_text
from apical.errors import ConfigError

if TYPE_CHECKING:
    from apical.budget import DeviceTable
    from apical.recipes._simulate import Simulation


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def simulate_command(recipe: str, as_json: bool, **options: Any) -> None:
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
    from apical.recipes._simulate import data_facts, simulate

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
    click.echo(json.dumps(vars(found), indent=2) if as_json else _text(found, recipe, table, options["memory"]))


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise ConfigError(f"--input {text}: expected channels x height x width, such as 3x224x224")
    return tuple(int(part) for part in parts)


def _table(config: Any, facts: Any, options: dict[str, Any]) -> DeviceTable | None:
    from apical.budget import DeviceTable
    from apical.recipes._simulate import measure_table
    from apical.training import resolve_device

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


def _text(found: Simulation, recipe: str, table: DeviceTable | None, memory: bool) -> str:
    lines = [f"{recipe}, on paper" + (f"; seconds on {table.device}, as measured" if table else "")]
    lines.append("epoch  MACs %  params M  memory GiB  sent MB/step  step ms  epoch s  restructure s")
    for record in found.epochs:
        step, seconds, share = record["step_seconds"], record["seconds"], record["macs"] / found.dense["macs"]
        lines.append(
            f"{record['epoch']:5d}  {100 * share:6.1f}  {record['num_params'] / 1e6:8.3f}  "
            f"{record['memory_bytes'] / 2**30 if memory else float('nan'):10.3f}  "
            f"{record['sent_bytes_per_step'] / 1e6:12.2f}  {'-' if step is None else f'{1000 * step:.1f}':>7}  "
            f"{'-' if seconds is None else f'{seconds:.1f}':>7}  {record['restructure_seconds']:13.3f}"
        )
    sums = found.totals
    lines.append(
        f"training: {sums['train_macs']:.3e} MACs, {100 * sums['train_macs_fraction']:.1f} % of the whole model's"
    )
    lines.append(f"gradients sent: {100 * sums['sent_fraction']:.1f} % of the whole model's")
    if memory:
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
