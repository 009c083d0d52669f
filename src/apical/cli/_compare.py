"""`apical compare`: several methods and seeds of a recipe side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from apical.cli._inputs import PATH


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]


def _seeds(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    names = _names(ctx, param, value)
    wrong = [name for name in names if not name.isdecimal()]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is no seed; write whole numbers with commas between, such as 0,1,2")
    return [int(name) for name in names]


@click.command("compare")
@click.argument("recipe")
@click.option(
    "--methods",
    default="grown,final-same-epochs,final-same-macs,uniform,dense",
    show_default=True,
    callback=_names,
    help="Names with commas between; the others are compared with the first.",
)
@click.option("--seeds", default="0,1,2", show_default=True, callback=_seeds, help="Numbers with commas between.")
@click.option("--budget", help="What the final networks may cost: '50% macs', '0.1M params'.")
@click.option("--epochs", type=click.IntRange(min=1), help="Length of training; warm-up moves in proportion.")
@click.option("--data", help="Folder of the data; or a name below the folder in APICAL_DATA.")
@click.option("--model", help="resnet20, torchvision:resnet50, timm:resnet18, package.module:callable, ...")
@click.option("--device", help="auto, cpu, cuda, cuda:1, ...")
@click.option("--out", type=PATH, help="Folder of the comparison.  [default: runs/compare-RECIPE]")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change any setting of all runs, or of one method: --set uniform.divisor=1.",
)
@click.option("--overwrite", is_flag=True, help="Do runs again that were done with other settings.")
@click.option("--no-latency", is_flag=True, help="Do not measure the final networks.")
@click.option("--quiet", is_flag=True, help="Print a line for each run only.")
def compare_command(
    recipe: str, methods: list[str], seeds: list[int], out: Path | None, quiet: bool, **options: Any
) -> None:
    """Train a recipe by several methods and seeds, and write one table and one page.

    Runs are done one after the other in OUT/METHOD-seedN. The same command goes on where it was stopped: finished
    runs are left alone, a run that was stopped is resumed.

    \b
    Examples:
      apical compare digits --methods grown,uniform,l1 --seeds 0,1,2
      apical compare cifar10-resnet20 --methods grown,final-same-macs,dense --epochs 30 --out runs/cifar

    OUT then holds compare.md, compare.html and compare.json. Next: open compare.html.
    """
    from apical import runs
    from apical.cli._train import with_options
    from apical.recipes import get_recipe
    from apical.recipes._settings import split_options
    from apical.reporting import rows
    from apical.reporting._compare_page import render_markdown
    from apical.training import Interrupted, make_progress

    overwrite, latency = options.pop("overwrite"), not options.pop("no_latency")
    shared, own = split_options(options.pop("settings"), runs.methods())
    config = with_options(get_recipe(recipe), {**options, "settings": shared})
    folder = out or Path("runs") / f"compare-{recipe}"
    try:
        comparison = runs.compare(
            config,
            methods,
            seeds,
            folder,
            options=own,
            overwrite=overwrite,
            progress=lambda: make_progress("quiet" if quiet else "auto"),
            message=click.echo,
            latency=latency,
        )
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}\nGo on with the same command.", stopped.signal_name) from stopped
    except KeyboardInterrupt as stopped:
        raise Interrupted("stopped at once.\nGo on with the same command.", "SIGINT") from stopped
    click.echo(f"\n{render_markdown(comparison, rows(comparison))}")
    click.echo(f"{folder / 'compare.html'} shows the comparison.")
