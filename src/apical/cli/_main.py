"""The group of commands, and how errors leave it."""

from __future__ import annotations

from typing import Any

import click

from apical.cli._compare import compare_command
from apical.cli._inspect import inspect_command
from apical.cli._plan import plan_command
from apical.cli._report import export_command, push_command, report_command
from apical.cli._train import train_command
from apical.errors import ApicalError

EXIT_ERROR = 2


class _Commands(click.Group):
    """Errors that apical raises on purpose become one message; all others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ApicalError as error:
            click.echo(f"apical: {error}", err=True)
            ctx.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            from apical.training import Interrupted

            click.echo("apical: stopped by Ctrl-C", err=True)
            ctx.exit(Interrupted.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            from apical.training import Interrupted

            if not isinstance(error, Interrupted):
                raise
            click.echo(f"apical: {error}", err=True)
            ctx.exit(Interrupted.exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="apical", prog_name="apical")
def main() -> None:
    """Grow efficient networks: start small, train, end at the budget you asked for.

    \b
    First steps:
      apical train digits                                    grow a small network, no download, about a minute
      apical train                                           list the recipes
      apical plan digits --measure                           what a training will cost, before it begins
      apical inspect resnet50 --input 1x3x224x224            what of a model can grow
      apical compare digits --methods grown,uniform          methods side by side
      apical report runs/digits                              write the run's page anew
      apical export runs/digits --format onnx                write the result for another runtime
      apical push runs/digits me/digits                      share it on the Hugging Face Hub

    A model of your own needs no recipe: put `apical.Grower` around your training loop (see the README). Each command
    explains itself: `apical train --help`.

    Exit codes: 0 done, 2 wrong input (the message says what), 75 stopped by a signal (resume it).
    """


_COMMANDS = (
    train_command,
    plan_command,
    compare_command,
    inspect_command,
    export_command,
    push_command,
    report_command,
)
for _command in _COMMANDS:
    main.add_command(_command)
