"""Models and inputs that cannot be traced: each its own clear error."""

from __future__ import annotations

import inspect
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import apical
from apical.baselines import Comparator, Uniform
from apical.errors import ApicalError, TraceError
from apical.export import export_onnx, export_pt2
from apical.structure import Call, Structure
from apical.timing import measure_latency_table
from structure.expectations import traced
from structure.nets import Net, conv, image, unit, vectors

MLP = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def with_stray_tensor() -> nn.Module:
    model = mlp()
    model.remembered = model[0](torch.zeros(1, 3))  # a non-leaf tensor as attribute
    return model


def with_lost_weights() -> nn.Module:
    model = mlp()
    nn.init.constant_(model[0].bias, float("nan"))
    return model


def packed(m: Any, x: Tensor) -> Tensor:
    sequence = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3]), batch_first=True)
    return m.fc(nn.utils.rnn.pad_packed_sequence(m.rnn(sequence)[0], batch_first=True)[0])


@dataclass
class Scores:
    values: Tensor


@dataclass
class Batch:
    x: Tensor


def masks_in_place(m: Any, x: Tensor) -> Tensor:
    m.a.weight.data *= m.mask
    return m.b(m.a(x))


def with_chance() -> nn.Module:
    return Net(lambda m, x: m.b(nn.functional.dropout(m.a(x).relu(), 0.3)), a=nn.Linear(3, 8), b=nn.Linear(8, 2))


