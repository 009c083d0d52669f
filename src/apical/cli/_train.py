"""`apical train`: start a run, or go on with one."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apical.cli._inputs import PATH
from apical.errors import CheckpointError, ConfigError, ProcessLostError

if TYPE_CHECKING:
    from apical.recipes import RunConfig

_WITH_RESUME = ("data", "device", "trust_code")


@click.command("train")
@click.argument("recipe", required=False)
@click.option("--budget", help="What the final network may cost: '50% macs', '0.1M params', '2.5 ms', '10% size'.")
@click.option(
    "--method",
    help="grown (default), dense (the whole model), uniform (one ratio for all widths), l1, slimming, ...",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Length of training; warm-up moves in proportion.")
@click.option("--data", help="Folder of the images, in any known layout; or a name below the folder in APICAL_DATA.")
@click.option("--model", help="resnet20, torchvision:resnet50, timm:resnet18, package.module:callable, ...")
@click.option(
    "--from",
    "weights",
    type=PATH,
    metavar="WEIGHTS",
    help="Start from a trained model: a .safetensors or .pt file, or the folder of a run of `--method dense`.",
)
@click.option("--out", type=PATH, help="The run folder.  [default: runs/RECIPE]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of training and growth.")
@click.option("--device", help="auto, cpu, cuda, cuda:1, ...")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change any setting, for example --set lr=0.05 --set model.width=8. --list-settings shows all.",
)
@click.option(
    "--config",
    "config_file",
    type=PATH,
    metavar="FILE",
    help="Settings from a .yaml or .json file, or a run's config.json; no RECIPE.",
)
@click.option(
    "--save-config", type=PATH, metavar="FILE", help="Write all settings into a .yaml or .json file, and train nothing."
)
@click.option("--list-settings", is_flag=True, help="Show the settings of RECIPE, and train nothing.")
@click.option("--resume", type=PATH, metavar="RUN", help="Go on with the run in this folder; no RECIPE.")
@click.option(
    "--trust-code", is_flag=True, help="With --resume or --config: call the package.module:callable that it names."
)
@click.option(
    "--auto-resume",
    is_flag=True,
    help="Go on with the run in --out if there is one, start it if not: for machines that may be taken away.",
)
@click.option(
    "--shard", is_flag=True, help="Under torchrun: divide the model among the processes (FSDP2); each holds a part."
)
@click.option("--overwrite", is_flag=True, help="Remove an earlier run from the folder when this one starts.")
@click.option(
    "--log",
    "logs",
    metavar="LOGGER",
    multiple=True,
    help="Send the numbers elsewhere, too: csv, tensorboard, wandb, mlflow, trackio, or package.module:callable.",
)
@click.option("--quiet", is_flag=True, help="Print messages only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
def train_command(
    recipe: str | None, resume: Path | None, logs: tuple[str, ...], quiet: bool, as_json: bool, **options: Any
) -> None:
    """Grow a network by a recipe, or go on with a run that was stopped.

    Without RECIPE, lists the recipes.

    \b
    Examples:
      apical train digits
      apical train digits --method dense --out runs/digits-dense
      apical train cifar10-resnet20 --data /data/cifar10 --budget "40% macs" --epochs 30
      apical train folder --data photos --model torchvision:resnet18 --epochs 20
      apical train folder --data photos --model torchvision:resnet18 --from resnet18.pth --set lr=0.01
      apical train digits --set lr=0.05 --save-config run.yaml
      apical train --config run.yaml --set training.epochs=20 --out runs/longer
      apical train --resume runs/digits
      apical train digits --out runs/digits --auto-resume      (the same command again and again)
      apical train digits --log tensorboard      (then: tensorboard --logdir runs)

    On several GPUs or machines: torchrun --nproc-per-node 8 -m apical train RECIPE ... [--shard]

    The run folder holds config.json, history.jsonl, checkpoint.pt, architecture.json, model.safetensors,
    summary.json and report.html. Next: open the report, or `apical export RUN --format onnx`.
    """
    from apical.training import make_progress, processes

    given = recipe or resume or options["config_file"]
    if given is None and not options["list_settings"]:
        _list_recipes()
        return
    if options.pop("list_settings"):
        _list_settings(recipe, options["config_file"])
        return
    from apical.runs import logger_factory

    config, out = _resumed(recipe, resume, options) if resume is not None else _started(recipe, options)
    if options["save_config"] is not None:
        from apical.recipes import write_config_file

        write_config_file(config, options["save_config"])
        written = options["save_config"]
        click.echo(f"wrote {written}; start it with: apical train --config {shlex.quote(str(written))}")
        return
    loggers = [logger_factory(name) for name in logs]
    progress = make_progress("json" if as_json else "quiet" if quiet else "auto")
    goes_on = resume is not None or _found_again(out, options)
    if goes_on and resume is None and processes().first and not as_json:
        click.echo(f"{out} holds a run already; it goes on.")
    _run(
        config,
        out,
        progress=progress,
        loggers=loggers,
        resume=goes_on,
        overwrite=options["overwrite"],
        trust_code=resume is None or options["trust_code"],  # what the command line names is the caller's own
    )
    if not quiet and not as_json and processes().first:
        export = f"apical export {shlex.quote(str(out))} --format onnx"
        click.echo(f"\n{out / 'report.html'} shows the run; {export} writes the network.")


def _found_again(out: Path, options: dict[str, Any]) -> bool:
    """Whether the folder holds a run that this command is to go on with."""
    if options["auto_resume"] and options["overwrite"]:
        raise ConfigError("--auto-resume goes on with the run that --overwrite would remove; leave out one of them")
    from apical._reading import is_regular
    from apical.training._run_folder import RunFolder

    return options["auto_resume"] and (is_regular(out / "config.json") or RunFolder(out).holds_run())


def _run(config: RunConfig, out: Path, **options: Any) -> None:
    from apical.runs import run
    from apical.runs._stored import resume_command
    from apical.training import Interrupted
    from apical.training._checkpoint import CURRENT

    try:
        run(config, out, **options)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}\nGo on with: {resume_command(config, out)}", stopped.signal_name) from stopped
    except KeyboardInterrupt as stopped:
        if not (out / CURRENT).exists():
            raise
        raise Interrupted(
            f"stopped at once; {out} holds the run as it was last saved.\nGo on with: {resume_command(config, out)}",
            "SIGINT",
        ) from stopped
    except ProcessLostError as lost:
        raise ProcessLostError(f"{lost}\nGo on with (by torchrun as before): {resume_command(config, out)}") from lost
    except CheckpointError as error:
        if "already holds a run" in str(error):
            raise CheckpointError(
                f"{out} already holds a run. Go on with it ({resume_command(config, out)}), choose another folder with "
                "--out, remove it with --overwrite, or let the same command start it or go on (--auto-resume)."
            ) from error
        raise


def _started(recipe: str | None, options: dict[str, Any]) -> tuple[RunConfig, Path]:
    from apical.recipes import get_recipe, read_config_file
    from apical.runs._stored import require_trusted

    file = options["config_file"]
    if recipe is not None and file is not None:
        raise ConfigError(f"--config {file} names its recipe; leave out RECIPE {recipe}")
    base = get_recipe(str(recipe)) if file is None else read_config_file(file)
    if file is not None and options["model"] is None:
        require_trusted(base, options["trust_code"], str(file))
    if options["shard"]:
        options["settings"] = (*options["settings"], "training.shard=true")
    return with_options(base, options), options["out"] or Path("runs") / base.recipe


def with_options(config: RunConfig, options: dict[str, Any]) -> RunConfig:
    """A config changed by the options of the command line; those that are None change nothing."""
    from apical.recipes import apply_settings

    named = {
        "epochs": "training.epochs",
        "seed": "seed",
        "budget": "budget",
        "method": "method",
        "data": "data.path",
        "device": "training.device",
        "model": "model.name",
    }
    if options["model"] is not None:  # the recipe's arguments are those of its own model
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, options={}))
    settings = [f"{key}={options[option]}" for option, key in named.items() if options.get(option) is not None]
    if options.get("weights") is not None:  # the strongest units form the first network, of the budget's size
        settings += [f"model.initial_weights={options['weights']}", "growth.seed_style=pretrained",
                     "growth.seed_fraction=1"]  # fmt: skip
    return apply_settings(config, [*settings, *options["settings"]])


def _resumed(recipe: str | None, resume: Path, options: dict[str, Any]) -> tuple[RunConfig, Path]:
    from apical._reading import is_regular
    from apical.runs import read_config
    from apical.runs._stored import require_trusted
    from apical.training._checkpoint import has_checkpoint

    spelt = {"settings": "set", "config_file": "config", "weights": "from"}
    given = [
        f"--{spelt.get(name, name).replace('_', '-')}"
        for name, value in options.items()
        if not (value is None or value is False or value == ()) and name not in _WITH_RESUME  # a seed may be 0
    ]
    if recipe is not None or given:
        names = ", ".join([*([f"RECIPE {recipe}"] if recipe else []), *given])
        raise ConfigError(
            f"--resume goes on with the settings of {resume}; leave out {names}. Only --data and --device may differ."
        )
    try:
        config = read_config(resume)
    except ConfigError as error:
        if not has_checkpoint(resume) or is_regular(resume / "config.json"):
            raise
        raise ConfigError(
            f"{error}. Its checkpoint is there: the command that started the run goes on with it if --auto-resume is "
            "added, and writes config.json anew."
        ) from error
    require_trusted(config, options["trust_code"], str(resume / "config.json"))
    if options["data"] is not None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=options["data"]))
    if options["device"] is not None:
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, device=options["device"]))
    return config, resume


def _list_recipes() -> None:
    from apical.recipes import recipes

    click.echo("Recipes, for `apical train RECIPE`:\n")
    width = max(map(len, recipes()))
    for name, line in recipes().items():
        click.echo(f"  {name.ljust(width)}  {line}")
    click.echo("\nStart with `apical train digits`; it needs no download. `apical train --help` lists the options.")


def _list_settings(recipe: str | None, file: Path | None) -> None:
    from apical.recipes import get_recipe, read_config_file
    from apical.recipes._settings import as_texts

    config = get_recipe(recipe or "digits") if file is None else read_config_file(file)
    click.echo(
        f"Settings of {file or recipe or 'digits'}, for --set KEY=VALUE "
        "(the end of a key is enough where it is unique):\n"
    )
    for name, value in as_texts(config).items():
        click.echo(f"  {name} = {value}")
