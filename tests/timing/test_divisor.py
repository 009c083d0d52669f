"""`divisor="auto"`: the rule, by injected times; one real measurement, of which only its form is checked."""

from __future__ import annotations

import copy
from math import ceil

import pytest
import torch
from torch import Tensor, nn

from apical import trace
from apical.budget import Budget
from apical.budget._load import budget_share
from apical.models import LSTMLanguageModel
from apical.timing import DIVISORS, measure_divisor
from apical.timing._divisor import StepTimer

EXAMPLE = torch.zeros(2, 3, 8, 8)


def net(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU(),
        nn.Conv2d(width, 24, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def staircase(tile: int, overhead: float = 0.0) -> StepTimer:
    """A device that pads every width to a multiple of its tile."""

    def step_ms(layer: nn.Module, x: Tensor) -> float:
        weight = next(layer.parameters())
        outs, ins = ceil(weight.shape[0] / tile), ceil(weight.shape[1] / tile)
        return overhead + tile * tile * outs * ins * 1e-3

    return step_ms


@pytest.mark.parametrize(("tile", "found"), [(1, 1), (2, 1), (4, 4), (8, 8), (16, 16), (32, 32)])
def test_the_tile_of_the_device_is_found(tile: int, found: int) -> None:
    """At widths around 32: padding to 2 costs 4 %, within the tolerance, padding to 4 costs 12 %."""
    model = net(128)
    choice = measure_divisor(model, trace(model, EXAMPLE), (EXAMPLE,), 1 / 16, step_ms=staircase(tile))
    assert [divisor for divisor, _ in choice.excess] == list(DIVISORS)
    assert choice.divisor == found
    assert dict(choice.excess)[tile] < 0.04
    assert choice.layers[0] in ("0", "3")
    assert f"divisor {choice.divisor}, by steps of {choice.layers[0]}" in str(choice)


def test_steps_that_hide_in_a_constant_are_not_worth_a_multiple() -> None:
    model = net(128)
    choice = measure_divisor(model, trace(model, EXAMPLE), (EXAMPLE,), 1 / 16, step_ms=staircase(8, 50.0))
    assert choice.divisor == 1


def test_a_device_without_steps_asks_for_nothing() -> None:
    """Time that grows linearly with each width, and time that does not grow at all."""
    model = net()
    structure = trace(model, EXAMPLE)
    for timer in (staircase(1, 3.0), lambda *_: 2.0):
        choice = measure_divisor(model, structure, (EXAMPLE,), 0.5, step_ms=timer)
        assert choice.divisor == 1
        assert all(abs(excess) < 1e-9 for divisor, excess in choice.excess if divisor <= 8)


def test_a_multiple_that_leaves_small_groups_odd_does_not_win() -> None:
    """Groups of 24: 16 does not round them (fewer than two steps), so they would stay odd; 8 does."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(24, 24, 3, padding=1) for _ in range(4)))
    example = torch.zeros(1, 24, 8, 8)
    choice = measure_divisor(model, trace(model, example), (example,), 0.5, step_ms=staircase(8))
    excess = dict(choice.excess)
    assert choice.divisor in (4, 8)
    assert excess[16] == excess[32] == excess[1] > excess[8] == 0


def test_layers_that_take_the_most_time_decide() -> None:
    """Many equal layers count together, and the slowest three kinds are measured at more than one width."""
    seen: dict[tuple[int, ...], int] = {}

    def timer(layer: nn.Module, x: Tensor) -> float:
        shape = tuple(next(layer.parameters()).shape)
        seen[shape] = seen.get(shape, 0) + 1
        return float(sum(p.numel() for p in layer.parameters()))

    model = net()
    choice = measure_divisor(model, trace(model, EXAMPLE), (EXAMPLE,), 0.25, step_ms=timer)
    assert len(choice.layers) == 3
    assert choice.layers[0] == "3"
    assert (33, 32, 3, 3) in seen
    assert (32, 31, 3, 3) in seen, "inputs and outputs move one at a time"
    assert (36, 1, 3, 3) in seen or "5" not in choice.layers, "those of a depthwise convolution together"
    assert (5, 16) in seen
    assert not any(shape[0] != 5 for shape in seen if len(shape) == 2), "the classes cannot change"


def test_recurrent_layers_count() -> None:
    model = LSTMLanguageModel(13, 20, (40, 36))
    tokens = torch.zeros(5, 3, dtype=torch.long)
    structure = trace(model, tokens, state_outputs=(1,))
    units: list[int] = []

    def timer(layer: nn.Module, x: Tensor) -> float:
        if isinstance(layer, nn.LSTM):
            units.append(layer.hidden_size)
            assert layer(x)[0].shape == (5, 3, layer.hidden_size)
            return 100.0 * ceil(layer.hidden_size / 8)
        return 0.1

    choice = measure_divisor(model, structure, (tokens,), 0.36, step_ms=timer)
    assert choice.divisor == 8
    assert {n % 2 for n in units} == {0, 1}


def test_nothing_that_can_move_gives_one() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    choice = measure_divisor(model, trace(model, torch.zeros(1, 4)), (torch.zeros(1, 4),), 0.5, step_ms=lambda *_: 1.0)
    assert (choice.divisor, choice.layers) == (1, ())


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_real_measurement_changes_nothing(channels_last: bool) -> None:
    """Model, modes and the random state are as before; layers run in the model's format and under autocast."""
    model, formats = net(16), set()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    structure = trace(model, EXAMPLE)
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    torch.manual_seed(3)
    rng = torch.get_rng_state()
    choice = measure_divisor(model, structure, (EXAMPLE,), 0.5)
    assert choice.divisor in DIVISORS
    assert choice.device == "cpu"
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes

    def timer(layer: nn.Module, x: Tensor) -> float:
        assert x.requires_grad
        if x.ndim == 4 and x.shape[1] > 1:
            formats.add((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
        return 1.0

    with torch.autocast("cpu", torch.bfloat16):
        measure_divisor(model, structure, (EXAMPLE,), 0.5, step_ms=timer)
    assert formats == {(torch.bfloat16, channels_last)}


def test_the_share_of_a_budget() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    structure = trace(model, torch.zeros(1, 4))
    assert budget_share(Budget("50% macs, 30% params"), structure) == 0.3
    assert budget_share(Budget("12 macs"), structure) == 0.25
    assert budget_share(Budget("20% latency"), structure) == 0.2
    assert budget_share(Budget("3 ms"), structure) == 0.5
