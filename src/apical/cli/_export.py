"""`apical export`: a finished run's network for other runtimes."""

from __future__ import annotations

from pathlib import Path

import click

from apical.cli._inputs import InputSpec, input_option

_FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": "model"}


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(sorted(_FILES)),
    required=True,
    help="onnx: one file, any batch size; pt2: a torch.export program; safetensors: a folder for apical.load.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File to write (folder for safetensors).  [default: model.onnx, model.pt2 or model/ in RUN]",
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

    from apical.export import export_onnx, export_pt2, export_safetensors, load_quantized
    from apical.runs import load_serving

    torch.manual_seed(0)
    model, full_model, call = load_serving(run, trust_code=trust_code)
    example = tree_map(lambda value: torch.randn(value.shape) if value.is_floating_point() else value, call.args)
    if inputs:
        example = tuple(spec.tensor() for spec in inputs)
    target = out or run / _FILES[kind]
    if kind == "safetensors":
        report = export_safetensors(model, full_model, example, target, tolerance=tolerance)
    elif kind == "pt2":
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
