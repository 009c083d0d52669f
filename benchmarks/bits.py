"""What do bits buy? Mixed precisions against uniform ones of equal bytes, and channels with bits, on held-out images.

    APICAL_DATA=... python benchmarks/bits.py --shrink 2 --epochs 8 --seeds 10 11 12 --out RESULTS.jsonl

One JSON line for each run; runs that the file has are not repeated, so that the command goes on where it was stopped.
Methods, each under the same number of bytes (``--bits`` says of which uniform precision that is the size; two bits are
the fewest that a weight has, so that there is nothing to choose under theirs):

    rounded       every layer its own precision, weights rounded in every step, gradients straight through
                  (`apical.growth.BitConfig`, its defaults)
    uniform       one precision for all, rounded in every step: quantisation-aware training as usual
    channels      no bits: as many 32-bit parameters as fit into the bytes; running statistics and the file's header
                  come on top, which favours it
    both          half of the MACs, and the rest of the bytes for bits of fewer channels
    dense         the whole network in 32 bits, without a budget

Training is that of `trial.py`: CIFAR ResNet-20, 20,000 images, SGD with Nesterov momentum, crops and flips, bfloat16
autocast (or ``--float32``, for processors without it: one table has one of them); accuracy on 5,000 held-out training
images. The test images are not read. Then onnxruntime's static quantisation gives activations 8 bits, too, by ranges of
512 training images (``int8``: accuracy, and bytes of the file).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from learning import fixed, read
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from torch import Tensor, nn
from trial import BATCH, HELD_OUT, TRAIN, Images, Make, load, run

import apical
from apical.baselines import uniform_keep
from apical.export import export_onnx
from apical.growth import BitConfig
from apical.growth._bits import model_bytes, quantizable
from apical.models import CifarResNet
from apical.quantize._packing import packed_size

CONFIGS = {
    "rounded": BitConfig(),
    "uniform": BitConfig(precision="uniform"),
    "both": BitConfig(),
}
CALIBRATION = 512  # images that the ranges of activations are measured on
METHODS = (*CONFIGS, "channels", "dense")


def size_of_uniform(bits: int, depth: int) -> int:
    """Bytes of the template's file of weights at one precision."""
    model = CifarResNet(depth=depth)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    like = {n: (tuple(t.shape), t.dtype) for n, t in model.state_dict().items()}
    names = quantizable(model, [optimizer], ())
    return packed_size(like, dict.fromkeys(names, bits)) + len(names)


def maker(method: str, budget_bytes: int, seed: int, epochs: int, made: dict[str, Any]) -> Make:
    """What makes the method for a model; ``made`` receives the model and the method."""

    def make(model: nn.Module, optimizer: torch.optim.Optimizer, example: Tensor) -> Any:
        made["model"], made["full_bytes"] = model, model_bytes(model)
        if method in CONFIGS:
            budget = f"{budget_bytes} B" if not method.startswith("both") else f"50% macs, {budget_bytes} B"
            made["method"] = apical.Grower(model, optimizer, (example,), budget, epochs, seed=seed,
                                           steps_per_epoch=(TRAIN.stop - TRAIN.start) // BATCH,
                                           bits=CONFIGS[method])  # fmt: skip
            return made["method"]
        structure = apical.trace(model, (example,))
        budget = "100% macs" if method == "dense" else f"{budget_bytes // 4} params"
        return fixed(model, optimizer, example, uniform_keep(structure, budget), ())

    return make


def trained(
    method: str, budget_bytes: int, seed: int, epochs: int, depth: int, data: Images, amp: bool
) -> dict[str, Any]:
    """The record of one run."""
    made: dict[str, Any] = {}
    make = maker(method, budget_bytes, seed, epochs, made)
    outcome = run(data, seed, epochs, make, depth=depth, augment=True, amp=amp)
    quantized = made["method"].quantized if "method" in made else {}
    with tempfile.TemporaryDirectory() as folder:
        apical.save(made["model"], folder, quantized=quantized)
        file_bytes = (Path(folder) / "model.safetensors").stat().st_size
    record = dataclasses.asdict(outcome)
    history = record.pop("history")
    return record | {
        "int8": of_8_bits(made["model"], data),
        "budget_bytes": budget_bytes,
        "file_bytes": file_bytes,
        "size_fraction": file_bytes / made["full_bytes"],
        "bits": {name: q.bits for name, q in quantized.items()},
        "trajectory": [epoch["bits"] for epoch in history if "bits" in epoch],
        "widths": history[-1]["widths"],
        "versions": {"torch": torch.__version__, "python": platform.python_version(), "apical": apical.__version__},
    }


def of_8_bits(model: nn.Module, data: Images) -> dict[str, float | int]:
    """Accuracy with activations of 8 bits, by onnxruntime's static quantisation of the exported file."""
    inputs = data[0][TRAIN].contiguous()
    batches = iter([{"input": batch.numpy()} for batch in inputs[:CALIBRATION].split(BATCH)])

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def get_next(self) -> dict[str, Any] | None:
            return next(batches, None)

    with tempfile.TemporaryDirectory() as folder:
        whole, small = f"{folder}/float.onnx", f"{folder}/int8.onnx"
        export_onnx(model.eval().to(memory_format=torch.contiguous_format), inputs[:2], whole)
        quantize_static(whole, small, Reader(), per_channel=True)
        session = onnxruntime.InferenceSession(small)
        size = Path(small).stat().st_size
    held_out = zip(data[0][HELD_OUT].split(500), data[1][HELD_OUT].split(500), strict=True)
    hits = sum(int((session.run(None, {"input": x.numpy()})[0].argmax(1) == y.numpy()).sum()) for x, y in held_out)
    return {"accuracy": hits / len(data[1][HELD_OUT]), "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4], help="uniform precisions whose size is used")
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--shrink", type=int, default=2, help="by which factor the images' resolution is reduced")
    parser.add_argument("--float32", action="store_true", help="no autocast to bfloat16")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    arguments = parser.parse_args()
    data: Images | None = None
    for bits in arguments.bits:
        for seed in arguments.seeds:
            for method in arguments.methods:
                key = {"size_of_bits": bits, "method": method, "seed": seed, "epochs": arguments.epochs,
                       "shrink": arguments.shrink, "depth": arguments.depth,
                       "dtype": "float32" if arguments.float32 else "bfloat16"}  # fmt: skip
                if any(all(line[k] == v for k, v in key.items()) for line in read(arguments.out)):
                    continue
                data = load("cifar10", arguments.shrink) if data is None else data
                size = size_of_uniform(bits, arguments.depth)
                record = trained(method, size, seed, arguments.epochs, arguments.depth, data, not arguments.float32)
                add(arguments.out, key | record)


def add(path: Path, record: dict[str, Any]) -> None:
    """Add a run to a file, and say what came out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    size = f"{record['file_bytes']} of {record['budget_bytes']} bytes"
    told = (record["size_of_bits"], record["method"], record["seed"], f"{100 * record['accuracy']:.2f} %", size)
    print(*told, list(record["bits"].values()), flush=True)


if __name__ == "__main__":
    main()
