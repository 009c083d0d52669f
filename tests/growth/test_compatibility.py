"""What ordinary training loops do around a model, while it grows."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from apical import Grower
from apical.errors import ApicalError
from growth.cases import (
    CASES,
    adamw,
    begun,
    built,
    example,
    grown,
    loss_of,
    outputs,
    run,
    sgd,
    squares_of,
    step,
    structure_of,
)

EPOCHS = 4


def ends_at_budget(grower: Grower) -> None:
    """The run met its budget and everything is finite."""
    assert 0.49 <= grower.history[-1]["macs_fraction"] <= 0.501
    assert all(p.isfinite().all() for p in grower.model.parameters())
    grower.finish()


def all_move(model: nn.Module, was: dict[str, Tensor]) -> None:
    """Every live parameter was trained."""
    assert all(not torch.equal(was[n], p) for n, p in model.named_parameters())


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("name", ["residual", "lstm", "gpt"])
def test_bf16_autocast(name: str) -> None:
    if name == "lstm" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("torch's LSTM does not run in bfloat16 on a processor without AVX-512")
    model, optimizer, grower = begun(name, adamw, epochs=EPOCHS)
    for epoch in range(EPOCHS):
        for i in range(2):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own, about LSTMs in bf16
                loss = loss_of(model, name, 10 * epoch + i)
            loss.backward()
            optimizer.step()
        grower.end_epoch()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert squares_of(grower).abs().max() > 0
    assert grower.history[-1]["macs_fraction"] <= 0.501
    if CASES[name].fine:
        ends_at_budget(grower)


def test_a_model_in_bf16() -> None:
    model = built("mlp").bfloat16()
    optimizer = sgd(model)
    grower = grown("mlp", model, optimizer, epochs=EPOCHS)
    for epoch in range(EPOCHS):
        optimizer.zero_grad()
        loss_of(model, "mlp", epoch, torch.bfloat16).backward()
        optimizer.step()
        grower.end_epoch()
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    ends_at_budget(grower)


def test_accumulation_and_clipping() -> None:
    """The gradients of two halves, clipped, once an epoch; accumulated gradients survive a restructuring."""
    model, optimizer, grower = begun("plain", epochs=EPOCHS)
    for epoch in range(EPOCHS):
        for i in range(2):
            (loss_of(model, "plain", 10 * epoch + i) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        was = snapshot(model)
        optimizer.step()
        all_move(model, was)
        optimizer.zero_grad()
        (loss_of(model, "plain", 10 * epoch + 5) / 3).backward()
        grower.end_epoch()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    ends_at_budget(grower)


@pytest.mark.parametrize("in_optimizer", [True, False])
def test_frozen_parameters_are_resized_but_not_trained(in_optimizer: bool) -> None:
    """A stem that does not learn: its kept channels hold their weights, and its units are not measured."""
    model = built("plain")
    full = copy.deepcopy(model)
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    trained = [p for p in model.parameters() if in_optimizer or p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    grower = run(grown("plain", model, optimizer, epochs=EPOCHS), optimizer, "plain")
    kept = grower.state_dict()["keep"]["0.0"]
    assert torch.equal(model[0][0].weight, full[0][0].weight[kept])
    assert not any(p.requires_grad for p in model[0].parameters())
    assert all(p.requires_grad for p in model[1].parameters())
    assert (squares_of(grower)[:24] == 0).all()
    ends_at_budget(grower)


class Checkpointed(nn.Module):
    """Its blocks are recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 40), nn.Linear(60, 4)
        self.middle = nn.Sequential(nn.Linear(40, 60), nn.ReLU())
        self.recompute = True

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.up(x))
        y = checkpoint(self.middle, y, use_reentrant=False) if self.recompute and self.training else self.middle(y)
        return self.down(y)


def test_gradient_checkpointing_gives_the_same_run() -> None:
    histories, weights = [], []
    for recompute in (True, False):
        torch.manual_seed(0)
        model = Checkpointed()
        model.recompute = recompute
        optimizer = sgd(model)
        grower = Grower(model, optimizer, torch.zeros(1, 6), "50% macs", EPOCHS)
        for epoch in range(EPOCHS):
            step(model, optimizer, "mlp", epoch)
            grower.end_epoch()
        histories.append([r["widths"] for r in grower.history])
        weights.append(list(model.parameters()))
        ends_at_budget(grower)
    assert histories[0] == histories[1]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(
    ("maker", "options"),
    [
        (torch.optim.SGD, {"lr": 0.05}),
        (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "fused": True}),
        (torch.optim.Adam, {"lr": 0.003, "amsgrad": True}),
        (torch.optim.AdamW, {"lr": 0.003, "fused": True}),
        (torch.optim.RMSprop, {"lr": 0.001, "momentum": 0.9}),
        (torch.optim.Adagrad, {"lr": 0.01}),
    ],
    ids=str,
)
def test_optimizers(maker: Any, options: dict[str, Any]) -> None:
    model = built("plain")
    optimizer = maker(model.parameters(), **options)
    grower = grown("plain", model, optimizer, epochs=EPOCHS)
    for epoch in range(EPOCHS):
        for i in range(2):
            was = snapshot(model)
            step(model, optimizer, "plain", 10 * epoch + i)
            all_move(model, was)
        grower.end_epoch()
    ends_at_budget(grower)


def test_eval_between_epochs_and_a_changing_batch_size() -> None:
    model, optimizer, grower = begun("plain", epochs=EPOCHS)
    for epoch in range(EPOCHS):
        step(model, optimizer, "plain", epoch)
        assert outputs(model, "plain").shape == (4, 5)
        model.eval()
        model(torch.zeros(7, 3, 8, 8))
        grower.end_epoch()
        assert not model.training
        model.train()
    ends_at_budget(grower)


def test_a_loss_that_is_not_finite_stops_growth_with_a_reason() -> None:
    model, optimizer, grower = begun("mlp")
    optimizer.zero_grad()
    (loss_of(model, "mlp", 0) * float("nan")).backward()
    optimizer.step()
    before = [p.shape for p in model.parameters()]
    with pytest.raises(ApicalError, match="not finite"):
        grower.end_epoch()
    assert [p.shape for p in model.parameters()] == before


def test_a_wrapped_copy_is_refused() -> None:
    model = built("mlp")
    twin = torch.compile(copy.deepcopy(model))
    with pytest.raises(ApicalError):
        Grower(model, sgd(model), example("mlp"), "50% macs", 3, structure=structure_of("mlp"), copies=[twin])
