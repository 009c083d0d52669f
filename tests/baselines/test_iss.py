"""Group lasso on units: its proximal step against the formula, exact removal, the budget, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apical.baselines import ISS, Comparator
from apical.baselines._iss import unit_norms
from apical.errors import BudgetError, ConfigError
from apical.models import LSTMLanguageModel

pytestmark = pytest.mark.usefixtures("traced_once")

TOKENS = torch.zeros(4, 1, dtype=torch.long)


def language_model(**options: Any) -> LSTMLanguageModel:
    torch.manual_seed(0)
    return LSTMLanguageModel(11, 8, (12, 10), **options)


def iss(model: nn.Module, lr: float = 0.5, epochs: int = 8, example: Tensor = TOKENS, budget: str = "50% params",
        **options: Any) -> tuple[Comparator, torch.optim.Optimizer]:  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    divisor = options.pop("divisor", 1)
    return Comparator(ISS(**options), model, optimizer, example, budget, epochs, divisor=divisor), optimizer


def norms_of(method: Comparator) -> dict[str, Tensor]:
    return unit_norms(method.subject, method.structure.groups)


def unit_weights(model: LSTMLanguageModel, unit: int) -> list[Tensor]:
    """By hand: everything of a unit of the first layer."""
    first, second = model.layers
    rows = [unit + 12 * gate for gate in range(4)]
    return [first.weight_ih_l0[rows], first.weight_hh_l0[rows], first.bias_ih_l0[rows], first.bias_hh_l0[rows],
            first.weight_hh_l0[:, unit], second.weight_ih_l0[:, unit]]  # fmt: skip


def test_the_norm_of_a_unit_is_that_of_its_rows_recurrent_column_and_readers() -> None:
    model = language_model()
    method, _ = iss(model)
    norms = norms_of(method)["layers.0"]
    for unit in (0, 7):
        expected = torch.cat([part.detach().reshape(-1) for part in unit_weights(model, unit)]).norm()
        assert norms[unit].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_step_is_the_proximal_step_of_the_penalty() -> None:
    """Of a feed-forward group, where no weight belongs to two units."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    plain = copy.deepcopy(net)
    method, optimizer = iss(net, lr=0.3, example=torch.zeros(1, 5), strength=0.2)
    other = torch.optim.SGD(plain.parameters(), lr=0.3)
    x = torch.randn(6, 5)
    for model, stepper in ((net, optimizer), (plain, other)):
        model(x).square().mean().backward()
        stepper.step()
    parts = [plain[0].weight, plain[0].bias.unsqueeze(1), plain[2].weight.T]  # (8, ...) each
    norms = torch.cat([part.detach() for part in parts], 1).norm(dim=1)
    factor = (1 - 0.3 * 0.2 / norms).clamp(min=0)
    assert 0 < factor.min() < 1
    torch.testing.assert_close(net[0].weight.detach(), plain[0].weight.detach() * factor.unsqueeze(1))
    torch.testing.assert_close(net[0].bias.detach(), plain[0].bias.detach() * factor)
    torch.testing.assert_close(net[2].weight.detach(), plain[2].weight.detach() * factor)
    assert torch.equal(net[2].bias, plain[2].bias)
    method.finish()
    before = net[0].weight.detach().clone()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(net[0].weight, before)  # the hook is gone


def test_a_strong_penalty_alone_drives_units_to_zero_which_are_then_removed_exactly() -> None:
    model = language_model().double()
    method, optimizer = iss(model, lr=1.0, strength=0.05)
    tokens = torch.randint(11, (4, 3))
    with torch.no_grad():
        for unit in (2, 5):  # weak units die first
            for name, rows in (("weight_ih_l0", 1), ("weight_hh_l0", 1), ("bias_ih_l0", 1), ("bias_hh_l0", 1)):
                parameter = getattr(model.layers[0], name)
                parameter[[unit + 12 * gate for gate in range(4)]] *= 1e-3 * rows
            model.layers[0].weight_hh_l0[:, unit] *= 1e-3
            model.layers[1].weight_ih_l0[:, unit] *= 1e-3
    optimizer.step()  # without gradients, only the penalty acts
    assert norms_of(method)["layers.0"][[2, 5]].eq(0).all()
    expected = model(tokens)[0]
    method.end_epoch()
    assert method.subject.selection.keep["layers.0"] == tuple(u for u in range(12) if u not in (2, 5))
    assert model.layers[0].hidden_size == 10
    torch.testing.assert_close(model(tokens)[0], expected, rtol=1e-10, atol=1e-12)
    assert norms_of(method)["layers.0"].shape == (10,)
    assert method.end_epoch()["widths"]["layers.0"] == 10


@pytest.mark.parametrize("divisor", [1, 2])
def test_the_weakest_units_leave_until_the_budget_is_met_and_the_penalty_ends(divisor: int) -> None:
    model = language_model()
    method, optimizer = iss(model, strength=1e-3, enforce_at=0.5, epochs=4, divisor=divisor)
    norms = norms_of(method)
    for epoch in range(4):
        model(torch.randint(11, (4, 3)))[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        record = method.end_epoch()
        assert record["params_fraction"] == (1 if epoch < 2 else pytest.approx(0.5, rel=0.1 * divisor))
    assert record["params_fraction"] <= 0.5
    assert all(width % divisor == 0 for width in record["widths"].values())
    assert sum(p.numel() for p in model.parameters()) == record["num_params"]
    kept = set(method.subject.selection.keep["layers.0"])
    gone = [u for u in range(12) if u not in kept]
    assert norms["layers.0"][gone].mean() < norms["layers.0"][list(kept)].mean()
    before = model.decoder.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.decoder.weight, before)


def test_options_and_budgets_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"strength=-1, expected at least 0; threshold=2, expected a number"):
        ISS(strength=-1, threshold=2)
    with pytest.raises(ConfigError, match="epochs=1; expected at least 2"):
        iss(language_model(), epochs=1)
    model = language_model()
    with pytest.raises(BudgetError, match="no network meets the budget"):
        iss(model, budget="1% params")
    assert model.layers[0].hidden_size == 12
