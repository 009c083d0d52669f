"""What ordinary training loops do around a model, while it grows."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
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


def test_several_optimizers() -> None:
    model = built("residual")
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]
    ids = {id(p) for p in norms}
    optimizers = [
        torch.optim.SGD([p for p in model.parameters() if id(p) not in ids], lr=0.05, momentum=0.9),
        torch.optim.AdamW(norms, lr=0.01),
    ]
    grower = grown("residual", model, optimizers, epochs=EPOCHS, seed_style="small")
    for epoch in range(EPOCHS):
        for i in range(4):
            was = snapshot(model)
            model.zero_grad()
            loss_of(model, "residual", 10 * epoch + i).backward()
            for optimizer in optimizers:
                optimizer.step()
            asleep = [n for n, p in model.named_parameters() if torch.equal(was[n], p)]
            assert not asleep or i < 3  # newborn streams, then newborn blocks, then what is in them
        grower.end_epoch()
        held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters())
        norms_now = {id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()}
        assert {id(p) for p in optimizers[1].param_groups[0]["params"]} == norms_now
    ends_at_budget(grower)


def test_parameter_groups_keep_their_settings_and_schedules() -> None:
    """Biases and norms without decay at twice the learning rate, under warm-up and cosine."""
    model = built("residual")
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decay, "weight_decay": 1e-3}, {"params": rest, "lr": 0.1, "weight_decay": 0.0}],
        lr=0.05, momentum=0.9,
    )  # fmt: skip
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [2])
    grower = grown("residual", model, optimizer, epochs=EPOCHS, seed_style="small")
    for epoch in range(EPOCHS):
        step(model, optimizer, "residual", epoch)
        grower.end_epoch()
        scheduler.step()
        first, second = optimizer.param_groups
        assert second["lr"] == pytest.approx(2 * first["lr"])
        assert (first["weight_decay"], second["weight_decay"]) == (1e-3, 0.0)
        assert {id(p) for p in first["params"]} == {id(p) for p in model.parameters() if p.dim() > 1}
        assert {id(p) for p in second["params"]} == {id(p) for p in model.parameters() if p.dim() <= 1}
    ends_at_budget(grower)


def test_channels_last_stays() -> None:
    model = built("plain").to(memory_format=torch.channels_last)
    optimizer = sgd(model)
    grower = run(grown("plain", model, optimizer, epochs=EPOCHS), optimizer, "plain")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
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


def test_shared_weights_stay_shared() -> None:
    model = built("tied")
    optimizer = adamw(model)
    grower = run(grown("tied", model, optimizer, epochs=EPOCHS, seed_style="small", damping=0.0), optimizer, "tied")
    assert model.decoder.weight is model.embedding.weight
    assert model.decoder.weight.shape[1] < 24
    assert sum(p is model.decoder.weight for g in optimizer.param_groups for p in g["params"]) == 1
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


def test_moving_averages_grow_along() -> None:
    """EMA with buffers, and SWA with its BatchNorm update at the end."""
    model = built("residual")
    optimizer = sgd(model)
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    swa = AveragedModel(model)
    grower = grown("residual", model, optimizer, epochs=EPOCHS, copies=[ema, swa], seed_style="small")
    for epoch in range(EPOCHS):
        for i in range(2):
            step(model, optimizer, "residual", 10 * epoch + i)
            ema.update_parameters(model)
        grower.end_epoch()
        swa.update_parameters(model)
        shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (model, ema.module, swa.module)]
        assert shapes[0] == shapes[1] == shapes[2]
    grower.finish()
    update_bn([CASES["residual"].inputs(i) for i in range(2)], swa)
    assert outputs(ema.module, "residual").isfinite().all()
    assert outputs(swa.module, "residual").isfinite().all()


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
