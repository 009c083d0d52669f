"""Any arguments of an export: a file that was checked, or the project's error and no file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from apical.errors import ApicalError
from apical.export import export_onnx, export_pt2
from apical.quantize import QuantizedTensor


class Two(nn.Module):
    """Two inputs, one of them by its name only, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> dict[str, Tensor]:
        y = self.layer(x)
        return {"y": y, "scaled": y if scale is None else y * scale}


X = torch.ones(2, 2)
INPUTS: list[Any] = [
    X, (X,), [X], {"x": X}, {"x": X, "scale": torch.ones(2, 1)}, {"x": X, "scale": None}, {"y": X}, (X, X),
    torch.ones(2, 3), torch.ones(2), torch.tensor(1.0), torch.zeros(0, 2), X.double(), X.to("meta"), X.long(), None,
    3, "x", (), {}, [[X]],
]  # fmt: skip
OPTIONS: dict[str, list[Any]] = {
    "path": ["m.file", "", ".", "a/b/m.file", "\0", "\udcff", "/dev/full", "x" * 300, Path("m.file")],
    "batch_dim": [0, 1, -1, 2, None, True, "0", 1.0, 10**30],
    "tolerance": [1e-5, 0, 0.0, -1, float("nan"), float("inf"), "1", None],
    "input_names": [None, ["x"], ["x", "scale"], ["x", "x"], [""], [3], "x", 3, ["layer.weight"]],
    "output_names": [None, ["y"], ["a", "b"], ["a", "a"], ["x", "y"], [None], "ab", 3],
    "quantized": [None, {}, {"layer.weight": QuantizedTensor(3, 0.5)}, {"none": QuantizedTensor(3, 0.5)}, 3],
}
OF_ONNX = ("input_names", "output_names", "quantized")


@pytest.mark.attack
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=-(-settings().max_examples // 4), phases=[Phase.explicit, Phase.generate])
@given(
    kind=st.sampled_from(["pt2", "onnx"]),
    inputs=st.sampled_from(INPUTS),
    drawn=st.dictionaries(st.sampled_from(sorted(OPTIONS)), st.integers(0, 99), max_size=2),
)
def test_any_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, inputs: Any, drawn: dict[str, int]
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    shutil.rmtree(tmp_path / "here", ignore_errors=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = {name: OPTIONS[name][n % len(OPTIONS[name])] for name, n in drawn.items()}
    options = {name: value for name, value in options.items() if kind == "onnx" or name not in OF_ONNX}
    torch.manual_seed(0)
    model = Two()
    try:
        report = (export_onnx if kind == "onnx" else export_pt2)(model, inputs, **{"path": "m.file", **options})
    except ApicalError:
        assert not [path for path in Path().rglob("*") if path.is_file()]
    else:
        assert report.path.is_file()
    assert model.training
