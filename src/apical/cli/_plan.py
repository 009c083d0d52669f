"""`apical plan`: what a training will cost, before it begins."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apical._atomic import atomic_file
from apical._reading import read_object
from apical.cli._inputs import PATH, InputSpec, built, input_option, kwargs_option, waiting
from apical.cli._train import with_options
from apical.errors import ConfigError

if TYPE_CHECKING:
    from apical.budget import DeviceTable
    from apical.recipes import RunConfig
    from apical.runs._plan import Planned, Prices


@click.command("plan")
@click.argument("target", metavar="RECIPE|MODEL")
@input_option(
    "One example, such as 1x3x32x32: of a MODEL that is not known by name (again for further arguments), or of a "
    "RECIPE whose data is not known."
)
@kwargs_option
@click.option("--budget", help="What the final network may cost: '50% macs', '0.1M params'.")
@click.option("--epochs", type=click.IntRange(min=1), help="Length of training.")
@click.option("--model", help="With RECIPE, another model: torchvision:resnet152, package.module:callable, ...")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change any setting, as in apical train.")
@click.option(
    "--images",
    type=click.IntRange(min=1),
    help="Training examples of an epoch (of text: windows), where they are not known.",
)
@click.option(
    "--classes",
    type=click.IntRange(min=1),
    help="Number of classes (of text: of tokens), for a RECIPE whose data is not known.",
)
@click.option("--processes", type=click.IntRange(min=1), default=1, show_default=True, help="How many train together.")
@click.option("--memory", is_flag=True, help="Run each network once for its activations.")
@click.option("--shard", is_flag=True, help="The model is divided among the processes (FSDP2), not copied to each.")
@click.option(
    "--link-gb-per-s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB/S",
    help="With --shard: what a process receives over the network.",
)
@click.option("--no-weights", is_flag=True, help="Build MODEL without weights: one larger than this machine, too.")
@click.option("--measure", is_flag=True, help="Time steps on this machine (a few of several networks).")
@click.option("--device", default="auto", show_default=True, help="What --measure measures.")
@click.option("--write-table", type=PATH, help="With --measure: keep the step times as JSON.")
@click.option("--device-table", type=PATH, help="Step times that another machine wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every epoch and all widths.")
def plan_command(target: str, as_json: bool, **options: Any) -> None:
    """Say what a training will cost before it begins: every epoch's network, the sums, and what cannot change.

    RECIPE is one of `apical train`; MODEL is what `apical inspect` takes. Nothing is trained
    and no data is read. Minutes need step times: --measure takes them on this machine, --device-table from another one.

    \b
    Examples:
      apical plan digits --measure
      apical plan imagenet-resnet50 --model torchvision:resnet152 --processes 8 --memory
      apical plan gpt-wikitext2 --measure
      apical plan my_package.nets:Net --input 1x3x32x32 --budget "50% macs" --epochs 100
      apical plan my_package.nets:Net --input 1x3x32x32 --images 50000 --measure --write-table this-machine.json
      apical plan GPT --kwargs '{"vocab_size": 32000, "num_layers": 32}' --input 1x256:int64:32000 --no-weights
    """
    from apical.recipes import recipes
    from apical.runs._plan import price

    if options["write_table"] is not None and not options["measure"]:
        raise ConfigError("--write-table keeps what --measure measures; add --measure")
    if options["measure"] and options["device_table"] is not None:
        raise ConfigError("--measure and --device-table both give step times; choose one")
    if options["shard"] and options["processes"] < 2:
        raise ConfigError("--shard divides the model among several processes; add --processes, such as --processes 8")
    if options["link_gb_per_s"] is not None and not options["shard"]:
        raise ConfigError("--link-gb-per-s says what a restructuring takes where the model is divided; add --shard")
    is_recipe = target in recipes()
    if options["no_weights"] and (is_recipe or options["measure"]):
        raise ConfigError("--no-weights is of a MODEL that is not run here; leave out --measure, and name no recipe")
    given = _read_table(options["device_table"])  # before what takes long
    with waiting(f"tracing {target}"):
        planned, samples = (_of_recipe if is_recipe else _of_model)(target, options)
    table = _table(planned, options, given)
    if samples is None and table is not None:
        raise ConfigError("minutes need to know how many examples an epoch has: add --images, such as --images 50000")
    held = options["memory"] or options["shard"] or options["no_weights"]
    found = price(
        planned, samples or 1, processes=options["processes"], table=table, memory=held, sharded=options["shard"],
        link_gb_per_s=options["link_gb_per_s"],
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(planned.plan), "prices": vars(found)}, indent=2))
    else:
        lines = [f"{target}: {planned.plan.text(_columns(found))}", "", *_sums(found, table, samples, planned.on_paper)]
        if planned.on_paper:
            lines.append("without weights: what can go follows from the rules alone; no dry run has confirmed it")
        click.echo("\n".join(lines))


def _of_recipe(target: str, options: dict[str, Any]) -> tuple[Planned, int]:
    from apical.recipes import get_recipe
    from apical.runs._plan import data_facts, plan_recipe

    if options["kwargs"]:
        raise ConfigError(f"--kwargs are those of a MODEL; for RECIPE {target} write --set model.NAME=VALUE")
    shape = _image(options["inputs"]) if options["inputs"] else None
    config = _changed(get_recipe(target), options)
    samples, facts = data_facts(config, options["images"], options["classes"], shape)
    return plan_recipe(config, facts), samples


def _of_model(target: str, options: dict[str, Any]) -> tuple[Planned, int | None]:
    import torch

    from apical._checks import nearest
    from apical.growth import GrowthConfig
    from apical.recipes import ModelConfig, get_recipe, recipes
    from apical.recipes._model import MODELS
    from apical.runs._plan import plan_model

    odd = [f"--{name}" for name in ("model", "classes") if options[name] is not None]
    if odd:
        raise ConfigError(f"{' and '.join(odd)} belong to a RECIPE; {target} is none")
    if ":" not in target and "." not in target and target not in MODELS:
        known = [*recipes(), *MODELS]
        raise ConfigError(
            f"there is no model or recipe {target!r}{nearest(target, known, '.')} `apical train` lists the recipes; "
            f"the models are {', '.join(MODELS)}, torchvision:NAME, timm:NAME and package.module:callable"
        )
    specs = options["inputs"]
    if any(spec.shape[0] != 1 for spec in specs):
        raise ConfigError(
            "a plan counts what one example costs, so the first number of each --input must be 1: --input 1x3x32x32"
        )
    own = dataclasses.replace(get_recipe("folder"), model=ModelConfig(target), growth=GrowthConfig())  # a Grower's
    config = _changed(own, options)
    torch.manual_seed(config.training.seed)
    with torch.device("meta") if options["no_weights"] else nullcontext():
        model, example = built(target, options["kwargs"], specs)
    return plan_model(config, model, example), options["images"]


def _changed(config: RunConfig, options: dict[str, Any]) -> RunConfig:
    return with_options(config, {name: options[name] for name in ("epochs", "budget", "model", "settings")})


def _image(specs: Sequence[InputSpec]) -> tuple[int, ...]:
    """Shape of an image, of a recipe's single example."""
    if len(specs) != 1 or len(specs[0].shape) != 4 or specs[0].shape[0] != 1 or 0 in specs[0].shape:
        raise ConfigError("--input of a RECIPE: expected one image, 1 x channels x height x width: 1x3x224x224")
    return specs[0].shape[1:]