X = torch.zeros(2, 3)
Bad = tuple[Callable[[], Any], Any, str]
BAD: dict[str, Bad] = {
    "not a module": (lambda: torch.relu, X, "expected a torch.nn.Module"),
    "no parameters": (nn.ReLU, X, "no parameters"),
    "nothing to remove": (lambda: nn.Linear(3, 4), X, "nothing in Linear can be grown or removed"),
    "meta": (lambda: mlp().to("meta"), X, "meta device"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2)), X, "not initialised yet"),
    "data parallel": (lambda: nn.DataParallel(mlp()), X, r"wrapped in DataParallel: .*\.module"),
    "wrapped inside": (lambda: nn.Sequential(nn.DataParallel(mlp())), X, "0 is wrapped in DataParallel"),
    "compiled": (lambda: torch.compile(mlp()), X, r"wrapped in OptimizedModule: .*_orig_mod"),
    "stray tensor": (with_stray_tensor, X, "cannot be copied"),
    "wrong width": (mlp, torch.zeros(2, 4), r"does not run on the example inputs \(float32 \(2, 4\)\)"),
    "wrong dtype": (mlp, torch.zeros(2, 3, dtype=torch.long), r"does not run on the example inputs.*dtype"),
    "half the dtype": (mlp, torch.zeros(2, 3).half(), r"does not run on the example inputs.*dtype"),
    "no inputs": (mlp, (), "does not run on the example inputs"),
    "too many inputs": (mlp, (X, X), "does not run on the example inputs"),
    "not a tensor": (mlp, (3,), "does not run on the example inputs"),
    "text": (mlp, "hello", "example_inputs must be a tensor or a tuple"),
    "a set": (mlp, {3}, "example_inputs must be a tensor or a tuple"),
    "a dictionary without names": (mlp, {3: X}, "example_inputs must be a tensor or a tuple"),
    "a dictionary of other names": (mlp, {"x": X}, r"does not run on the example inputs \(x=float32 \(2, 3\)\)"),
    "a shape": (mlp, (2, 3), r"pass torch.zeros\(2, 3\)"),
    "an array": (mlp, X.numpy(), r"got ndarray; pass torch.from_numpy"),
    "no rows": (mlp, X[:0], r"example_inputs\[0\] has no element, its shape is \(0, 3\)"),
    "NaN": (mlp, {"input": X + float("nan")}, r"example_inputs\['input'\] holds 6 values that are not numbers"),
    "infinite": (mlp, torch.full((2, 3), float("inf")), "outputs of Sequential .* not numbers .*: its inputs are too"),
    "NaN in the weights": (with_lost_weights, torch.ones(2, 3), r"not numbers \(NaN\), .*: 0.bias of the model is"),
    "no batch dimension": (
        lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), torch.zeros(3),
        r"They lack the batch dimension: the model runs on \(1, 3\)",
    ),
    "inputs on meta": (mlp, X.to("meta"), "an example input is on meta"),
    "data-dependent branch": (
        lambda: Net(lambda m, x: m.a(x) if x.sum() > 0 else m.b(x), a=mlp(), b=mlp()), X,
        "torch.export cannot trace Net",
    ),
    "packed sequence": (
        lambda: Net(packed, rnn=nn.LSTM(3, 4, batch_first=True), fc=nn.Linear(4, 2)), vectors(2, 5, 3),
        "packed sequences",
    ),
    "an output of a class of its own": (
        lambda: Net(lambda m, x: Scores(m.a(x)), a=mlp()), X,
        r"If Scores is a dataclass, call torch.export.register_dataclass\(Scores\) .* tuple or dict\.$",
    ),
    "an input of a class of its own": (
        lambda: Net(lambda m, batch: m.a(batch.x), a=mlp()), (Batch(X),),
        r"If Batch is a dataclass, call torch.export.register_dataclass\(Batch\) .* let forward take its tensors\.$",
    ),
    "a weight that is masked in place": (
        lambda: Net(masks_in_place, a=nn.Linear(3, 8), b=nn.Linear(8, 2), mask=torch.ones(8, 3)), X,
        r"multiply in the call instead, as in F\.conv2d\(x, self\.weight \* self\.mask",
    ),
    "random in eval mode": (
        with_chance, X + 1, r"a \(8\): the model's output is random in eval mode .*self\.training; b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    build, inputs, message = BAD[name]
    with pytest.raises(TraceError, match=message) as caught:
        apical.trace(build(), inputs)
    assert isinstance(caught.value, ApicalError)
    assert isinstance(caught.value, ValueError)


def test_scripted_modules_are_refused() -> None:
    class Scripted(nn.Module):
        """Stands in for torch.jit.ScriptModule, which is deprecated."""

    Scripted.__name__ = "RecursiveScriptModule"
    model = Scripted()
    model.fc = nn.Linear(3, 3)
    with pytest.raises(TraceError, match="scripted"):
        apical.trace(model, X)


def test_parameters_on_two_devices() -> None:
    model = mlp()
    model[2].weight = nn.Parameter(torch.empty(2, 8, device="meta"))
    with pytest.raises(TraceError, match=r"2\.weight is on the meta device"):
        apical.trace(model, X)


@pytest.mark.parametrize("given", [X, [X], (2, 3), "x", {3: X}, 0])
def test_keyword_arguments_without_names(given: Any) -> None:
    with pytest.raises(TraceError, match="example_kwargs must be a dict"):
        apical.trace(mlp(), X, given)


@pytest.mark.parametrize("given", [0.5, object()])
def test_state_outputs_that_list_nothing(given: Any) -> None:
    with pytest.raises(TraceError, match=r"state_outputs must list positions or keys .*, got "):
        apical.trace(mlp(), X, state_outputs=given)


@pytest.mark.parametrize("state_outputs", [(7,), ("hidden",), (-3,)])
def test_state_outputs_that_do_not_exist(state_outputs: tuple[Any, ...]) -> None:
    net = Net(lambda m, x: (m.last(h := m.a(x)), h), a=unit(3, 6), last=conv(6, 2))
    with pytest.raises(TraceError, match="state_outputs"):
        apical.trace(net, image(), state_outputs=state_outputs)


def test_the_error_of_an_unfollowed_model_lists_the_reasons() -> None:
    net = Net(lambda m, x: m.last(m.a(x).softmax(1)), a=conv(3, 6), last=conv(6, 2))
    with pytest.raises(TraceError, match=r"a \(6\): softmax over channels.*last \(2\): reaches the model's output"):
        apical.trace(net, image())


# ---- ways to call -------------------------------------------------------------------------------------------------


def test_a_tensor_a_tuple_and_a_list_are_the_same() -> None:
    structures = [apical.trace(MLP, inputs) for inputs in (X, (X,), [X])]
    assert structures[0] == structures[1] == structures[2]


def test_keyword_inputs() -> None:
    net = Net(
        lambda m, x, *, scale, mask=None: m.last(m.a(x) * scale * (1 if mask is None else mask)),
        a=unit(3, 6), last=conv(6, 2),
    )  # fmt: skip
    scale, mask = torch.tensor(2.0), torch.ones(2, 1, 8, 8)
    structure = apical.trace(net, image(), {"scale": scale, "mask": mask})
    assert [g.name for g in structure.groups] == ["a.0"]
    assert [g.name for g in apical.trace(net, (), {"x": image()[0], "scale": scale}).groups] == ["a.0"]
    with pytest.raises(TraceError, match=r"float32 \(2, 3, 8, 8\), scal=float32 \(\)"):
        apical.trace(net, image(), {"scal": scale})


def test_nested_inputs_and_outputs() -> None:
    def forward(m: Any, batch: dict[str, Any]) -> dict[str, Any]:
        h = m.a(batch["images"][0]) + m.b(batch["images"][1])
        return {"scores": {"all": [m.last(h)]}, "features": h}

    net = Net(forward, a=unit(3, 6), b=unit(3, 6), last=conv(6, 2))
    inputs = ({"images": [image()[0], image()[0]]},)
    with pytest.raises(TraceError, match="reaches the model's output"):
        apical.trace(net, inputs)
    structure = apical.trace(net, inputs, state_outputs=("features",))
    assert [(g.name, g.role) for g in structure.groups] == [("a.0", "stream")]


def test_inputs_that_are_not_tensors_and_outputs_that_are_none() -> None:
    def forward(m: Any, x: Tensor, times: int, flag: bool, name: str | None = None) -> tuple[Any, ...]:
        for _ in range(times):
            x = m.b(x) if flag else x
        return m.last(x), None, times

    net = Net(forward, b=unit(3, 3), last=nn.Sequential(unit(3, 6), conv(6, 2)))
    structure = apical.trace(net, (image()[0], 2, True, None))
    assert "last.0.0" in [g.name for g in structure.groups]


def test_a_model_without_batch_dimension_or_with_batch_of_one() -> None:
    net = nn.Sequential(unit(3, 6), conv(6, 2))
    one, two = apical.trace(net, image(batch=1)), apical.trace(net, image(batch=2))
    assert one.groups == two.groups
    assert 2 * one.macs() == two.macs()
    traced(net, image(batch=1))


def test_a_dictionary_is_keyword_arguments_everywhere(tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    for inputs in ({"input": x}, UserDict(input=x), Call((), {"input": x})):
        assert apical.trace(mlp(), inputs) == apical.trace(mlp(), x)
    model, inputs = mlp(), {"input": x}
    structure = apical.trace(model, inputs)
    grower = apical.Grower(model, torch.optim.SGD(model.parameters(), lr=0.1), inputs, budget="50% macs", epochs=2)
    assert grower.structure == structure
    assert Comparator(Uniform(), mlp(), None, inputs, "50% macs", 1).structure == structure
    assert measure_latency_table(mlp(), structure, inputs).layers
    assert export_pt2(mlp(), inputs, tmp_path / "m.pt2").batch_sizes == (2, 3, 1)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert export_onnx(mlp(), inputs, tmp_path / "m.onnx").difference <= 1e-5


# ---- reasons ------------------------------------------------------------------------------------------------------


def old_weight_norm(model: nn.Module) -> None:
    torch.nn.utils.weight_norm(model[0])


def old_spectral_norm(model: nn.Module) -> None:
    torch.nn.utils.spectral_norm(model[0])


def masked(model: nn.Module) -> None:
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (old_weight_norm, r"0\.weight .*WeightNorm hook.*parametrizations\.weight_norm"),
        (old_spectral_norm, r"0\.weight .*SpectralNorm hook.*parametrizations\.spectral_norm"),
        (masked, r'0\.weight .*L1Unstructured hook.*prune\.remove\(module, "weight"\)'),
    ],
)
def test_weights_that_hooks_compute_are_named_with_the_way_out(change: Callable[[Any], None], advice: str) -> None:
    model = mlp()
    change(model)
    with pytest.raises(TraceError, match=advice):
        apical.trace(model, X)


