"""Bits as a part of growth: the budget is met, the model stays plain, and what is saved is what was trained."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import apical
from apical.errors import BudgetError, CheckpointError, ConfigError
from apical.export import export_onnx, load_quantized
from apical.growth import BitConfig
from apical.models import CifarResNet
from marks import slow

EPOCHS, STEPS, WEIGHTS_FILE = 6, 5, "model.safetensors"


def build(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(depth=8, width=width, in_channels=1)


@cache
def structure_of(width: int) -> apical.Structure:
    """Traced once."""
    return apical.trace(build(width), torch.zeros(1, 1, 8, 8))


class Training:
    """A model, its optimizer and Grower, and a loop on images that any network learns a little of."""

    def __init__(self, budget: str, make: Any = torch.optim.SGD, **options: Any) -> None:
        width = options.pop("width", 4)
        self.model, structure = build(width), structure_of(width)
        extra = {"momentum": 0.9, "weight_decay": 1e-4} if make is torch.optim.SGD else {}
        self.optimizer = make(self.model.parameters(), lr=0.02, **extra)
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(STEPS, 16, 1, 8, 8, generator=generator)
        self.y = torch.randint(10, (STEPS, 16), generator=generator)
        self.grower = apical.Grower(
            self.model,
            self.optimizer,
            self.x[0, :1],
            budget,
            EPOCHS,
            steps_per_epoch=STEPS,
            structure=structure,
            **options,
        )

    def epochs(self, count: int) -> None:
        for _ in range(count):
            self.model.train()
            for x, y in zip(self.x, self.y, strict=True):
                loss = nn.functional.cross_entropy(self.model(x), y)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.grower.end_step()
            self.grower.end_epoch()


def full_bytes() -> int:
    return sum(t.numel() * t.element_size() for t in build().state_dict().values())


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_a_budget_of_size_alone_is_met_to_the_byte_and_leaves_widths_alone(tmp_path: Path, make: Any) -> None:
    training = Training("20% size", make)
    names = [n for n, _ in training.model.named_parameters()]
    training.epochs(EPOCHS)
    training.grower.finish()
    model, quantized = training.model, training.grower.quantized
    assert [n for n, _ in model.named_parameters()] == names == [n for n, _ in build().named_parameters()]
    assert all(p.shape == q.shape for p, q in zip(model.parameters(), build().parameters(), strict=True))
    assert len({q.bits for q in quantized.values()}) > 1, "all layers have one precision: nothing was chosen"
    apical.save(model, tmp_path, quantized=quantized)
    size = (tmp_path / WEIGHTS_FILE).stat().st_size
    assert 0.99 * 0.2 * full_bytes() <= size <= 0.2 * full_bytes()
    assert_equal(apical.load(build(), tmp_path), model)
    assert load_quantized(tmp_path) == quantized
    assert "Bits by epoch" in training.grower.report(tmp_path / "report.html").read_text()
    for name, q in quantized.items():
        weight = model.get_parameter(name).detach()
        codes = (weight / q.scale).round()
        assert torch.equal(codes * q.scale, weight)
        assert float(codes.abs().max()) < 2 ** (q.bits - 1)


def test_precisions_shrink_settle_and_stay_and_the_rest_trains_on() -> None:
    training = Training("20% size")
    training.epochs(EPOCHS)
    history = [record["bits"] for record in training.grower.history]
    assert sum(history[0].values()) > sum(history[-1].values())
    assert history[-1] == history[-2]
    assert training.grower.quantized
    before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
    with pytest.warns(UserWarning, match="end_epoch was called"):
        training.epochs(1)
    moved = {n for n, p in training.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert not moved & set(training.grower.quantized)


def test_macs_and_size_are_met_together() -> None:
    training = Training("50% macs, 10% size", width=8, growth_end=0.3)
    training.epochs(EPOCHS)
    grower = training.grower
    grower.finish()
    assert 0.95 <= grower.history[-1]["macs_fraction"] / 0.5 <= 1.01
    assert grower._bits is not None
    assert 0.98 <= grower._bits.load() <= 1
    assert grower.history[-1]["params_fraction"] < 0.9


def test_bit_operations_are_priced_by_the_macs_of_each_layer() -> None:
    training = Training("10% bitops")
    training.epochs(EPOCHS)
    training.grower.finish()
    structure, spent = training.grower.structure, 0
    sizes = [g.size for g in structure.groups]
    for name, q in training.grower.quantized.items():
        for term in structure.terms:
            if term.modules == (name.removesuffix(".weight"),):
                spent += term.coefficient * math.prod(a.length(sizes) for a in term.axes) * q.bits * 32
    assert 0.97 <= spent / (structure.macs() * 32 * 32) / 0.1 <= 1


def test_what_the_layer_is_worth_decides_its_bits() -> None:
    """Of two layers of equal price the one whose gradient is larger gets more bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    grower = apical.Grower(model, optimizer, torch.zeros(1, 32), "20% size", 4, steps_per_epoch=4)
    for _ in range(4):
        for _ in range(4):
            for layer, factor in ((model[0], 0.1), (model[1], 10.0)):
                layer.weight.grad = factor * torch.randn(32, 32)
            optimizer.step()
        grower.end_epoch()
    grower.finish()
    bits = [q.bits for q in grower.quantized.values()]
    assert bits[1] >= bits[0] + 3


