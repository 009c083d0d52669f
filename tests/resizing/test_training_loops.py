"""What an ordinary training loop holds on to stays valid: losses, gradients, schedulers, scalers, averages, layouts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import apical
from apical import DormantStore, Structure
from apical.errors import ResizeError
from resizing.reference import Reference, assert_unchanged, kept_positions, put, snapshot, take, train_steps
from structure.contract import random_keep
from structure.nets import LanguageModel, conv, head, image, recurrent, tiny_resnet, tokens, unit

SHAPE = (4, 3, 8, 8)
KEEP = {"1.conv1": [1, 4], "2.conv2": [0, 2, 3, 9], "0.0": [1, 2, 5, 7]}


def momentum(model: nn.Module) -> optim.SGD:
    return optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


# ---- losses and gradients -------------------------------------------------------------------------------------------


def test_a_loop_that_still_holds_its_last_loss(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer, store = momentum(model), DormantStore()
    loss = outputs = None
    for epoch, keep in enumerate([KEEP, {"1.conv1": [0]}, {}]):
        for batch in range(2):
            x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(batch))
            outputs = model(x)
            loss = outputs.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        apical.resize_(model, structure, keep, ["3"] if epoch == 1 else [], optimizer=optimizer, store=store)
    assert loss is not None
    assert outputs is not None
    assert torch.equal(loss.detach(), outputs.detach().square().mean())


def test_an_old_graph_can_still_go_backward(structure: Structure) -> None:
    """Its gradients reach the old parameters, which nobody uses any more; the new ones are not disturbed."""
    model = tiny_resnet()
    optimizer = momentum(model)
    loss = model(torch.randn(SHAPE)).square().mean()
    apical.resize_(model, structure, KEEP, ["3"], optimizer=optimizer)
    changed = [n for n, p in model.named_parameters() if n.startswith("1.conv1")]
    loss.backward()
    assert all(model.get_parameter(n).grad is None for n in changed)
    train_steps(model, optimizer, 2, SHAPE, seed=0)


def test_gradients_are_carried(structure: Structure) -> None:
    """A resize between backward and step: the step is that of the sliced gradient."""
    model = tiny_resnet()
    store = DormantStore()
    model(torch.randn(SHAPE)).square().mean().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    apical.resize_(model, structure, KEEP, store=store)
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.equal(p.grad, take(grads[name], kept_positions(structure, name, KEEP)))
    apical.resize_(model, structure, {}, store=store)
    for name, p in model.named_parameters():
        expected, positions = torch.zeros_like(grads[name]), kept_positions(structure, name, KEEP)
        put(expected, positions, take(grads[name], positions))
        assert p.grad is not None
        assert torch.equal(p.grad, expected), "returning channels have a gradient of zero until the next backward"


def test_sparse_gradients_are_carried() -> None:
    """As embeddings with sparse=True have them, usually still there when the epoch ends."""
    model = LanguageModel(tied=False, width=7)
    model.embedding.sparse = True
    structure = apical.trace(model, tokens(), state_outputs=(1,))
    model(tokens()[0])[0].sum().backward()
    grad = model.embedding.weight.grad
    assert grad is not None
    assert grad.is_sparse
    expected = grad.to_dense()[:, [0, 2, 5]]
    apical.resize_(model, structure, {"embedding": [0, 2, 5]}, store=DormantStore())
    carried = model.embedding.weight.grad
    assert carried is not None
    assert torch.equal(carried.to_dense(), expected)


def test_no_gradients_stay_none(structure: Structure) -> None:
    model = tiny_resnet()
    apical.resize_(model, structure, KEEP)
    assert all(p.grad is None for p in model.parameters())


def test_gradient_accumulation_over_a_resize(structure: Structure) -> None:
    model, whole = tiny_resnet(), tiny_resnet()
    whole.load_state_dict(model.state_dict())
    apical.resize_(whole, structure, KEEP)
    for m in (model, whole):
        m.eval()
    a, b = torch.randn(SHAPE), torch.randn(SHAPE)
    whole(b).sum().backward()
    alone = {n: p.grad.clone() for n, p in whole.named_parameters() if p.grad is not None}
    model(a).sum().backward()
    apical.resize_(model, structure, KEEP)
    before = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model(b).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, before[name] + alone[name], rtol=1e-5, atol=1e-6)


# ---- schedulers and scalers -----------------------------------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "cosine": lambda o: CosineAnnealingLR(o, T_max=8),
    "one_cycle": lambda o: OneCycleLR(o, max_lr=0.1, total_steps=9),
    "plateau": lambda o: ReduceLROnPlateau(o, patience=1),
}


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_go_on(structure: Structure, kind: str) -> None:
    """The same learning rates and momenta as without a resize, applied to the new parameters."""

    def rates(resize: bool) -> list[tuple[float, float]]:
        torch.manual_seed(0)
        model = tiny_resnet()
        optimizer, store = momentum(model), DormantStore()
        scheduler: LRScheduler | ReduceLROnPlateau = SCHEDULERS[kind](optimizer)
        found = []
        for epoch in range(8):
            train_steps(model, optimizer, 1, SHAPE, seed=epoch)
            scheduler.step(*([1.0] if kind == "plateau" else []))
            if resize and epoch in (2, 5):
                keep = KEEP if epoch == 2 else {}
                apical.resize_(model, structure, keep, ["3"] if epoch == 2 else [], optimizer=optimizer, store=store)
            found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        assert scheduler.optimizer is optimizer
        return found

    assert rates(resize=True) == rates(resize=False)


def test_gradient_scaler_goes_on(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer, store = optim.SGD(model.parameters(), lr=0.01), DormantStore()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
    for epoch, keep in enumerate([KEEP, {}, {"1.conv1": [2]}]):
        for batch in range(2):
            x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(batch))
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).float().square().mean()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
        apical.resize_(model, structure, keep, optimizer=optimizer, store=store)
        assert scaler.get_scale() == 4.0 * 2 ** (epoch + 1)


def test_hooks_on_the_optimizer_stay(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer = momentum(model)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    apical.resize_(model, structure, KEEP, optimizer=optimizer)
    train_steps(model, optimizer, 2, SHAPE, seed=0)
    assert calls == [1, 1]


# ---- averages -------------------------------------------------------------------------------------------------------


def test_averaged_models_are_resized_alike(structure: Structure) -> None:
    model = tiny_resnet()
    optimizer, store = momentum(model), DormantStore()
    averages = [
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
        AveragedModel(model),
    ]
    references = [Reference.of(structure, a.module) for a in averages]
    for seed, skip in enumerate([["1"], ["3"], []]):
        train_steps(model, optimizer, 2, SHAPE, seed=seed)
        for average in averages:
            average.update_parameters(model)
        keep = random_keep(structure, seed)
        for reference, average in zip(references, averages, strict=True):
            reference.pull(average.module)
            reference.choose(keep, skip)
        apical.resize_(model, structure, keep, skip, optimizer=optimizer, store=store, copies=averages)
        for reference, average in zip(references, averages, strict=True):
            reference.assert_matches(average.module)
            assert str(average.module) == str(model)
            assert int(average.n_averaged) == seed + 1
            assert not {id(p) for p in average.parameters()} & {id(p) for p in model.parameters()}
    update_bn([torch.randn(SHAPE)], averages[1])
    train_steps(model, optimizer, 1, SHAPE, seed=5)
    averages[0].update_parameters(model)


def test_a_plain_copy_as_average(structure: Structure) -> None:
    model = tiny_resnet()
    twin = copy.deepcopy(model).eval()
    apical.resize_(model, structure, KEEP, ["3"], copies=[twin])
    assert str(twin) == str(model)
    assert not twin.training
    assert torch.equal(twin[1].conv1.weight, model[1].conv1.weight)
    assert twin[1].conv1.weight is not model[1].conv1.weight


def test_a_copy_of_another_shape_is_refused(structure: Structure) -> None:
    model, twin = tiny_resnet(), tiny_resnet()
    apical.resize_(twin, structure, KEEP)
    before = snapshot(model), snapshot(twin)
    with pytest.raises(ResizeError, match="copy 0 does not fit"):
        apical.resize_(model, structure, KEEP, copies=[twin])
    assert_unchanged(before[0], snapshot(model))
    assert_unchanged(before[1], snapshot(twin))


def test_the_model_itself_is_no_copy_of_its_own(structure: Structure) -> None:
    model = tiny_resnet()
    before = snapshot(model)
    with pytest.raises(ResizeError):
        apical.resize_(model, structure, KEEP, copies=[model])
    assert_unchanged(before, snapshot(model))


# ---- layouts and flags ----------------------------------------------------------------------------------------------


def test_channels_last_is_kept(structure: Structure) -> None:
    model = tiny_resnet().to(memory_format=torch.channels_last)
    store = DormantStore()
    for keep, skip in ((KEEP, ["3"]), ({}, []), (KEEP, [])):
        apical.resize_(model, structure, keep, skip, store=store)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                assert module.weight.is_contiguous(memory_format=torch.channels_last)
                assert module.weight.shape[1] == 1 or not module.weight.is_contiguous() or module.kernel_size == (1, 1)


def test_contiguous_stays_contiguous(structure: Structure) -> None:
    model, store = tiny_resnet(), DormantStore()
    for keep in (KEEP, {}):
        apical.resize_(model, structure, keep, store=store)
        assert all(p.is_contiguous() for p in model.parameters())


def test_channels_last_3d_is_kept() -> None:
    model = nn.Sequential(nn.Conv3d(3, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 3)).to(memory_format=torch.channels_last_3d)
    structure = apical.trace(model, torch.zeros(1, 3, 6, 6, 6))
    apical.resize_(model, structure, {"0": [1, 2, 4]})
    assert all(
        m.weight.is_contiguous(memory_format=torch.channels_last_3d) for m in model if isinstance(m, nn.Conv3d)
    )  # fmt: skip


def test_attributes_of_parameters_are_kept(structure: Structure) -> None:
    model, store = tiny_resnet(), DormantStore()
    for name, p in model.named_parameters():
        p.label = name  # as optimizers with per-parameter settings read them
    for keep, skip in ((KEEP, ["3"]), ({}, [])):
        apical.resize_(model, structure, keep, skip, store=store)
        assert all(p.label == n for n, p in model.named_parameters())


def test_requires_grad_is_kept(structure: Structure) -> None:
    model, store = tiny_resnet(), DormantStore()
    flags = {}
    for i, (name, p) in enumerate(model.named_parameters()):
        p.requires_grad_(i % 3 != 0)
        flags[name] = p.requires_grad
    for keep, skip in ((KEEP, ["3"]), ({}, [])):
        apical.resize_(model, structure, keep, skip, store=store)
        assert all(p.requires_grad == flags[n] for n, p in model.named_parameters())


def test_under_no_grad_and_inference_the_parameters_are_ordinary_leaves(structure: Structure) -> None:
    for context in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        model, store = tiny_resnet(), DormantStore()
        optimizer = momentum(model)
        with context:
            apical.resize_(model, structure, KEEP, ["3"], optimizer=optimizer, store=store)
        assert all(p.is_leaf and p.requires_grad for p in model.parameters())
        train_steps(model, optimizer, 2, SHAPE, seed=0)
        apical.resize_(model, structure, {}, optimizer=optimizer, store=store)
        train_steps(model, optimizer, 2, SHAPE, seed=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = tiny_resnet().to(dtype).eval()
    structure = apical.trace(model, image()[0].to(dtype))
    before = copy.deepcopy(model.state_dict())
    store = DormantStore()
    for keep, skip in ((KEEP, ["3"]), ({}, [])):
        apical.resize_(model, structure, keep, skip, store=store)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert model(image()[0].to(dtype)).dtype == dtype
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_model_that_changes_its_dtype_between_resizes(structure: Structure) -> None:
    """`model.double()` after the first resize: what comes back has the model's dtype."""
    model, store = tiny_resnet(), DormantStore()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    apical.resize_(model, structure, KEEP, ["3"], store=store)
    model.double()
    with torch.no_grad():
        model[1].conv1.weight += 1e-12  # a change that float32 cannot hold
    changed = model[1].conv1.weight.detach().clone()
    apical.resize_(model, structure, {}, store=store)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float64}
    assert torch.equal(model[3].conv1.weight, before["3.conv1.weight"].double())
    assert model[1].conv1.weight[KEEP["1.conv1"]][:, KEEP["0.0"]].equal(changed)
    model(image()[0].double())