def branching(m: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:
        x = x + 1
    return m.a(x)


def insisting(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    assert y.shape[1] == 8
    return m.b(y)


def test_reasons_name_the_line_of_the_code() -> None:
    with pytest.raises(TraceError, match=r"test_errors\.py:\d+ \(if x\.sum\(\) > 0:\)"):
        apical.trace(Net(branching, a=mlp()), X)
    with pytest.raises(TraceError, match=r"AssertionError: .*\(at test_errors\.py:\d+, `assert y\.shape\[1\] == 8`\)"):
        apical.trace(Net(insisting, a=nn.Linear(3, 8), b=nn.Linear(8, 2)), X)


def test_the_useful_reason_comes_first() -> None:
    heads = {f"h{i}": conv(3, 2) for i in range(9)}
    net = Net(
        lambda m, x: [m.last(m.a(x).softmax(1)), *(getattr(m, name)(x) for name in heads)],
        a=conv(3, 6), last=conv(6, 2), **heads,
    )  # fmt: skip
    with pytest.raises(TraceError, match=r"removed\. a \(6\): softmax over channels.*and others: reaches the model's"):
        apical.trace(net, image())


class Shuffled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(1)[0]


def test_a_reason_says_which_module_and_which_line_it_speaks_of() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), Shuffled(), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 2, 1))
    structure = apical.trace(net, torch.randn(1, 3, 4, 4))
    where = {part.name: part.where for part in structure.frozen}
    line = inspect.getsourcelines(Shuffled.forward)[1] + 1
    assert where == {"0": f"in 1, at test_errors.py:{line}, `return x.sort(1)[0]`", "3": ""}
    assert where["0"] in str(structure)
    assert Structure.from_dict(structure.to_dict()) == structure


def test_a_normalisation_is_named_by_its_module_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    assert [part.where for part in apical.trace(net, torch.randn(4, 3)).frozen] == ["in 1", ""]
