"""What growth measures: squares of the gate products of every training step, each step once (float64)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from apical import Grower
from growth.cases import CASES, built, grown, loss_of, squares_of
from growth.gate_oracle import GatedTemplate, close, loss, prepared
from marks import quick

F64 = torch.float64


def utilities_of(grower: Grower) -> Tensor:
    return grower.state_dict()["components"]["values"]


@pytest.mark.parametrize("name", quick(CASES, ["residual", "lstm", "gpt"]))
def test_squares_are_those_of_explicit_gates_and_their_means_are_the_utilities(name: str) -> None:
    """At every step of three epochs, with two restructurings between, and what these make of them."""
    template, model, optimizer, grower = prepared(name, budget="60% macs", growth_end=0.9)
    expected = torch.zeros_like(squares_of(grower))
    utilities, age = torch.zeros_like(expected), torch.zeros_like(expected)
    blocks_moved = False
    for epoch in range(3):
        for i in range(2):
            expected += GatedTemplate(template, grower).products(loss(name, 10 * epoch + i)).square()
            optimizer.zero_grad()
            loss_of(model, name, 10 * epoch + i, F64).backward()
            optimizer.step()
            close(squares_of(grower), expected)
            assert grower.state_dict()["components"]["steps"] == i + 1
        blocks_moved |= bool((expected[sum(g.size for g in grower.structure.groups) :] != 0).any())
        live = grower.state_dict()["components"]["live"]
        smoothed = torch.where(age > 0, (utilities + expected / 2) / 2, expected / 2)
        utilities = torch.where(live, smoothed, utilities)
        age += live
        grower.end_epoch()
        after = grower.state_dict()["components"]
        close(after["values"], utilities)
        age[after["live"] & ~live] = 0
        assert torch.equal(after["age"], age)
        assert after["steps"] == 0
        assert not squares_of(grower).any()
        expected.zero_()
    assert blocks_moved == bool(grower.structure.blocks)
    assert sum(r["born"] for r in grower.history) > 0


def test_absent_components_get_nothing() -> None:
    _, model, optimizer, grower = prepared("residual", seed_style="small")
    loss_of(model, "residual", 1, F64).backward()
    optimizer.step()
    live = grower.state_dict()["components"]["live"]
    assert (squares_of(grower)[~live] == 0).all()
    assert (squares_of(grower)[live] > 0).any()


@pytest.mark.parametrize("name", ["residual", "lstm"])
def test_accumulated_gradients_count_once(name: str) -> None:
    template, model, optimizer, grower = prepared(name)
    oracle = GatedTemplate(template, grower)
    expected = oracle.products(lambda m: (loss(name, 1)(m) + loss(name, 2)(m)) / 2).square()
    for seed in (1, 2):
        (loss_of(model, name, seed, F64) / 2).backward()
    optimizer.step()
    close(squares_of(grower), expected)
    assert grower.components.steps == 1


def test_clipped_gradients_count_as_they_were_clipped() -> None:
    template, model, optimizer, grower = prepared("mlp")
    expected = GatedTemplate(template, grower).products(loss("mlp", 1)).square()
    loss_of(model, "mlp", 1, F64).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()
    close(squares_of(grower), expected * (0.01 / (norm + 1e-6)) ** 2)


def split(model: nn.Module) -> list[Optimizer]:
    """Two optimizers, between which gate sites are divided."""
    names = [n for n, _ in model.named_parameters()]
    first = [p for n, p in model.named_parameters() if names.index(n) % 2]
    second = [p for n, p in model.named_parameters() if not names.index(n) % 2]
    return [torch.optim.SGD(first, lr=0.05, momentum=0.9), torch.optim.AdamW(second, lr=0.001)]


@pytest.mark.parametrize("name", ["residual", "lstm"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_optimizers_act_as_one(name: str, order: tuple[int, int]) -> None:
    """The products of both are added before they are squared."""
    template = built(name).double()
    model = copy.deepcopy(template)
    optimizers = split(model)
    grower = grown(name, model, optimizers)
    for epoch in range(2):
        expected = torch.zeros_like(squares_of(grower))
        for i in range(2):
            expected += GatedTemplate(template, grower).products(loss(name, 10 * epoch + i)).square()
            model.zero_grad()
            loss_of(model, name, 10 * epoch + i, F64).backward()
            for o in order:
                optimizers[o].step()
            close(squares_of(grower), expected)
            assert grower.components.steps == i + 1
        grower.end_epoch()


def test_an_optimizer_that_sits_out_does_not_hold_the_others_up() -> None:
    """GradScaler skips each optimizer by itself: the other's gradients count, once."""
    model = built("mlp").double()
    optimizers = split(model)
    grower = grown("mlp", model, optimizers)
    seen = [squares_of(grower)]
    for seed in range(3):
        model.zero_grad()
        loss_of(model, "mlp", seed, F64).backward()
        optimizers[1].step()
        seen.append(squares_of(grower))
        assert grower.components.steps == seed + 1
    assert all((b - a).max() > 0 for a, b in pairwise(seen))


