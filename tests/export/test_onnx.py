"""Portable files compute what the model computes, at every batch size, or are not written."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apical import Structure, models, resize_, trace
from apical.errors import ApicalError, ExportError, LoadError
from apical.export import export_onnx, export_pt2, save
from apical.export._portable import largest_difference
from apical.quantize import QuantizedTensor
from marks import quick

onnxruntime = pytest.importorskip("onnxruntime")

FORMATS: dict[str, Callable[..., Any]] = {"onnx": export_onnx, "pt2": export_pt2}
NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int | None]] = {
    "residual": (lambda: models.CifarResNet(8, width=4), lambda: torch.randn(1, 3, 16, 16), 0),
    "zero-pad": (lambda: models.CifarResNet(8, width=4, shortcut="zero_pad"), lambda: torch.randn(2, 3, 16, 16), 0),
    "depthwise": (lambda: models.mobilenet_v1(10, 0.125), lambda: torch.randn(2, 3, 32, 32), 0),
    "recurrent": (lambda: models.LSTMLanguageModel(31, 12, (16,)), lambda: torch.randint(0, 31, (5, 2)), 1),
    "attention": (lambda: models.GPT(31, 8, 16, 2, 2), lambda: torch.randint(0, 31, (2, 8)), 0),
}


@cache
def structure_of(name: str) -> Structure:
    """Traced once."""
    build, example, _ = NETS[name]
    with torch.random.fork_rng():
        return trace(build(), (example(),))


def halved(name: str) -> tuple[nn.Module, Tensor, int | None]:
    """A net with half of every group and without its first block, as growing would leave it."""
    build, example, batch_dim = NETS[name]
    net, x, structure = build(), example(), structure_of(name)
    keep = {group.name: range(0, group.size, 2) for group in structure.groups}
    resize_(net, structure, {k: list(v) for k, v in keep.items()}, [block.name for block in structure.blocks][:1])
    return net, x, batch_dim


@pytest.mark.parametrize(
    ("name", "kind"),
    quick(itertools.product(NETS, FORMATS), [("residual", "onnx"), ("recurrent", "onnx"), ("attention", "pt2")]),
)
def test_a_resized_model_equals_its_file_at_other_batch_sizes(name: str, kind: str, tmp_path: Path) -> None:
    net, x, batch_dim = halved(name)
    before = copy.deepcopy(net.train().state_dict())
    report = FORMATS[kind](net, x, tmp_path / f"net.{kind}", batch_dim=batch_dim)
    assert all(module.training for module in net.modules()), "the model is left as it was"
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert report.difference <= 1e-5
    assert len(report.batch_sizes) >= 2
    assert [p.name for p in tmp_path.iterdir()] == [f"net.{kind}"]


def test_the_onnx_file_runs_without_this_library(tmp_path: Path) -> None:
    net, x, _ = halved("residual")
    export_onnx(net, x, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "input"
    for size in (1, 2, 7):
        batch = torch.randn(size, 3, 16, 16)
        (got,) = session.run(None, {"input": batch.numpy()})
        with torch.no_grad():
            assert torch.allclose(net.eval()(batch), torch.from_numpy(got), rtol=1e-5, atol=1e-5)


class Several(nn.Module):
    """Several inputs and outputs, one of them None."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.fc, self.form = nn.Linear(2, 3), form

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        both = torch.cat([self.fc(x), self.fc(x if y is None else y)])
        returned = {"dict": {"logits": self.fc(x), "none": None, "both": both}, "pair": (self.fc(x), (None, both))}
        return returned.get(self.form, both)


X = torch.ones(2, 2)
NAMED: dict[str, tuple[str, Any, list[str], list[str]]] = {
    "one": ("", X, ["input"], ["output"]),
    "one by keyword": ("", {"x": X}, ["x"], ["output"]),
    "two": ("pair", (X, X), ["input_0", "input_1"], ["output_0", "output_1"]),
    "a dict": ("dict", {"x": X, "y": X}, ["x", "y"], ["logits", "both"]),
}