def test_recurrent_modules_use_their_new_weights() -> None:
    """nn.LSTM caches its weights in a list of its own."""
    model = recurrent("LSTM", 2)
    structure = apical.trace(model, torch.zeros(2, 5, 3))
    store = DormantStore()
    optimizer = momentum(model)
    for keep in ({"rnn": [0, 2, 5]}, {}, {"up": [1], "rnn": [3]}):
        apical.resize_(model, structure, keep, optimizer=optimizer, store=store)
        assert [id(w) for w in model.rnn._flat_weights if w is not None] == [id(p) for p in model.rnn.parameters()]
        before = [p.detach().clone() for p in model.parameters()]
        train_steps(model, optimizer, 2, (2, 5, 3), seed=0)
        assert all(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_models_can_be_copied_saved_compiled_and_exported_after_a_resize(structure: Structure, tmp_path: Any) -> None:
    model = tiny_resnet().eval()
    apical.resize_(model, structure, KEEP, ["3"])
    expected = model(image()[0])
    assert torch.equal(copy.deepcopy(model)(image()[0]), expected)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    model.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    exported = torch.export.export(model, image()).module()
    assert torch.allclose(exported(*image()), expected, atol=1e-6)
    again = apical.trace(model, image())
    assert again.group("1.conv1").size == 2


def test_hooks_on_modules_stay(structure: Structure) -> None:
    model, store = tiny_resnet(), DormantStore()
    calls: list[str] = []
    model[1].conv1.register_forward_hook(lambda *_: calls.append("conv"))
    model[3].register_forward_hook(lambda *_: calls.append("block"))
    apical.resize_(model, structure, KEEP, ["3"], store=store)
    model(image()[0])
    assert calls == ["conv"]
    apical.resize_(model, structure, {}, store=store)
    model(image()[0])
    assert calls == ["conv", "conv", "block"]


def test_two_models_and_two_stores_do_not_mix(structure: Structure) -> None:
    one, two = tiny_resnet(), tiny_resnet()
    before = [copy.deepcopy(m.state_dict()) for m in (one, two)]
    stores = [DormantStore(), DormantStore()]
    for m, s in zip((one, two), stores, strict=True):
        apical.resize_(m, structure, KEEP, ["3"], store=s)
    for m, s in zip((one, two), stores, strict=True):
        apical.resize_(m, structure, {}, store=s)
    for m, b in zip((one, two), before, strict=True):
        assert all(torch.equal(t, b[n]) for n, t in m.state_dict().items())


def test_group_norm_and_heads_keep_their_options() -> None:
    model = nn.Sequential(conv(3, 12), nn.GroupNorm(4, 12, eps=1e-3), nn.ReLU(), unit(12, 6), head(6))
    structure = apical.trace(model, image())
    apical.resize_(model, structure, {"0": [1, 3]})
    assert str(model[1]) == str(nn.GroupNorm(2, 6, eps=1e-3))


def test_what_lies_in_shared_memory_stays_there(structure: Structure) -> None:
    """For processes that are started later: parameters and buffers, those that change their size and that come back."""
    model, store = tiny_resnet().share_memory(), DormantStore()
    for keep, skip in ((KEEP, ["3"]), ({}, [])):
        apical.resize_(model, structure, keep, skip, store=store)
        assert all(tensor.is_shared() for tensor in model.state_dict().values())
        assert model(image()[0]).isfinite().all()
    own = tiny_resnet()
    apical.resize_(own, structure, KEEP)
    assert not any(tensor.is_shared() for tensor in own.state_dict().values())