def test_rounds_that_one_optimizer_sat_out_are_told_apart() -> None:
    """Without a look in between: what one optimizer did in two rounds is squared round by round."""
    states = []
    for look in (False, True):
        model = built("mlp").double()
        optimizers = split(model)
        grower = grown("mlp", model, optimizers)
        for seed, stepping in enumerate(((1,), (1,), (1, 0), (1,))):
            model.zero_grad()
            loss_of(model, "mlp", seed, F64).backward()
            for o in stepping:
                optimizers[o].step()
            if look:
                grower.state_dict()
        states.append(grower.state_dict()["components"])
    assert states[0]["steps"] == states[1]["steps"] == 4
    close(states[0]["buffer"], states[1]["buffer"])


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_a_gradient_scaler_is_followed(options: dict[str, bool]) -> None:
    """Scaled gradients count unscaled; a step that the scaler skips, inside the optimizer or outside, does not."""
    template = built("mlp")
    model, twin = copy.deepcopy(template), copy.deepcopy(template)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, **options)
    plain = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    grower, expected = grown("mlp", model, optimizer), grown("mlp", twin, plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed in range(7):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, "mlp", seed)).backward()
        before, skipped = squares_of(grower), seed in (1, 3, 4)  # (a fused SGD cannot skip its very first step)
        if skipped:
            model[0].weight.grad[0, 0] = float("inf")
        elif seed == 5:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if skipped:
            assert torch.equal(squares_of(grower), before)
        else:
            plain.zero_grad()
            loss_of(twin, "mlp", seed).backward()
            plain.step()
        close(squares_of(grower), squares_of(expected), 1e-4)
        assert grower.components.steps == expected.components.steps
    assert grower.components.steps == 4


def test_gradients_that_are_not_finite_do_not_count() -> None:
    """A step is not counted in part either: not for the units whose own gradients were finite."""
    _, model, optimizer, grower = prepared("mlp")
    loss_of(model, "mlp", 0, F64).backward()
    optimizer.step()
    before = squares_of(grower)
    model[0].weight.grad[0, 0] = float("nan")
    optimizer.step()
    assert torch.equal(squares_of(grower), before)
    assert grower.components.steps == 1


def test_a_step_without_any_gradient_does_not_count_and_zeroed_gradients_count_as_zero() -> None:
    _, model, optimizer, grower = prepared("mlp")
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    assert not squares_of(grower).any()
    assert grower.components.steps == 0
    loss_of(model, "mlp", 0, F64).backward()
    optimizer.step()
    before = squares_of(grower)
    assert before.any()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert torch.equal(squares_of(grower), before)
    assert grower.state_dict()["components"]["steps"] == 2


def test_chance_instead_of_utilities_has_no_use_for_gradients() -> None:
    """Whatever was trained on, networks are the same."""
    networks = []
    for first in (0, 50):
        _, model, optimizer, grower = prepared("mlp", utility="random")
        for epoch in range(4):
            optimizer.zero_grad()
            loss_of(model, "mlp", first + epoch, F64).backward()
            optimizer.step()
            grower.end_epoch()
        networks.append([r["widths"] for r in grower.history])
    assert networks[0] == networks[1]
    assert utilities_of(grower).std() > 0