@pytest.mark.parametrize("case", quick(NAMED, ["two", "a dict"]))
def test_inputs_outputs_and_the_batch_have_ordinary_names(case: str, tmp_path: Path) -> None:
    form, inputs, expected_inputs, expected_outputs = NAMED[case]
    export_onnx(Several(form), inputs, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert {value.name: value.shape for value in session.get_inputs()} == {n: ["batch", 2] for n in expected_inputs}
    assert [value.name for value in session.get_outputs()] == expected_outputs
    assert {value.shape[0] for value in session.get_outputs()} <= {"batch", "2*batch", "batch + batch"}


def test_a_fixed_batch_size_can_be_asked_for(tmp_path: Path) -> None:
    assert export_onnx(nn.Linear(2, 2), X, tmp_path / "net.onnx", batch_dim=None).batch_sizes == ()


class Branches(nn.Module):
    """Depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


@pytest.mark.parametrize("kind", FORMATS)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot export Branches"):
        FORMATS[kind](Branches(), torch.ones(1, 2), tmp_path / f"net.{kind}")
    unrolled, tokens, _ = halved("recurrent")  # the number of time steps is a constant of the file
    with pytest.raises(ExportError, match="batch_dim=None"):
        FORMATS[kind](unrolled, tokens, tmp_path / f"net.{kind}", batch_dim=0)
    assert not list(tmp_path.iterdir())


def test_a_difference_beyond_the_tolerance_writes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    target.write_bytes(b"the file before")
    with pytest.raises(ExportError, match="does not compute what the model computes"):
        export_onnx(nn.Linear(2, 2), torch.ones(1, 2), target, tolerance=-1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert target.read_bytes() == b"the file before"


def test_wrong_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"no dimension 3"):
        export_onnx(nn.Linear(2, 2), torch.ones(1, 2), tmp_path / "a.onnx", batch_dim=3)
    with pytest.raises(ExportError, match=r"tuple or dict of tensors, got \['int'\]"):
        export_pt2(nn.Linear(2, 2), (3,), tmp_path / "a.pt2")  # type: ignore[arg-type]
    with pytest.raises(ApicalError, match=r"pass the inner \.module"):
        export_onnx(nn.DataParallel(nn.Linear(2, 2)), torch.ones(1, 2), tmp_path / "a.onnx")


def test_a_file_that_cannot_be_read_back_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"udcff.* cannot be read back"):
        export_pt2(nn.Linear(2, 3), torch.ones(1, 2), tmp_path / "\udcff")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "match"),
    [({"quantized": {"none": QuantizedTensor(3, 0.5)}}, "quantized names 'none', which the model does not have"),
     ({"quantized": 3}, "quantized must have a QuantizedTensor by name"),
     ({"quantized": {"weight": 3}}, "quantized must have a QuantizedTensor by name"),
     ({"batch_dim": "0"}, "batch_dim must be the number of a dimension, or None, got '0'"),
     ({"tolerance": "1"}, "tolerance must be a number, got '1'"),
     ({"input_names": "x"}, "input_names must be a list of names, got 'x'"),
     ({"input_names": ["x", "y"]}, "input_names has 2 names for 1 tensors"),
     ({"output_names": [""]}, "output_names must be a list of names"),
     ({"input_names": ["x"], "output_names": ["x"]}, "output_names names 'x', which names another tensor"),
     ({"input_names": ["weight"]}, "input_names names 'weight', which names another tensor")],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=match):
        export_onnx(nn.Linear(2, 3), torch.ones(1, 2), tmp_path / "net.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_saving_names_what_quantized_should_be(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="quantized must have a QuantizedTensor by name"):
        save(nn.Linear(2, 3), tmp_path / "net", quantized=3)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("inputs", "match"),
    [(torch.zeros(1, 2, device="meta"), "on the meta device, without values"),
     (torch.zeros(0, 2), r"input 0 has shape \(0, 2\), no example along dimension 0"),
     ({"y": torch.ones(1, 2)}, r"Linear\.forward does not take these example_inputs: missing a required argument"),
     (torch.ones(2, 2).double(), r"the model itself does not run on inputs \(2, 2\) torch\.float64")],
)  # fmt: skip
def test_inputs_on_which_the_model_itself_does_not_run_are_named(inputs: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=match):
        export_pt2(nn.Linear(2, 3), inputs, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_the_difference_counts_shapes_nan_and_scale() -> None:
    one = torch.ones(2)
    assert largest_difference(one, torch.ones(3)) == float("inf")
    assert largest_difference((one, one), one) == float("inf")
    assert not largest_difference(one, one * float("nan")) <= 1
    assert largest_difference({"a": 100 * one}, {"a": 101 * one}) == pytest.approx(0.01)
