"""Write the network of a finished run as ONNX, and run it without PyTorch.

apical train digits
python examples/export_onnx.py runs/digits
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from apical.export import export_onnx
from apical.runs import load_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder that `apical train` wrote")
    args = parser.parse_args()

    model, full_model, example = load_run(args.run)
    sizes = [sum(p.numel() for p in net.parameters()) for net in (model, full_model)]
    print(f"{sizes[0]:,} parameters; the full model had {sizes[1]:,}")

    torch.manual_seed(0)
    inputs = torch.randn(example[0].shape)
    path = args.run / "model.onnx"
    print(f"wrote {export_onnx(model, inputs, path)}")

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).standard_normal((5, *inputs.shape[1:]), dtype=np.float32)
    (logits,) = session.run(None, {"input": batch})
    print(f"classes of five pictures of noise: {logits.argmax(1).tolist()}")


if __name__ == "__main__":
    main()