# ---- how an optimizer steps ----------------------------------------------------------------------------------------


def after_three_steps(make: Callable[[nn.Module], Optimizer], closure: str = "none", sign: float = 1.0) -> Tensor:
    """Squares of three steps; with a closure that computes the gradients, if asked."""
    model = built("mlp").double()
    optimizer = make(model)
    grower = grown("mlp", model, optimizer)
    for number in range(3):

        def computed(number: int = number) -> Tensor:
            optimizer.zero_grad()
            value = sign * loss_of(model, "mlp", number, F64)
            value.backward()
            return value

        if closure == "none":
            computed()
            optimizer.step()
        elif closure == "positional":
            optimizer.step(computed)
        else:
            optimizer.step(closure=computed)
        optimizer.zero_grad()
    assert grower.state_dict()["components"]["steps"] == 3
    return squares_of(grower)


def down(model: nn.Module, **options: Any) -> Optimizer:
    return SGD(model.parameters(), 0.05, momentum=0.9, **options)


def expected_after_three_steps() -> Tensor:
    """By explicit gates."""
    template, model, optimizer, grower = prepared("mlp")
    expected = torch.zeros_like(squares_of(grower))
    for number in range(3):
        expected += GatedTemplate(template, grower).products(loss("mlp", number)).square()
        optimizer.zero_grad()
        loss_of(model, "mlp", number, F64).backward()
        optimizer.step()
    return expected


@pytest.mark.parametrize("closure", ["none", "positional", "named"])
def test_the_gradients_of_a_closure_count_once(closure: str) -> None:
    close(after_three_steps(down, closure), expected_after_three_steps())


def test_an_optimizer_that_maximises_is_followed() -> None:
    up = after_three_steps(lambda m: down(m, maximize=True), sign=-1.0)
    close(up, expected_after_three_steps())


def test_optimizers_that_go_up_and_down_are_added_with_their_signs() -> None:
    """A unit's gate site is divided between one that maximises -L and one that minimises L."""
    template = built("mlp").double()
    model = copy.deepcopy(template)
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    optimizers = [SGD(weights, 0.05), SGD(biases, 0.05, maximize=True)]
    grower = grown("mlp", model, optimizers)
    expected = GatedTemplate(template, grower).products(loss("mlp", 1)).square()
    loss_of(model, "mlp", 1, F64).backward()
    for bias in optimizers[1].param_groups[0]["params"]:  # those of the seed
        bias.grad = -bias.grad
    for optimizer in optimizers:
        optimizer.step()
    close(squares_of(grower), expected)


def test_a_step_that_calls_the_step_of_its_base_class_counts_once() -> None:
    class Own(SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    expected = expected_after_three_steps()  # from now on the step of SGD has hooks too
    close(after_three_steps(lambda m: Own(m.parameters(), 0.05, momentum=0.9)), expected)


class Spectral(nn.Module):
    """Two products with complex weights, as in Fourier neural operators."""

    def __init__(self) -> None:
        super().__init__()
        self.rise = nn.Parameter(torch.randn(5, 12, dtype=torch.cfloat) / 3)
        self.fall = nn.Parameter(torch.randn(12, 2, dtype=torch.cfloat) / 3)

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        rise = self.rise if gate is None else self.rise * gate
        return ((x.to(torch.cfloat) @ rise) @ self.fall).abs()


def test_of_complex_weights_the_derivative_by_the_gate_is_measured(recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    model, inputs = Spectral(), torch.randn(7, 5)
    optimizer = SGD(model.parameters(), lr=0.0)
    grower = Grower(model, optimizer, inputs[:1], "50% macs", epochs=4)
    gate = torch.ones(model.rise.shape[1], requires_grad=True)
    (expected,) = torch.autograd.grad(model(inputs, gate).square().mean(), gate)
    model(inputs).square().mean().backward()
    optimizer.step()
    found = squares_of(grower)[list(grower.keep["rise"])]
    torch.testing.assert_close(found, expected.double().square(), rtol=1e-4, atol=0)
    assert not [w for w in recwarn.list if "discards the imaginary" in str(w.message)]
