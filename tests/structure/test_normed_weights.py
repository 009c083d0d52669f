"""Weights that the forward pass divides by their own norm: which dimension may lose positions, and where gates sit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import apical
from apical.errors import TraceError
from structure.expectations import groups_of, reasons_of, traced
from structure.nets import Net, vectors


def test_weight_norm_has_the_gate_of_what_it_writes_in_the_length_and_of_what_it_reads_in_the_direction() -> None:
    """A direction of zero has no norm, and what is read counts in the norm although its writer is zero."""
    parts = [weight_norm(nn.Conv1d(3, 6, 3)), nn.ReLU(), weight_norm(nn.Conv1d(6, 5, 3)), nn.ReLU(), nn.Conv1d(5, 2, 1)]
    length, direction = (f"parametrizations.weight.original{k}" for k in (0, 1))
    assert groups_of(traced(nn.Sequential(*parts), vectors(2, 3, 9))) == {
        "0.parametrizations.weight": (6, "inner", f"2.{direction}/1"),
        "2.parametrizations.weight": (5, "inner", f"2.{length} 2.bias"),
    }


def test_weight_norm_of_grouped_and_transposed_convolutions() -> None:
    norm = nn.Sequential(
        weight_norm(nn.Conv1d(3, 6, 3)), weight_norm(nn.Conv1d(6, 6, 3, groups=6)), nn.ReLU(),
        weight_norm(nn.ConvTranspose1d(6, 8, 4, 2), dim=1), nn.LeakyReLU(), nn.Conv1d(8, 2, 1),
    )  # fmt: skip
    assert {name: size for name, (size, *_) in groups_of(traced(norm, vectors(2, 3, 9))).items()} == {
        "0.parametrizations.weight": 6, "3.parametrizations.weight": 8,
    }  # fmt: skip


@pytest.mark.parametrize("norm", [lambda m: weight_norm(m, dim=None), spectral_norm])
def test_a_norm_over_output_channels_stays_and_says_what_to_write(norm: Callable[[nn.Module], nn.Module]) -> None:
    """A newborn channel would change all others."""
    net = nn.Sequential(norm(nn.Linear(3, 6)), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    structure = traced(net, vectors(2, 3))
    assert list(groups_of(structure)) == ["2"]
    assert "weight_norm" in reasons_of(structure)["0.parametrizations.weight"]


def test_a_transposed_convolution_whose_inputs_are_normed_is_told_of_the_other_dimension() -> None:
    with pytest.raises(TraceError, match="of a transposed convolution with dim=1"):
        apical.trace(nn.Sequential(weight_norm(nn.ConvTranspose1d(3, 6, 4)), nn.Conv1d(6, 2, 1)), vectors(2, 3, 9))


def cosine(m: Net, x: Tensor) -> Tensor:
    return F.linear(F.normalize(m.a(x)), F.normalize(m.classes))


def by_hand(m: Net, x: Tensor) -> Tensor:
    weight = m.classes * m.length[:, None] / m.classes.pow(2).sum(1).add(1e-6).sqrt()[:, None]
    return torch.relu(m.a(x)) @ weight.t()


@pytest.mark.parametrize("forward", [cosine, by_hand])
def test_classes_that_are_normed_in_the_forward_pass_let_their_features_go(forward: Callable[..., Tensor]) -> None:
    classes, length = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (4,)))
    parts = {"length": length} if forward is by_hand else {}
    structure = traced(Net(forward, a=nn.Linear(3, 6), classes=classes, **parts), vectors(2, 3))
    assert groups_of(structure)["a"][0] == 6
    assert "classes/1" in groups_of(structure)["a"][2]
