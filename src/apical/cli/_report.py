"""`apical report`: a run as one page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="File to write.  [default: report.html in RUN]")
def report_command(run: Path, out: Path | None) -> None:
    """Write a run's report: widths by epoch, accuracy, cost, the final network, settings, how to repeat it.

    One HTML file without scripts from elsewhere; it also works for a run that is not finished.

    \b
    Example:
      apical report runs/digits
    """
    from apical.reporting import write_report

    click.echo(f"wrote {write_report(run, out)}")
