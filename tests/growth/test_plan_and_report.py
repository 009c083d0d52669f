"""Before training: what it will cost. In a loop of one's own: a page about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from apical import Grower
from apical.errors import ConfigError, DataError
from apical.models import CifarResNet

pytestmark = pytest.mark.usefixtures("traced_once")

EPOCHS = 10


@pytest.fixture
def grower() -> Grower:
    torch.manual_seed(0)
    model = CifarResNet(depth=8, width=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Grower(model, optimizer, torch.zeros(1, 3, 8, 8), "50% macs", EPOCHS, seed=0)


def test_a_plan_foretells_what_training_costs_if_nothing_is_learned(grower: Grower) -> None:
    plan = grower.plan()
    records = [grower.end_epoch() for _ in range(EPOCHS)]  # no step: all is worth the same
    assert len(plan.epochs) == EPOCHS
    assert plan.epochs[0].macs == pytest.approx(records[0]["macs"], rel=0.05)
    assert plan.epochs[-1].macs == pytest.approx(records[-1]["macs"], rel=0.02)
    spent = sum(r["macs"] for r in records) / (EPOCHS * grower.structure.macs())
    assert plan.train_macs_vs_dense == pytest.approx(spent, rel=0.1)
    assert plan.train_macs_vs_final == pytest.approx(spent / records[-1]["macs_fraction"], rel=0.1)
    assert plan.minutes(60) == pytest.approx((EPOCHS * plan.train_macs_vs_dense, EPOCHS))
    assert plan.frozen == tuple(grower.structure.frozen)


@pytest.mark.parametrize("words", [str, lambda plan: plan._repr_html_()], ids=["text", "html"])
def test_a_plan_says_budget_costs_and_what_cannot_change(grower: Grower, words: object) -> None:
    plan = grower.plan()
    said = words(plan)  # type: ignore[operator]
    for part in ("50% macs", "10 epochs", f"{plan.train_macs_vs_dense:.1%}", "fc", "reaches the model"):
        assert part in said


def test_a_plan_that_is_typed_in_a_console_takes_a_line(grower: Grower) -> None:
    shown = repr(grower.plan())
    assert shown.startswith("<Plan: 50% macs, 10 epochs; ")
    assert shown.endswith("of the full model's MACs; print() shows the table>")
    assert len(shown) < 120


def test_the_page_of_a_loop_of_ones_own_shows_metrics_network_and_cost(grower: Grower, tmp_path: Path) -> None:
    for epoch in range(3):
        grower.end_epoch({"accuracy": 0.5 + epoch / 10, "loss": torch.tensor(2.0 - epoch)})
    early = grower.report(tmp_path / "early.html").read_text(encoding="utf-8")
    assert "70.00 %" in early
    assert "held-out accuracy so far" in early
    assert f"Not finished: 3 of {EPOCHS} epochs" in early
    for epoch in range(3, EPOCHS):
        grower.end_epoch(metrics={"accuracy": 0.8, "loss": 0.1 * epoch})
    whole = grower.report(tmp_path / "whole.html").read_text(encoding="utf-8")
    for part in ("CifarResNet · 50% macs", "80.00 %", "What training cost", "What was grown", "layer1.0.conv1", "Loss"):
        assert part in whole
    assert "so far" not in whole
    assert "apical train" not in whole  # there is no such run to go on with
    assert grower.history[1]["metrics"] == {"accuracy": 0.6, "loss": 1.0}


def test_a_page_draws_every_metric_and_only_shares_in_per_cent(grower: Grower, tmp_path: Path) -> None:
    for epoch in range(3):
        grower.end_epoch({"val_mse": 0.25 - epoch / 32, "top1_acc": 0.5 + epoch / 8, "loss": 1.5})
    page = grower.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "0.1875" in page
    assert "18.75" not in page
    assert "Top1_acc, %" in page
    assert "Val_mse" in page


@pytest.mark.parametrize(
    "metrics", [{"accuracy": "good"}, {"loss": float("nan")}, {1: 0.5}, {"x": torch.zeros(2)}, 0.9]
)
def test_a_metric_that_is_no_number_is_refused_and_nothing_changes(grower: Grower, metrics: object) -> None:
    with pytest.raises(ConfigError, match="finite numbers by name"):
        grower.end_epoch(metrics)  # type: ignore[arg-type]
    assert (grower.epoch, grower.history) == (0, [])


def test_a_page_that_cannot_be_written_says_so(grower: Grower, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="it is a folder"):
        grower.report(tmp_path)


def test_a_grower_says_how_far_it_is_and_shows_its_widths() -> None:
    torch.manual_seed(0)
    model = CifarResNet(depth=8, width=8)
    grower = Grower(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(1, 3, 8, 8), "50% macs", EPOCHS)
    assert repr(grower).startswith(f"<Grower of CifarResNet: epoch 0 of {EPOCHS}; budget 50% macs; ")
    for _ in range(EPOCHS):
        record = grower.end_epoch()
    grower.finish()
    costs = f"{record['macs_fraction']:.1%} of the MACs, {record['params_fraction']:.1%} of the parameters"
    assert f"epoch {EPOCHS} of {EPOCHS}; budget 50% macs; {costs}; " in repr(grower)
    shown = grower._repr_html_()
    for group in grower.structure.groups:
        width = record["widths"].get(group.name)
        assert f">{group.name}<" in shown
        assert (f"{width} of {group.size}" if width else f"absent (of {group.size})") in shown


def test_a_grower_that_finished_at_once_claims_no_widths() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    grower = Grower(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.zeros(1, 4), "50% macs", EPOCHS)
    with pytest.warns(UserWarning, match="after 0 of"):
        grower.finish()
    assert grower._repr_html_() == f"<p>epoch 0 of {EPOCHS}; budget 50% macs</p>"