@pytest.mark.parametrize("stopped", [4, slow(1)])
def test_a_resumed_training_is_the_same_to_the_last_bit(stopped: int) -> None:
    whole = Training("20% size")
    whole.epochs(stopped)
    saved = [copy.deepcopy(part.state_dict()) for part in (whole.grower, whole.model, whole.optimizer)]
    other = Training("20% size")
    for part, state in zip((other.grower, other.model, other.optimizer), saved, strict=True):
        part.load_state_dict(state)
    for training in (whole, other):
        training.epochs(EPOCHS - stopped)
        training.grower.finish()
    assert whole.grower.quantized == other.grower.quantized
    assert_equal(whole.model, other.model)


def test_a_training_can_go_back_to_before_its_bits_were_settled() -> None:
    """As to a resumed one, so that what follows is the same to the last bit."""
    whole = Training("20% size")
    whole.epochs(1)
    parts = (whole.grower, whole.model, whole.optimizer)
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    whole.epochs(EPOCHS - 1)
    first = copy.deepcopy(whole.model.state_dict())
    assert whole.grower.quantized
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    whole.epochs(EPOCHS - 1)
    again = whole.model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_deep_copy_goes_on_by_itself() -> None:
    training = Training("20% size")
    training.epochs(2)
    twin = copy.deepcopy(training)
    twin.epochs(1)
    training.epochs(1)
    assert_equal(training.model, twin.model)


def test_uniform_precision_is_the_most_that_fits() -> None:
    training = Training("20% size", bits=BitConfig(precision="uniform"))
    training.epochs(1)
    (bits,) = set(training.grower.history[0]["bits"].values())
    prices = training.grower._bits
    assert prices is not None
    layers = len(training.grower.history[0]["bits"])
    assert prices._prices.load([bits] * layers) <= 1 < prices._prices.load([bits + 1] * layers)


def test_onnx_holds_integers(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    training = Training("20% size")
    training.epochs(EPOCHS)
    training.grower.finish()
    quantized = training.grower.quantized
    report = export_onnx(training.model, training.x[0, :1], tmp_path / "model.onnx", quantized=quantized)
    assert report.difference <= 1e-5
    graph = onnx.load(tmp_path / "model.onnx").graph
    kinds = {v.name: v.data_type for v in graph.initializer}
    assert [n.op_type for n in graph.node].count("DequantizeLinear") == len(quantized)
    assert all(kinds[f"{name}.codes"] == onnx.TensorProto.INT8 and name not in kinds for name in quantized)


def test_what_cannot_be_met_is_refused_before_training() -> None:
    with pytest.raises(BudgetError, match="two bits for every weight"):
        Training("3% size")
    with pytest.raises(BudgetError, match="two bits for every weight"):
        Training("50% macs, 10 B")
    with pytest.raises(BudgetError, match="8 bits"):
        Training("60% size")
    with pytest.raises(ConfigError, match="add one"):
        Training("50% macs", bits=BitConfig())
    with pytest.raises(ConfigError, match="weights to quantise"):
        Training("20% size", bits=BitConfig(ignore=("conv1", "layer1", "layer2", "layer3", "fc")))
    other = Training("20% size", bits=BitConfig(settle=0.4))
    with pytest.raises(CheckpointError, match="settle"):
        Training("20% size").grower.load_state_dict(other.grower.state_dict())
    with pytest.raises(ConfigError, match="max_bits"):
        BitConfig(max_bits=9)


def test_finishing_early_warns_and_still_leaves_integers() -> None:
    training = Training("20% size")
    training.epochs(1)
    with pytest.warns(UserWarning, match="rounded without training"):
        training.grower.finish()
    assert set(training.grower.quantized) == {n for n in dict(training.model.named_parameters())
                                              if n.endswith(("conv1.weight", "conv2.weight", "shortcut.0.weight",
                                                             "fc.weight"))}  # fmt: skip


def test_other_labels_lead_to_other_bits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.tensor(digits.data[::3], dtype=torch.float32).view(-1, 1, 8, 8) / 16
    right = torch.tensor(digits.target[::3])
    shuffled = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(1))]
    found = []
    for labels in (right, shuffled):
        model = build(6)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        grower = apical.Grower(model, optimizer, x[:1], "12% size", 4, structure=structure_of(6))
        for _ in range(4):
            for inputs, targets in zip(x.split(64), labels.split(64), strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
            grower.end_epoch()
        grower.finish()
        found.append([quantized.bits for quantized in grower.quantized.values()])
    assert found[0] != found[1], found


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_a_moving_average_ends_as_the_same_integers(decay: float, tmp_path: Path) -> None:
    """And with its own means of what is not quantised."""
    training = Training("25% size")
    average = AveragedModel(training.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    training.optimizer.register_step_post_hook(lambda *_: average.update_parameters(training.model))
    training.grower.add_copy(average)
    training.epochs(EPOCHS)
    training.grower.finish()
    quantized = training.grower.quantized
    assert quantized
    for name in quantized:
        assert torch.equal(average.module.get_parameter(name), training.model.get_parameter(name)), name
    assert not torch.equal(average.module.get_parameter("bn1.bias"), training.model.get_parameter("bn1.bias"))
    apical.save(average.module, tmp_path / "average", quantized=quantized)
    loaded = apical.load(build(), tmp_path / "average")
    assert torch.equal(loaded.get_parameter("fc.weight"), average.module.get_parameter("fc.weight"))