def _read_table(path: Path | None) -> DeviceTable | None:
    from apical.budget import DeviceTable

    if path is None:
        return None
    try:
        content = read_object(path, ConfigError, "step times that --write-table wrote")
    except ConfigError as error:
        raise ConfigError(f"--device-table: {error}") from error
    return DeviceTable.from_dict(content)


def _table(planned: Planned, options: dict[str, Any], given: DeviceTable | None) -> DeviceTable | None:
    from apical.runs._plan import measure_table
    from apical.training._config import resolve_device

    if options["measure"]:
        share = -(-planned.config.training.batch_size // options["processes"])
        with waiting("timing steps"):
            table = measure_table(planned, resolve_device(options["device"]), share)
        if options["write_table"] is not None:
            _write_table(options["write_table"], json.dumps(table.to_dict(), indent=2) + "\n")
        return table
    if given is not None and given.model != planned.name:
        path = options["device_table"]
        raise ConfigError(f"--device-table {path} holds step times of {given.model}, the run trains {planned.name}")
    return given


def _write_table(path: Path, text: str) -> None:
    try:
        with atomic_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--write-table {path} cannot be written: {error}") from error


_Column = tuple[str, Callable[[dict[str, Any]], float | None], str]
"""Heading, value of an epoch (None: not known), and its format."""
_COLUMNS: list[_Column] = [
    ("memory GiB", lambda record: _scaled(record["memory_bytes"], 2**-30), ".3f"),
    ("restructure MB", lambda record: record["restructure_bytes"] / 1e6 or None, ".1f"),
    ("sent MB/step", lambda record: record["sent_bytes_per_step"] / 1e6 or None, ".2f"),
    ("step ms", lambda record: _scaled(record["step_seconds"], 1000), ".1f"),
    ("epoch s", lambda record: record["seconds"], ".1f"),
]


def _columns(found: Prices) -> dict[str, list[str]]:
    """Those of which something is known."""
    columns = {}
    for name, value, form in _COLUMNS:
        values = [value(record) for record in found.epochs]
        if any(v is not None for v in values):
            columns[name] = ["-" if v is None else format(v, form) for v in values]
    return columns


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _sums(found: Prices, table: DeviceTable | None, samples: int | None, on_paper: bool) -> list[str]:
    sums, lines = found.totals, []
    if samples is not None:
        lines.append(f"training: {sums['train_macs']:.3e} MACs with {samples:,} examples an epoch")
    if any(record["sent_bytes_per_step"] for record in found.epochs):
        what = "weights and gradients" if sums["restructure_bytes"] else "gradients"
        lines.append(f"{what} sent: {100 * sums['sent_fraction']:.1f} % of the full model's")
    if sums["restructure_bytes"]:
        seconds = sums["restructure_seconds"]
        took = "" if seconds is None else f", {_told(seconds)} over the link"
        lines.append(
            f"{sums['restructurings']} restructurings: each process receives {sums['restructure_bytes'] / 1e9:.3f} GB "
            f"in all{took}"
        )
    if sums["peak_memory_bytes"] is not None:
        lines.append(
            f"memory: {sums['peak_memory_bytes'] / 2**30:.3f} GiB at most, the full model's "
            f"{sums['dense_memory_bytes'] / 2**30:.3f} GiB{', without activations' if on_paper else ''}"
        )
    if sums["restructure_bytes"] and sums["peak_memory_bytes"] is not None:
        lines.append(
            f"  while it changes {sums['restructure_memory_bytes'] / 2**30:.3f} GiB at most; before it is divided, "
            f"every process holds {sums['start_memory_bytes'] / 2**30:.3f} GiB"
        )
    if sums["seconds"] is None or table is None:
        lines.append("minutes: not known; --measure times steps on this machine")
    else:
        final = found.epochs[-1]["seconds"] * len(found.epochs)
        lines.append(
            f"steps on {table.device}: {_told(sums['seconds'])} in all, {100 * sums['seconds_fraction']:.1f} % of "
            f"the full model's {_told(sums['dense_seconds'])}; the final network alone would take {_told(final)}"
        )
    return lines


def _told(seconds: float) -> str:
    from apical.training._progress import duration

    if seconds < 120:
        return f"{seconds:.1f} s"
    return duration(seconds)
