"""Gates of recurrent layers grow with the hidden units, and which of them stay is decided by the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import apical
from apical.budget import BoundBudget, Budget
from apical.growth._allocation import unit_prices
from apical.models import split_gates_
from growth.cases import adamw, epochs, grown, structure_of
from growth.cases import built as built_case
from marks import slow

EPOCHS, STEPS, BATCH, LENGTH, SEQUENCES = 12, 16, 64, 8, 512


class Last(nn.Module):
    """A linear function of the state after the last step."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(inputs, 16)
        self.head = nn.Linear(16, outputs)
        split_gates_(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.rnn(x)[0][-1])
        return logits


Data = tuple[Tensor, Tensor]  # (T, N, inputs), (N, outputs)


def products(generator: torch.Generator) -> Data:
    """One step: there is nothing that a forget gate could forget."""
    x = torch.randn(1, SEQUENCES, 4, generator=generator)
    return x, torch.stack([x[0, :, 0] * x[0, :, 1], x[0, :, 2].sin() * x[0, :, 3]], 1)


def sums_since_reset(generator: torch.Generator) -> Data:
    """The sum of the values since the last flag: everything before it is to be forgotten."""
    values = torch.randn(LENGTH, SEQUENCES, 1, generator=generator) / 2
    flags = (torch.rand(LENGTH, SEQUENCES, 1, generator=generator) < 0.25).float()
    total = torch.zeros(SEQUENCES, 1)
    for value, flag in zip(values, flags, strict=True):
        total = total * (1 - flag) + value
    return torch.cat([values, flags], 2), total


def flagged_values(generator: torch.Generator) -> Data:
    """The one value that has a flag: the others are not to come in."""
    values = torch.randn(LENGTH, SEQUENCES, 1, generator=generator)
    where, each = torch.randint(LENGTH, (SEQUENCES,), generator=generator), torch.arange(SEQUENCES)
    flags = torch.zeros(LENGTH, SEQUENCES, 1)
    flags[where, each] = 1
    return torch.cat([values, flags], 2), values[where, each]


def shares(data: Callable[[torch.Generator], Data], seed: int) -> dict[str, float]:
    """Train and grow to 40 % of the parameters; the share of the hidden units that have each gate in the end."""
    generator = torch.Generator().manual_seed(seed)
    x, y = data(generator)
    torch.manual_seed(seed)
    model = Last(x.shape[2], y.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    grower = apical.Grower(model, optimizer, x[:, :1], "40% params", EPOCHS, seed=seed, growth_end=0.75,
                           steps_per_epoch=STEPS, interval=8)  # fmt: skip
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            chosen = torch.randint(SEQUENCES, (BATCH,), generator=generator)
            loss = mse_loss(model(x[:, chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            grower.end_step()
        grower.end_epoch()
    assert 0.97 <= grower.bound.load(grower.keep) <= 1.002
    units = len(grower.keep["rnn"])
    return {gate: count / units for gate, count in model.rnn.gate_counts().items()}


@pytest.mark.parametrize("seeds", [(0,), slow(range(5))])
def test_gates_that_the_data_do_not_need_become_constant_and_others_stay(seeds: Sequence[int]) -> None:
    """Single seeds may find another way to forget, with more units that have fewer gates: so the median of several."""
    once = [shares(products, seed)["f"] for seed in seeds]
    forgetting = [shares(sums_since_reset, seed)["f"] for seed in seeds]
    assert max(once) <= 0.2, once
    assert median(forgetting) >= 0.5, forgetting


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_value_to_be_kept_needs_input_gates_more_than_output_gates(seed: int) -> None:
    found = shares(flagged_values, seed)
    assert found["i"] > found["o"], found


def test_a_unit_costs_its_share_of_gates_and_a_gate_what_one_fewer_saves() -> None:
    structure = apical.trace(Last(3, 2), torch.zeros(2, 1, 3))
    bound = BoundBudget(Budget("50% params"), structure)
    names = [group.name for group in structure.groups]
    assert names == ["rnn", "rnn:i", "rnn:f", "rnn:g", "rnn:o"]
    prices = dict(zip(names, unit_prices(bound, (8, 8, 4, 4, 4), (1,) * 5, (), (1.0,)), strict=True))
    limit, row = bound.reach[0].limit, 3 + 8
    for gate in "ifgo":
        assert prices[f"rnn:{gate}"] == pytest.approx(row / limit), gate
    # two biases of four gates, a column of the recurrent matrix and of the head, and 2.5 rows
    assert prices["rnn"] == pytest.approx((8 + 20 + 2 + 2.5 * row) / limit, rel=0.02)


def test_no_gate_is_present_without_its_unit_at_any_time() -> None:
    model = built_case("gates")
    optimizer = adamw(model)
    grower = grown("gates", model, optimizer, epochs=6, damping=1.0, max_change=4.0, growth_end=0.9)
    for _ in epochs(grower, optimizer, "gates", 0, 6):
        for group in structure_of("gates").groups:
            if group.needs is not None:
                assert set(grower.keep[group.name]) <= set(grower.keep[group.needs.group])
        assert grower.structure.num_params(grower.keep) == sum(p.numel() for p in model.parameters())
