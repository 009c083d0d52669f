"""`apical report`, `apical export`, `apical push`: what is done with a finished run."""

from __future__ import annotations

from pathlib import Path

import click

from apical.cli._inputs import PATH, InputSpec, input_option


@click.command("report")
@click.argument("runs", type=PATH, nargs=-1, required=True, metavar="RUN [RUN …]")
@click.option(
    "--out",
    type=PATH,
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


@click.command("push")
@click.argument("run", type=PATH)
@click.argument("repo", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--out", type=PATH, help="Write what would be uploaded here, and upload nothing.")
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


_FILES = {"onnx": "model.onnx", "pt2": "model.pt2"}


@click.command("export")
@click.argument("run", type=PATH)
@click.option(
    "--format",
    "kind",
    type=click.Choice(sorted(_FILES)),
    required=True,
    help="onnx: one file, any batch size; pt2: a torch.export program.",
)
@click.option(
    "--out",
    type=PATH,
    help="File to write.  [default: model.onnx or model.pt2 in RUN]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-5,
    show_default=True,
    help="Largest difference allowed between the outputs of the file and of the model.",
)
@input_option(
    "Shape of the input (1x3x360x480) where the network takes other sizes than it was trained on; the batch size stays "
    "free."
)
@click.option("--trust-code", is_flag=True, help="Call the package.module:callable that RUN names to build its model.")
def export_command(
    run: Path, kind: str, out: Path | None, tolerance: float, inputs: tuple[InputSpec, ...], trust_code: bool
) -> None:
    """Write the network of a finished run in a portable format, and check that it computes the same.

    What was written is read back and run (ONNX through onnxruntime) at several batch sizes; nothing is left behind if
    its outputs differ. What only training needs, such as an auxiliary head, is left out.

    \b
    Examples:
      apical export runs/digits --format onnx
      apical export runs/voc --format onnx --input 1x3x360x480

    Next: run the file, for example with onnxruntime.InferenceSession("runs/digits/model.onnx").
    """
    import torch
    from torch.utils._pytree import tree_map

    from apical.export import export_onnx, export_pt2, load_quantized
    from apical.runs import load_serving

    torch.manual_seed(0)
    model, _, call = load_serving(run, trust_code=trust_code)
    example = tree_map(lambda value: torch.randn(value.shape) if value.is_floating_point() else value, call.args)
    if inputs:
        example = tuple(spec.tensor() for spec in inputs)
    target = out or run / _FILES[kind]
    if kind == "pt2":
        report = export_pt2(model, example, target, batch_dim=call.batch_dim, tolerance=tolerance)
    else:
        report = export_onnx(
            model,
            example,
            target,
            batch_dim=call.batch_dim,
            tolerance=tolerance,
            input_names=call.input_names,
            output_names=call.output_names,
            quantized=load_quantized(run),
        )
    click.echo(f"wrote {report}")
