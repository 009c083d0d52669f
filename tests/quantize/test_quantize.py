"""Bit planes, precisions and packing, each against what is obviously right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from apical.errors import BudgetError, CheckpointError, LoadError
from apical.quantize import QuantizedTensor, pack, unpack
from apical.quantize._packing import codes_of, pack_codes, packed_size, unpack_codes
from apical.quantize._planes import Rounded, plane_values, signed_digits
from apical.quantize._precision import BitPrices, choose_bits, soft_gates


@given(st.integers(2, 8), st.integers(0, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_packing_and_unpacking_codes_changes_none(bits: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,), generator=generator).to(torch.int8)
    packed = pack_codes(codes, bits)
    assert packed.numel() == -(-count * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, (count,)), codes)


def a_model() -> tuple[dict[str, torch.Tensor], dict[str, QuantizedTensor]]:
    torch.manual_seed(0)
    scale = float(np.float32(0.1234))
    tensors = {
        "a": torch.randint(-3, 4, (7, 5)).float() * scale,
        "norm": torch.randn(11),
        "count": torch.tensor(5),
        "mask": torch.tensor([True, False]),
        "half": torch.randn(3, dtype=torch.bfloat16),
        "b": torch.randint(-100, 100, (3, 2, 3)).float() * 0.5,
    }
    return tensors, {"a": QuantizedTensor(3, scale), "b": QuantizedTensor(8, 0.5)}


def test_a_packed_model_comes_back_to_the_last_bit_and_is_as_large_as_was_said() -> None:
    tensors, quantized = a_model()
    blobs = pack(tensors, quantized)
    like = {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}
    bits = {n: q.bits for n, q in quantized.items()}
    back = unpack(blobs, like, bits)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert len(save(blobs)) == packed_size(like, bits)


def test_damaged_blobs_and_weights_that_are_no_codes_are_refused() -> None:
    tensors, quantized = a_model()
    blobs = pack(tensors, quantized)
    like = {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()}
    with pytest.raises(LoadError, match="expected"):
        unpack({**blobs, "codes": blobs["codes"][:-1]}, like, {"a": 3, "b": 8})
    with pytest.raises(LoadError, match="no multiple"):
        codes_of(tensors["a"] + 1e-6, quantized["a"])
    with pytest.raises(LoadError, match="do not fit into 2 bits"):
        codes_of(tensors["a"], QuantizedTensor(2, quantized["a"].scale))


def test_leading_digits_are_the_weight_rounded_to_their_precision() -> None:
    weight = torch.linspace(-0.99, 0.99, 200)
    digits = signed_digits(weight, 1.0, 6)
    for planes in range(1, 7):
        values = torch.tensor(plane_values(planes))[:, None]
        rounded, step = (digits[:planes] * values).sum(0), 2.0**-planes
        inside = weight.abs() < 1 - step
        assert float((rounded - weight)[inside].abs().max()) <= step / 2 + 1e-6


def test_planes_start_as_the_weight_and_end_as_integers_times_a_scale() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3) / 5
    planes = Rounded(weight, 7)
    start = planes.contents().sum(0)
    step = planes.scale / 2**7
    inside = weight.abs() < planes.scale - step
    assert inside.float().mean() > 0.95
    assert float((start - weight)[inside].abs().max()) < 0.51 * step
    assert torch.allclose(start, planes.codes().float() * planes.scale / 2**7, atol=1e-6)
    planes.keep_(2)
    assert set(planes.codes().unique().tolist()) <= set(range(-3, 4))


def test_a_saved_weight_of_another_shape_or_type_is_refused() -> None:
    behind = Rounded(torch.randn(2, 3), planes=5)
    state = behind.state_dict()
    for weight in (torch.zeros(3, 3), state["weight"].double()):
        with pytest.raises(CheckpointError, match="saved weight"):
            behind.load_state_dict({**state, "weight": weight})
    behind.load_state_dict(state)


def test_what_stands_behind_a_weight_follows_an_optimizer_to_its_target() -> None:
    """Least squares by gradient descent."""
    torch.manual_seed(0)
    target = torch.randn(40) / 3
    behind = Rounded(torch.randn(40) / 3, 4)
    for _ in range(400):
        behind.follow_(-0.1 * (behind.contents().sum(0) - target))
    final = behind.codes().float() * behind.scale / 2**4
    assert torch.allclose(final, behind.contents().sum(0), atol=1e-6)
    assert float((final - target).abs().mean()) < behind.scale / 2**4


def test_precisions_are_the_best_by_brute_force() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        worth = np.exp(generator.normal(size=(3, 1))) * 4.0 ** -np.arange(4)  # of equal price, falling
        prices = BitPrices((0.1,), ((0.1, 0.1, 0.1),))
        found = choose_bits(worth, prices)
        value = lambda bits: sum(worth[i, : b - 1].sum() for i, b in enumerate(bits))  # noqa: B023, E731
        best = max((b for b in itertools.product(range(2, 6), repeat=3) if prices.load(b) <= 1), key=value)
        assert value(found) == pytest.approx(value(best))


def test_gates_meet_the_cost_and_two_limits_hold_together() -> None:
    worth = np.random.default_rng(1).random((5, 7)) * 4.0 ** -np.arange(7)
    prices = BitPrices((0.05, 0.0), ((0.05,) * 5, (0.01, 0.02, 0.03, 0.04, 0.05)))
    for sharpness in (2.0, 30.0):
        gates = soft_gates(worth, prices, 0.9, sharpness)
        assert prices.load(1 + gates.sum(1)) == pytest.approx(0.9, abs=1e-6)
        assert (np.diff(gates, axis=1) <= 1e-12).all()
    assert prices.load(choose_bits(worth, prices)) <= 1
    with pytest.raises(BudgetError, match="2 bits"):
        choose_bits(worth, BitPrices((0.9,), ((0.1,) * 5,)))


def test_a_linear_layer_prices_as_its_file() -> None:
    layer = nn.Linear(16, 8)
    like = {n: (tuple(p.shape), p.dtype) for n, p in layer.named_parameters()}
    assert packed_size(like, {"weight": 3}) - packed_size(like, {"weight": 2}) == 16


def test_a_top_plane_that_a_norm_makes_worth_nothing_does_not_hold_back_the_planes_below() -> None:
    prices = BitPrices((0.0,), ((0.1, 0.1),))
    worth = np.array([[0.0, 4.0, 2.0, 1.0], [1.0, 1e-3, 1e-4, 1e-5]])
    assert choose_bits(worth, prices) == [5, 5]
    assert choose_bits(worth, BitPrices((0.0,), ((0.14, 0.14),))) == [5, 2]
