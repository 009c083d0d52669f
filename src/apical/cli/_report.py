"""`apical report`: a run, or several beside each other, as one page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN [RUN …]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write.  [default: report.html in RUN; runs.html in the current folder for several]",
)
def report_command(runs: tuple[Path, ...], out: Path | None) -> None:
    """Write a run's report, or one page that compares several runs.

    One HTML file that fetches nothing: what was grown, epoch by epoch, accuracy and loss, what training cost against
    the full model and the final network, layers, what could not grow and why, settings, how to repeat it. It also
    works for runs that are not finished.

    \b
    Examples:
      apical report runs/digits
      apical report runs/digits runs/digits-dense --out runs/two.html

    Next: open the file in a browser. For means over seeds, see `apical compare`.
    """
    from apical.reporting import write_report, write_runs_report

    wrote = write_report(runs[0], out) if len(runs) == 1 else write_runs_report(runs, out or Path("runs.html"))
    click.echo(f"wrote {wrote}")
