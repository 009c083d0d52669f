"""`apical push`: a finished run on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("push")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repo", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--out", type=click.Path(path_type=Path), help="Write what would be uploaded here, and upload nothing.")
@click.option("--trust-code", is_flag=True, help="Call the package.module:callable that RUN names to build its model.")
def push_command(run: Path, repo: str, private: bool, out: Path | None, trust_code: bool) -> None:
    """Upload a finished run's network to the Hugging Face Hub, with a card.

    Uploaded are the network, its exported program where it has one, the run's records, its report, and a card with
    cost, accuracy and the picture of growth. Checkpoints and data stay here.

    \b
    Examples:
      apical push runs/digits me/digits --out look-first
      apical push runs/digits me/digits

    Next: `apical.runs.from_pretrained("me/digits")` builds the network anywhere.
    """
    from apical.runs import push_to_hub
    from apical.runs._hub import write_share

    if out is not None:
        click.echo(f"wrote {write_share(run, out, repo, trust_code=trust_code)}; nothing was uploaded")
    else:
        click.echo(f"pushed {push_to_hub(run, repo, private=private, trust_code=trust_code)}")
